"""conan dedup: contaminated pairs, exact duplicates and near-duplicates go; the best of each cluster stays."""

import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from ..schemas.pairs import CLUSTERED, PAIR, rejected
from ..schemas.recipe import Recipe, RecipeError
from ..schemas.settings import DedupSettings
from .clusters import jaccard, matches, near_duplicates
from .corpus import ShardWriter, fingerprint, read_batches, read_footer, shards
from .engine import Engine, Summary, Task, made, run_stage
from .text import key

VERSION = 1
_DECISIONS = ".decisions.parquet"


def dedup(corpus: Path, recipe: Recipe, engine: Engine) -> Summary:
    """Decide over the whole corpus, then write each filtered shard without its duplicates.

    Raises:
        RecipeError: an evaluation set that `decontaminate` names is not there, or has no texts.
        CorpusError: filter or the ingestion of evaluation sets was interrupted.
        StageError: a shard could not be made.
    """
    started = time.monotonic()
    settings = recipe.dedup
    inputs = shards(corpus, "filter")
    evaluation = _evaluation_files(corpus, settings.decontaminate)
    priorities = {
        source.name: place if source.priority is None else source.priority
        for place, source in enumerate(recipe.sources)
    }
    everything = fingerprint(
        "dedup",
        VERSION,
        settings.model_dump(),
        priorities,
        [(shard.name, read_footer(shard).content) for shard in inputs],
        [_content(file) for file in evaluation],
    )
    decisions = corpus / "dedup" / _DECISIONS
    tasks = [Task((shard, decisions), fingerprint(everything, shard.name)) for shard in inputs]
    if len(made(corpus, "dedup", tasks)) < len(tasks):
        decisions.parent.mkdir(parents=True, exist_ok=True)
        engine.progress("dedup: clusters", 0, 1, 0)
        decide(inputs, evaluation, priorities, settings).write_parquet(decisions)
    summary = run_stage(corpus, "dedup", dedup_shard, tasks, engine)
    summary.seconds = time.monotonic() - started  # with the decision, which is most of it
    decisions.unlink(missing_ok=True)
    return summary


def _evaluation_files(corpus: Path, wanted: bool | Sequence[str]) -> list[Path]:
    """The evaluation sets to keep out: the corpus's own, by name, or Parquet and JSONL files."""
    if wanted is False:
        return []
    own = {_set_name(shard): shard for shard in _evaluation_shards(corpus)}
    if wanted is True:
        return list(own.values())
    found = []
    for name in wanted:
        file = own.get(name, Path(name))
        if not file.exists():
            raise RecipeError(
                f"dedup.decontaminate: {name} is neither an evaluation set of the corpus ({', '.join(own) or 'none'}) "
                "nor a Parquet or JSONL file"
            )
        found.append(file)
    return found


def _evaluation_shards(corpus: Path) -> list[Path]:
    """The corpus's own sets; half of them would let the others' texts through, so an interrupted ingest raises."""
    return shards(corpus, "evaluation") if (corpus / "evaluation").exists() else []


def _set_name(shard: Path) -> str:
    names = pl.read_parquet(shard, columns=["source"], n_rows=1)["source"]
    return str(names[0]) if len(names) else shard.stem


def _content(file: Path) -> str:
    if file.parent.name == "evaluation":
        return read_footer(file).content
    return fingerprint(str(file), file.stat().st_size, file.stat().st_mtime_ns)


