"""Find training pairs that contain an evaluation text.

A pair does so if one of its texts is a near-duplicate of an evaluation text, or contains an evaluation query verbatim.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from ahocorasick_rs import BytesAhoCorasick

from ...schemas.errors import RecipeError
from ...schemas.registry import did_you_mean
from ..corpus.folder import committed, fingerprint, is_begun, read_batches, read_footer, shards
from ..engine.calls import Engine
from ..text.kernels import utf8_buffers
from ..text.match_key import match_keys
from .blocks import call_all
from .clusters import Pairs
from .lsh import NO_BUCKET
from .minhash import ShingleSets, jaccard, shingle_sets
from .signatures import SIDES, band_columns, hash_text_bands, is_class, read_compared_texts

SHORTEST = 4
"""Chosen here: evaluation texts with fewer characters are ignored; one as short as 慢慢来 is a common answer."""
CONTAINED = 13
"""Evaluation queries of this many characters or more may not be contained in a training text; GPT-3 (arXiv
2005.14165, appendix C) uses 13-grams."""
_SHARED = 64
"""Chosen here: a text is compared with at most this many evaluation texts per bucket."""


def find_evaluation_files(corpus: Path, wanted: bool | Sequence[str]) -> list[Path]:
    """Find the evaluation sets to keep out of training.

    `wanted` is True for all sets of the corpus, False for none, or a list of names of these sets and of Parquet or
    JSONL files.

    Raises:
        RecipeError: a name is neither a set of the corpus nor a file.
        CorpusError: the ingestion of the corpus's own sets was interrupted.
    """
    if wanted is False:
        return []
    # If ingest was interrupted, `shards` raises, as texts of missing sets would get through. Having no sets is fine.
    found = shards(corpus, "evaluation") if is_begun(corpus, "evaluation") else []
    own = {_read_set_name(shard): shard for shard in found}
    if wanted is True:
        return list(own.values())
    check_set_names(wanted, own)
    return [own.get(name, Path(name)) for name in wanted]


def check_set_names(wanted: Iterable[str], own: Collection[str]) -> None:
    """Raise RecipeError if a name is neither that of a file nor of one of the corpus's `own` sets."""
    for name in wanted:
        if name not in own and not Path(name).exists():
            raise RecipeError(
                f"dedup.decontaminate: {name} is neither a Parquet or JSONL file nor an evaluation set of the corpus"
                f"{did_you_mean(name, own)}"
            )


def fingerprint_set(file: Path) -> str:
    """Fingerprint an evaluation set: by content if it is the corpus's own, else by its file's name, size and time."""
    if _is_own(file):
        return read_footer(file).content
    return fingerprint(str(file), file.stat().st_size, file.stat().st_mtime_ns)


def read_held_out(files: Sequence[Path]) -> pl.DataFrame:
    """Read the match keys of evaluation texts, each once: `text`, `set`, `asked` (whether it is a query).

    Raises:
        RecipeError: a file can't be read or has no column of texts.
    """
    return collect_held_out(pl.concat([_read_texts(file) for file in files]))


def collect_held_out(found: pl.DataFrame) -> pl.DataFrame:
    """Collect evaluation texts, `text, set, asked`, as `read_held_out` returns them."""
    found = found.with_columns(text=pl.Series(match_keys(found["text"].to_arrow()), dtype=pl.String))
    return (
        found.filter(pl.col("text").str.len_chars() >= SHORTEST)
        .group_by("text", maintain_order=True)
        .agg(pl.col("set").first(), pl.col("asked").any())
    )


def _is_own(file: Path) -> bool:
    """Whether a file is a shard of the corpus's own sets."""
    return file in committed(file.parent.parent, "evaluation")


def _read_set_name(shard: Path) -> str:
    names = pl.read_parquet(shard, columns=["source"], n_rows=1)["source"]
    return str(names[0]) if len(names) else shard.stem


