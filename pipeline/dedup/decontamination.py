"""Training pairs with a text of an evaluation set in them: a near-duplicate, or a query of it word for word."""

from collections.abc import Sequence
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
from ..text.match_key import match_keys
from .lsh import NO_BUCKET
from .minhash import ShingleSets, jaccard, shingle_sets, utf8
from .signatures import SIDES, band_columns, banded, compared_by, is_class

SHORTEST = 4
"""Chosen here: letters of a text that tells a set; 慢慢来 is anybody's answer."""
CONTAINED = 13
"""Letters of an evaluation query that a training text may not contain; GPT-3 (arXiv 2005.14165, appendix C) takes
13-grams."""
_SHARED = 64
"""Chosen here: texts of a set in one bucket with which a text is compared, at most."""


def evaluation_files(corpus: Path, wanted: bool | Sequence[str]) -> list[Path]:
    """The evaluation sets to keep out: the corpus's own, by name, or Parquet and JSONL files.

    Raises:
        RecipeError: a name that is neither.
        CorpusError: the corpus's own were not ingested to the end.
    """
    if wanted is False:
        return []
    # Half of the sets would let the others' texts through, so an interrupted ingest raises; a recipe may have none.
    found = shards(corpus, "evaluation") if is_begun(corpus, "evaluation") else []
    own = {_set_name(shard): shard for shard in found}
    if wanted is True:
        return list(own.values())
    files = []
    for name in wanted:
        file = own.get(name, Path(name))
        if not file.exists():
            raise RecipeError(
                f"dedup.decontaminate: {name} is neither a Parquet or JSONL file nor an evaluation set of the corpus"
                f"{did_you_mean(name, own)}"
            )
        files.append(file)
    return files


def content(file: Path) -> str:
    """What decides the texts of an evaluation set."""
    if _is_own(file):
        return read_footer(file).content
    return fingerprint(str(file), file.stat().st_size, file.stat().st_mtime_ns)


def read_held_out(files: Sequence[Path]) -> pl.DataFrame:
    """The texts of evaluation sets as they are compared: `text`, `set`, `asked` (whether it is a query); each once.

    Raises:
        RecipeError: a file has no column of texts.
    """
    found = pl.concat([_texts(file) for file in files])
    found = found.with_columns(text=pl.Series(match_keys(found["text"].to_arrow()), dtype=pl.String))
    return (
        found.filter(pl.col("text").str.len_chars() >= SHORTEST)
        .group_by("text", maintain_order=True)
        .agg(pl.col("set").first(), pl.col("asked").any())
    )


def _is_own(file: Path) -> bool:
    """Whether it is a shard of a corpus's own sets rather than a file of the user's."""
    return file in committed(file.parent.parent, "evaluation")


def _set_name(shard: Path) -> str:
    names = pl.read_parquet(shard, columns=["source"], n_rows=1)["source"]
    return str(names[0]) if len(names) else shard.stem


def _texts(file: Path) -> pl.DataFrame:
    """The texts of an evaluation set, without passages that only serve as a haystack."""
    try:
        frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_ndjson(file, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RecipeError(
            f"dedup.decontaminate: {file} can't be read as {'Parquet' if file.suffix == '.parquet' else 'JSONL'} "
            f"(a JSON object in every line, in UTF-8 without a byte-order mark): {error}"
        ) from error
    if frame.schema.get("meta") == pl.String:
        frame = frame.filter(~pl.col("meta").str.contains('"passage_only":true', literal=True).fill_null(False))
    name = _set_name(file) if _is_own(file) else file.stem
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
    """Evaluation texts ready to be met: `text, set, asked`; their shingles; of each band `hash, other`, the first
    _SHARED texts of a bucket; the queries that may not be contained, and their automaton."""

    texts: pl.DataFrame
    sets: ShingleSets
    bands: list[pl.DataFrame]
    asked: pl.DataFrame
    automaton: BytesAhoCorasick


@lru_cache(maxsize=1)
def prepared(evaluation: Path, bands: int, rows: int) -> HeldOut:
    """What `read_held_out` found, read from a file of its own; kept, as every shard meets it."""
    frame = pl.read_parquet(evaluation)
    texts = frame["text"].to_arrow()
    asked = frame.filter("asked", pl.col("text").str.len_chars() >= CONTAINED)
    return HeldOut(
        frame,
        shingle_sets(texts),
        [
            pl.DataFrame({"hash": hashes}).with_row_index("other").group_by("hash", maintain_order=True).head(_SHARED)
            for hashes in banded(texts, bands, rows)
        ],
        asked,
        BytesAhoCorasick([query.encode() for query in asked["text"]]),
    )


def mark_contaminated(
    filtered: Path, signed: Path, evaluation: Path, start: int, bands: int, rows: int, threshold: float, file: Path
) -> None:
    """Write the contaminated rows of a shard to `file`: `row` (counted on from `start`) and `detail`, each row once."""
    theirs = prepared(evaluation, bands, rows)
    found, at = [], 0
    for table in read_batches(filtered, ["source", "task", "query", "positive"]):
        for side in SIDES:
            texts = compared_by(table, side)
            hashes = pl.read_parquet(signed, columns=band_columns(side, bands)).slice(at, table.num_rows)
            near = nearest(texts, hashes, theirs, threshold)
            near = near.select("row", theirs.texts["set"].gather(near["other"]), why=pl.col("similarity").round(3))
            holding = containing(texts, theirs)
            if side == "positive":  # a class name is nobody's text; it has no bands either
                holding = holding.filter(~pl.Series(is_class(table)).gather(holding["row"]))
            for reasons in (near, holding):
                detail = pl.format("{} {}: {}", pl.lit(side), "set", "why")
                found.append(reasons.select(row=pl.col("row") + (start + at), detail=detail))
        at += table.num_rows
    empty = pl.DataFrame(schema={"row": pl.Int64, "detail": pl.String})
    pl.concat([empty, *found]).unique("row", keep="first", maintain_order=True).write_parquet(file)


def nearest(texts: pa.LargeStringArray, hashes: pl.DataFrame, theirs: HeldOut, threshold: float) -> pl.DataFrame:
    """The best near-duplicate of each text: `row`, `other`, `similarity`; rows without one are left out.

    hashes: the texts' band hashes, a column a band. Of equally good others the first is named.
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
    alike = met.with_columns(similarity=pl.Series(similarity, dtype=pl.Float64)).filter(
        pl.col("similarity") >= threshold
    )
    return alike.sort("row", -pl.col("similarity"), "other").unique("row", keep="first", maintain_order=True)


def containing(texts: pa.LargeStringArray, theirs: HeldOut) -> pl.DataFrame:
    """Texts that contain one of the queries: `row`, `set`, `why`."""
    offsets, data = utf8(texts)
    found = theirs.automaton.find_matches_as_indexes(data[offsets[0] : offsets[-1]].data, overlapping=True)
    query, start, end = np.array(found, np.int64).reshape(-1, 3).T
    row = np.searchsorted(offsets - offsets[0], start, side="right") - 1
    within = end <= offsets[row + 1] - offsets[0]  # not from one text into the next
    queries: pl.DataFrame = theirs.asked[query[within]]
    return queries.select(pl.Series("row", row[within]), "set", why=pl.format("contains {}", "text"))