def decide(
    inputs: Sequence[Path], evaluation: Sequence[Path], priorities: dict[str, int], settings: DedupSettings
) -> pl.DataFrame:
    """What becomes of every row: `shard, row, cluster_id, reason, detail`; reason is null for what stays.

    Two pairs are duplicates when they are of one task and both their queries and their positives are: the same passage
    under another question is a pair of its own. With `on: query` or `on: positive` that side alone decides, but not of
    pairs with a label or a class, where one side says too little. Labelled sentence pairs go only where texts and label
    are equal, as one word may carry the label.
    """
    columns = ["pair_id", "source", "task", "query", "positive", "label"]
    frame = pl.concat(
        pl.read_parquet(shard, columns=columns).with_columns(
            shard=pl.lit(shard.name), row=pl.row_index().cast(pl.Int64)
        )
        for shard in inputs
    ).with_columns(
        pl.col("source", "task").cast(pl.String),
        query_key=key(pl.col("query")),
        # A class name is nobody's text, and one class of two sources is two classes.
        positive_key=pl.when(pl.col("task").cast(pl.String) == "classification")
        .then(pl.format("{}\n{}", "source", "positive"))
        .otherwise(key(pl.col("positive"))),
    )
    frame = frame.with_columns(
        priority=pl.col("source").replace_strict(priorities, default=len(priorities), return_dtype=pl.Int64),
        query_id=text_clusters(frame["query_key"], frame["task"] != "sts", settings),
        cluster_id=text_clusters(frame["positive_key"], frame["task"].is_in(["pretrain", "retrieval"]), settings),
        reason=pl.lit(None, pl.String),
        detail=pl.lit(None, pl.String),
    )
    frame = _mark_contaminated(frame, evaluation, settings)
    for reason, query, positive in (
        ("exact_duplicate", "query_key", "positive_key"),
        ("near_duplicate", "query_id", "cluster_id"),
    ):
        frame = _mark_duplicates(frame, reason, _same(query, positive, settings), settings)
    return frame.select("shard", "row", "cluster_id", "reason", "detail")


def _same(query: str, positive: str, settings: DedupSettings) -> list[pl.Expr]:
    """What duplicates agree in."""
    task = pl.col("task")
    labelled = task.is_in(["sts", "classification"])
    return [
        task,
        pl.when(labelled | pl.lit(settings.on != "positive")).then(query),
        pl.when(labelled | pl.lit(settings.on != "query")).then(positive),
        pl.when(task == "sts").then("label"),
    ]


def text_clusters(keys: pl.Series, similar: pl.Series, settings: DedupSettings) -> pl.Series:
    """One number for equal texts, and where `similar` is true for near-duplicates too.

    63 bits of the MD5 of the cluster's least hash: stable over runs and machines, and never negative.
    """
    named = pl.DataFrame({"text": keys, "similar": similar})
    distinct = named.unique(maintain_order=True)
    with duckdb.connect(":memory:") as connection:
        connection.register("distinct_texts", distinct.to_arrow())
        hashes = connection.sql("SELECT CAST(md5_number_lower(text) >> 1 AS BIGINT) AS id FROM distinct_texts").pl()
    distinct = distinct.with_columns(hashes["id"])
    alike = distinct.filter("similar")
    labels = near_duplicates(alike["text"].to_arrow(), settings.threshold, settings.bands, settings.rows)
    alike = alike.with_columns(pl.col("id").min().over(pl.Series(labels)))
    known = pl.concat([alike, distinct.filter(~pl.col("similar"))])
    return named.join(known, on=["text", "similar"], how="left", maintain_order="left")["id"]


def _mark(frame: pl.DataFrame, rows: pl.Series, reason: str, detail: pl.Series) -> pl.DataFrame:
    """Give rows their reason; one that has a reason already keeps it."""
    new = pl.repeat(None, frame.height, dtype=pl.String, eager=True).scatter(rows, detail)
    unmarked = pl.col("reason").is_null() & pl.lit(new).is_not_null()
    return frame.with_columns(
        reason=pl.when(unmarked).then(pl.lit(reason)).otherwise("reason"),
        detail=pl.when(unmarked).then(pl.lit(new)).otherwise("detail"),
    )