def _read_texts(file: Path) -> pl.DataFrame:
    """Read the texts of an evaluation set, except passages that only serve as distractors."""
    try:
        frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_ndjson(file, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        jsonl = "JSONL (one JSON object per line, UTF-8 without a byte-order mark)"
        expected = "Parquet" if file.suffix == ".parquet" else jsonl
        raise RecipeError(f"dedup.decontaminate: {file} can't be read as {expected}: {error}") from error
    if "task" in frame.columns:
        frame = frame.filter(pl.col("task").cast(pl.String).ne_missing("passage"))
    name = _read_set_name(file) if _is_own(file) else file.stem
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
    return pl.concat(
        frame.select(
            text=(pl.col(column).explode() if frame.schema[column] == pl.List else pl.col(column)).cast(pl.String),
            set=pl.lit(name),
            asked=pl.lit(column == "query"),
        )
        for column in columns
    ).drop_nulls()


class HeldOut(NamedTuple):
    """Evaluation texts, prepared for comparison.

    texts: `text, set, asked`. sets: the shingles of these texts. bands: per band, `hash` and `other` (a row of `texts`)
    of the first _SHARED texts in each bucket. asked: the queries that no text may contain. automaton: finds those
    queries.
    """

    texts: pl.DataFrame
    sets: ShingleSets
    bands: list[pl.DataFrame]
    asked: pl.DataFrame
    automaton: BytesAhoCorasick


@lru_cache(maxsize=1)
def prepare_held_out(evaluation: Path, bands: int, rows: int) -> HeldOut:
    """Prepare the texts that `read_held_out` found, from a file; cached, as every shard is compared with them."""
    frame = pl.read_parquet(evaluation)
    texts = frame["text"].to_arrow()
    asked = frame.filter("asked", pl.col("text").str.len_chars() >= CONTAINED)
    return HeldOut(
        frame,
        shingle_sets(texts),
        [
            pl.DataFrame({"hash": hashes}).with_row_index("other").group_by("hash", maintain_order=True).head(_SHARED)
            for hashes in hash_text_bands(texts, bands, rows)
        ],
        asked,
        BytesAhoCorasick([query.encode() for query in asked["text"]]),
    )


def find_contaminated(
    pairs: Pairs, held_out: Path | None, banding: tuple[int, int], threshold: float, engine: Engine
) -> pl.DataFrame:
    """Find the rows that contain one of the texts that `read_held_out` found, from a file: `row`, `detail`."""
    if held_out is None:
        return pl.DataFrame(schema={"row": pl.Int64, "detail": pl.String})
    files = [pairs.work / f"contaminated_{number}.parquet" for number in range(len(pairs.filtered))]
    parts = zip(pairs.filtered, pairs.signed, pairs.starts, files, strict=False)
    calls = [(shard, signed, held_out, start, *banding, threshold, file) for shard, signed, start, file in parts]
    call_all("contamination", mark_contaminated, [(str(call[0]), call) for call in calls], engine)
    return pl.read_parquet(files)


def mark_contaminated(
    filtered: Path, signed: Path, evaluation: Path, start: int, bands: int, rows: int, threshold: float, file: Path
) -> None:
    """Write a shard's contaminated rows to `file`, each once: `row` (the shard's first row is `start`), `detail`."""
    theirs = prepare_held_out(evaluation, bands, rows)
    found, at = [], 0
    for table in read_batches(filtered, ["source", "task", "query", "positive"]):
        for side in SIDES:
            texts = read_compared_texts(table, side)
            hashes = pl.read_parquet(signed, columns=band_columns(side, bands)).slice(at, table.num_rows)
            near = find_nearest(texts, hashes, theirs, threshold)
            near = near.select("row", theirs.texts["set"].gather(near["other"]), why=pl.col("similarity").round(3))
            holding = find_containing(texts, theirs)
            if side == "positive":  # a class name is not a text, and has no bands
                holding = holding.filter(~pl.Series(is_class(table)).gather(holding["row"]))
            for reasons in (near, holding):
                detail = pl.format("{} {}: {}", pl.lit(side), "set", "why")
                found.append(reasons.select(row=pl.col("row") + (start + at), detail=detail))
        at += table.num_rows
    empty = pl.DataFrame(schema={"row": pl.Int64, "detail": pl.String})
    pl.concat([empty, *found]).unique("row", keep="first", maintain_order=True).write_parquet(file)


def find_nearest(texts: pa.LargeStringArray, hashes: pl.DataFrame, theirs: HeldOut, threshold: float) -> pl.DataFrame:
    """Find the evaluation text that is most similar to each text: `row`, `other`, `similarity`.

    Texts that are similar to none are left out; the first of several equally similar ones is taken. hashes: the texts'
    band hashes, one column per band.
    """
    met = pl.concat(
        hashes.select(hash=name)
        .with_row_index("row")
        .filter(pl.col("hash") != NO_BUCKET)
        .join(band, on="hash")
        .select(pl.col("row", "other").cast(pl.Int64))
        for name, band in zip(hashes.columns, theirs.bands, strict=True)
    ).unique()
    rows = met["row"].unique().sort()
    sets = shingle_sets(texts.take(rows.to_arrow()))
    places = rows.search_sorted(met["row"]).cast(pl.Int64).to_numpy()
    similarity = jaccard(sets, places, theirs.sets, met["other"].to_numpy(), threshold)
    near = met.with_columns(similarity=pl.Series(similarity, dtype=pl.Float64)).filter(
        pl.col("similarity") >= threshold
    )
    return near.sort("row", -pl.col("similarity"), "other").unique("row", keep="first", maintain_order=True)


def find_containing(texts: pa.LargeStringArray, theirs: HeldOut) -> pl.DataFrame:
    """Find the texts that contain an evaluation query: `row`, `set`, `why`."""
    offsets, data = utf8_buffers(texts)
    found = theirs.automaton.find_matches_as_indexes(data[offsets[0] : offsets[-1]].data, overlapping=True)
    query, start, end = np.array(found, np.int64).reshape(-1, 3).T
    row = np.searchsorted(offsets - offsets[0], start, side="right") - 1
    within = end <= offsets[row + 1] - offsets[0]  # a match must not run from one text into the next
    queries: pl.DataFrame = theirs.asked[query[within]]
    return queries.select(pl.Series("row", row[within]), "set", why=pl.format("contains {}", "text"))
