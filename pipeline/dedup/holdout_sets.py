"""Write the questions that are held out of a source as an evaluation set, with all passages of the source to search."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ...schemas.pairs import PAIR, REJECTED_AT_INGEST
from ...schemas.recipe import Recipe
from ...schemas.source_settings import Source
from ..corpus.folder import HOLDOUT, committed, fingerprint, read_batches, read_footer
from ..corpus.shard_writer import ShardWriter
from ..engine.stage import Task
from .clusters import Pairs

VERSION = 1
SEARCHED = "searched.parquet"
"""A file in the work folder: `row, source, task`, hashes and cluster ids of the pairs that train or are `held`."""


def plan_sets(recipe: Recipe, pairs: Pairs, decided_by: str) -> list[Task]:
    """Plan a set for each source that questions are held out of."""
    sources = [source for source in recipe.sources if recipe.holdout and source.gives_questions]
    return [Task((source, pairs), fingerprint(HOLDOUT, VERSION, decided_by, source.name)) for source in sources]


def write_set(source: Source, pairs: Pairs, fingerprint: str, shard: Path) -> None:
    """Write the set of a source, as pairs of the source; it is empty if none of its questions are held out.

    Sentence pairs and texts to classify are written as they are. Questions have the answers that `add_answers` finds;
    the other passages to search are pairs of the task passage: the positives that the source trains on, and all
    passages of the corpus, equal ones once.
    """
    is_own, is_passage = pl.col("source") == source.name, pl.col("task") == "passage"
    searched = pl.scan_parquet(pairs.work / SEARCHED).filter(is_own | is_passage).collect()
    is_asked = source.task in ("pretrain", "retrieval")
    held = searched.filter("held")
    texts = read_pairs(pairs, held["row"].to_numpy()).join(held.drop("source", "task"), on="row").sort("pair_id")
    rest = searched.filter(~pl.col("held"), is_asked and len(held) > 0)
    passages = rest.unique("positive_hash", keep="first", maintain_order=True)
    with ShardWriter(
        shard, PAIR, REJECTED_AT_INGEST, stage=HOLDOUT, version=VERSION, fingerprint=fingerprint
    ) as writer:
        _write(writer, add_answers(texts) if is_asked else texts)
        for frame in _read_frames(pairs, passages["row"].to_numpy(), PAIR.names):
            _write(writer, frame.with_columns(source=pl.lit(source.name), **_NO_QUESTION))
        counted = "row" if source.task == "sts" else "query_hash"
        writer.notes["source"] = source.name
        writer.notes["held_out"] = held[counted].n_unique()
        writer.notes["questions"] = searched.filter(is_own)[counted].n_unique()
        writer.notes["passages"] = held["positive_hash"].n_unique() + passages.height if is_asked else 0


_NO_QUESTION = {
    "task": pl.lit("passage"),
    "query": pl.lit(""),
    "negatives": pl.lit([], pl.List(pl.String)),
    "label": pl.lit(None, pl.Float32),
    "meta": pl.lit("{}"),
}


def add_answers(held: pl.DataFrame) -> pl.DataFrame:
    """Return a source's held-out pairs, which are sorted by pair_id, with further ones for what else answers them.

    Equal questions become one text. Its answers are the positives of all its pairs, and those in a cluster with these.
    """
    asked = held.with_columns(
        pl.col("query").first().over("query_hash"), asker=pl.col("pair_id").first().over("query_hash")
    )
    answers = asked.select("positive_id", answer="positive").unique(maintain_order=True)
    near = (
        asked.unique(["query_hash", "positive_id"], keep="first", maintain_order=True)
        .join(answers, on="positive_id", maintain_order="left_right")
        .join(
            asked.select("query_hash", answer="positive"),
            on=["query_hash", "answer"],
            how="anti",
            maintain_order="left",
        )
        .with_columns(pair_id="asker", positive="answer", negatives=pl.lit([], pl.List(pl.String)))
    )
    return pl.concat([asked, near.select(asked.columns)]).sort("asker", maintain_order=True)


def read_pairs(pairs: Pairs, rows: NDArray[np.int64], columns: Sequence[str] = PAIR.names) -> pl.DataFrame:
    """Read some rows of the filtered shards, with their numbers as the column `row`."""
    none = _with_numbers(PAIR.empty_table().select(columns), np.empty(0, np.int64))
    return pl.concat([none, *_read_frames(pairs, rows, columns)])


def _read_frames(pairs: Pairs, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield some rows of the filtered shards in order, one row group at a time, as `read_pairs` returns them."""
    rows = np.sort(rows)
    for shard, start, stop in zip(pairs.filtered, pairs.starts, pairs.starts[1:], strict=False):
        if np.diff(np.searchsorted(rows, [start, stop])) == 0:
            continue
        at = start
        for table in read_batches(shard, columns):
            here = rows[slice(*np.searchsorted(rows, [at, at + table.num_rows]))]
            yield _with_numbers(table.take(pa.array(here - at)), here)
            at += table.num_rows


def _with_numbers(table: pa.Table, rows: NDArray[np.int64]) -> pl.DataFrame:
    return pl.DataFrame(table).with_columns(pl.col(pl.Categorical).cast(pl.String), row=pl.Series(rows, dtype=pl.Int64))


def _write(writer: ShardWriter, frame: pl.DataFrame) -> None:
    writer.received(frame.height)
    writer.keep(frame.select(PAIR.names).to_arrow())


def describe_sets(corpus: Path) -> list[str]:
    """Say of each set how many questions it holds out, and among how many passages they are searched."""
    notes = [read_footer(shard).notes for shard in committed(corpus, HOLDOUT)]
    return [
        f"{each['source']} {each['held_out']:,} of {each['questions']:,}"
        + (f" among {each['passages']:,} passages" if each["passages"] else "")
        for each in sorted(notes, key=lambda each: str(each["source"]))
    ]