def _mark_contaminated(frame: pl.DataFrame, evaluation: Sequence[Path], settings: DedupSettings) -> pl.DataFrame:
    """Pairs one of whose texts is a near-duplicate of a text of an evaluation set."""
    if not evaluation:
        return frame
    held_out = pl.concat([_evaluation_texts(file) for file in evaluation]).unique(maintain_order=True)
    theirs = held_out.select(key(pl.col("text"))).to_series().to_arrow()
    for side in ("query", "positive"):
        rows = np.arange(frame.height)
        if side == "positive":  # a class name is nobody's text
            rows = (frame["task"] != "classification").arg_true().to_numpy()
        ours = frame[f"{side}_key"].gather(rows).to_arrow()
        own, other, similarity = matches(ours, theirs, settings.threshold, settings.bands, settings.rows)
        named = pl.DataFrame({"set": held_out["set"].gather(other), "similarity": similarity})
        frame = _mark(
            frame,
            pl.Series(rows[own]),
            "contaminated",
            named.select(pl.format("{} {}: {}", pl.lit(side), "set", pl.col("similarity").round(3))).to_series(),
        )
    return frame


def _evaluation_texts(file: Path) -> pl.DataFrame:
    """The texts of an evaluation set (`text, set`), without passages that only serve as a haystack."""
    frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_ndjson(file)
    if frame.schema.get("meta") == pl.String:
        frame = frame.filter(~pl.col("meta").str.contains('"passage_only":true', literal=True).fill_null(False))
    name = _set_name(file) if file.parent.name == "evaluation" else file.stem
    is_class = "task" in frame.columns and (frame["task"].cast(pl.String) == "classification").all()
    columns = [
        column
        for column in ("query", "positive", "positives", "text_a", "text_b")
        if column in frame.columns and not (is_class and column == "positive")
    ]
    if not columns:
        raise RecipeError(
            f"dedup.decontaminate: {file} has none of the columns query, positive, positives, text_a, text_b; "
            f"it has {', '.join(frame.columns)}"
        )
    texts = [frame.select(pl.col(column).explode() if column == "positives" else column) for column in columns]
    return pl.concat([text.to_series().rename("text").to_frame() for text in texts]).select("text", set=pl.lit(name))


_PREFERENCE = [
    pl.col("priority"),
    -pl.col("positive").str.len_chars().cast(pl.Int64),
    pl.col("pair_id"),
    pl.col("place"),
]
"""Who survives: source priority, then the longest positive, then pair_id; equal pairs by place."""


def _mark_duplicates(
    frame: pl.DataFrame, reason: str, same: Sequence[pl.Expr], settings: DedupSettings
) -> pl.DataFrame:
    """Of the rows still there that agree in `same`, all but the best are rejected and name it and their similarity."""
    left = frame.with_row_index("place").filter(pl.col("reason").is_null())
    judged = left.with_columns(
        within=pl.row_index().cast(pl.Int64), survivor=pl.col("pair_id").sort_by(_PREFERENCE).first().over(same)
    ).with_columns(survivor_row=pl.col("within").sort_by(_PREFERENCE).first().over(same))
    gone = judged.filter(pl.col("within") != pl.col("survivor_row"))
    keys = _same("query_key", "positive_key", settings)[1:3]
    texts = judged.select(pl.concat_str(keys, separator="\n", ignore_nulls=True)).to_series().to_arrow()
    similarity = jaccard(texts, gone["within"].to_numpy(), gone["survivor_row"].to_numpy())
    detail = gone.select(pl.format("{}: {}", "survivor", pl.Series(similarity).round(3))).to_series()
    return _mark(frame, gone["place"], reason, detail)


def dedup_shard(filter_shard: Path, decisions: Path, fingerprint: str, shard: Path) -> None:
    """One shard: what stays of a filtered shard, and what went with its survivor's name."""
    decided = pl.read_parquet(decisions).filter(pl.col("shard") == filter_shard.name).sort("row")
    start = 0
    with ShardWriter(
        shard, CLUSTERED, rejected(PAIR), stage="dedup", version=VERSION, fingerprint=fingerprint
    ) as writer:
        for table in read_batches(filter_shard):
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            frame = frame.hstack(decided.slice(start, frame.height).select("cluster_id", "reason", "detail"))
            start += frame.height
            writer.received(frame.height)
            writer.keep(frame.filter(pl.col("reason").is_null()).to_arrow())
            writer.reject(frame.filter(pl.col("reason").is_not_null()).to_arrow())
