"""Find which pairs are duplicates of each other, and choose the survivors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ...schemas.settings import DedupSettings
from ..engine.calls import Engine
from .blocks import call_all, compute_similarities, save
from .clusters import Clusters, Pairs, fit_engine
from .lsh import find_equal
from .signatures import SIDES, Side

On = Literal["pair", "query", "positive"]

WHOLE = ("sts", "classification", "passage")
"""Tasks for which both sides decide whatever `on` says: one side of a labelled pair says too little, and the queries of
all passages are empty."""

_JUDGED = 500_000
"""Chosen here: duplicates in memory while survivors are chosen, at a few hundred bytes each."""


def duplicate_key(query: str, positive: str, on: On) -> list[pl.Expr]:
    """List what duplicates have in common: the task, the sides that decide, and the label of sentence pairs."""
    task = pl.col("task")
    return [
        task,
        pl.when(decides("query", on)).then(query).alias("same_query"),
        pl.when(decides("positive", on)).then(positive).alias("same_positive"),
        pl.when(task == "sts").then("label").alias("same_label"),
    ]


def find_duplicates(
    pairs: Pairs, found: dict[Side, Clusters], priorities: dict[str, int], left_out: pl.Series, on: On, engine: Engine
) -> Iterator[pl.DataFrame]:
    """Yield the pairs that have a duplicate, best first, in parts that keep duplicates together.

    The columns are those that `choose_duplicates` takes. left_out: numbers of rows that are already rejected.
    """
    engine = fit_engine(engine, pairs)
    shards = range(len(pairs.filtered))
    files = [pairs.work / f"duplicate-keys-{number}.npy" for number in shards]
    ids = {side: one.ids for side, one in found.items()}
    hashing = [(str(file), (pairs.of_shard(number), ids, on, file)) for number, file in enumerate(files)]
    call_all("duplicates", write_duplicate_keys, hashing, engine)
    keys = np.empty(pairs.rows, np.uint64)
    for file, start, stop in zip(files, pairs.starts, pairs.starts[1:], strict=False):
        keys[start:stop] = np.load(file)
    has_duplicate = np.zeros(pairs.rows, np.bool_)
    for edges in find_equal(keys):
        for rows in edges:
            has_duplicate[rows] = True
    has_duplicate[left_out.to_numpy()] = False
    parts = 1 + int(has_duplicate.sum()) // _JUDGED
    del keys
    wanted = save(pairs.work / "duplicates.npy", has_duplicate)
    files = [pairs.work / f"duplicates-{number}.parquet" for number in shards]
    choosing = [
        (str(file), (pairs.of_shard(number), ids, on, wanted, parts, file)) for number, file in enumerate(files)
    ]
    call_all("survivors", write_duplicates, choosing, engine)
    preference = [
        pl.col("source").replace_strict(priorities, default=len(priorities), return_dtype=pl.Int64),
        -pl.col("length"),
        pl.col("pair_id"),
        pl.col("row"),
    ]
    for part in range(parts):
        frame = pl.scan_parquet(files).filter(pl.col("part") == part).collect()
        yield frame.sort(preference).drop("source", "length", "part")


def write_duplicate_keys(shard: Pairs, ids: dict[Side, Path], on: On, file: Path) -> None:
    """Write a hash of each pair's duplicate key for a shard, uint64[n]. ids: the files of cluster ids."""
    save(file, _read_rows(shard, ids).select(_hash_duplicate_key(on)).to_series().to_numpy())


def write_duplicates(shard: Pairs, ids: dict[Side, Path], on: On, wanted: Path, parts: int, file: Path) -> None:
    """Write the wanted rows of a shard; the column `part` is the same for duplicates."""
    start, stop = shard.starts
    chosen = np.load(wanted, mmap_mode="r")[start:stop]
    frame = _read_rows(shard, ids, "pair_id", "source").filter(pl.Series(chosen, dtype=pl.Boolean))
    frame.with_columns(pl.col("source").cast(pl.String), part=_hash_duplicate_key(on) % parts).write_parquet(file)


def _hash_duplicate_key(on: On) -> pl.Expr:
    return pl.struct(duplicate_key("query_id", "positive_id", on)).hash()


def _read_rows(shard: Pairs, ids: dict[Side, Path], *columns: str) -> pl.DataFrame:
    """Read the rows of a shard: `row, task, label, length`, each side's hash and cluster id, and more `columns`."""
    start, stop = shard.starts
    frame = pl.concat(
        [
            pl.read_parquet(*shard.filtered, columns=["task", "label", *columns]),
            pl.read_parquet(*shard.signed, columns=["query_hash", "positive_hash", "length"]),
        ],
        how="horizontal",
    )
    clusters = {
        f"{side}_id": np.load(ids[side], mmap_mode="r")[start:stop] if side in ids else frame[f"{side}_hash"]
        for side in SIDES
    }
    return frame.with_columns(pl.col("task").cast(pl.String), row=pl.int_range(start, stop)).with_columns(
        **{name: pl.Series(values, dtype=pl.Int64) for name, values in clusters.items()}
    )


class Choice(NamedTuple):
    """The decision about duplicates.

    rejected: `row, reason, survivor, similarity`; `survivor` is a pair_id.
    far: `row, pair_id, task, best` of pairs that don't resemble the best pair of their cluster, in order of preference.
    copies: `row, survivor_row` of pairs that are equal to one of these.
    """

    rejected: pl.DataFrame
    far: pl.DataFrame
    copies: pl.DataFrame


def choose_duplicates(
    pairs: Pairs, found: dict[Side, Clusters], frame: pl.DataFrame, settings: DedupSettings, engine: Engine
) -> Choice:
    """Choose the rows that are rejected for an equal pair, or for the best pair of their cluster if they resemble it.

    frame: row, pair_id, task, label, query_hash, positive_hash, query_id, positive_id, in order of preference: the
    first of several equal pairs, and the first of a cluster, is the best.
    """
    first = pl.col("row").first()
    frame = frame.with_columns(survivor_row=first.over(duplicate_key("query_hash", "positive_hash", settings.on)))
    is_first = pl.col("row") == pl.col("survivor_row")
    copies = frame.filter(~is_first).select("row", "survivor_row")
    rest = frame.filter(is_first).with_columns(best=first.over(duplicate_key("query_id", "positive_id", settings.on)))
    others = rest.filter(pl.col("row") != pl.col("best")).select("row", "pair_id", "task", "best")
    compared = others.with_columns(similarity=pl.Series(compare_with_best(pairs, found, others, settings, engine)))
    resembles = pl.col("similarity") >= settings.threshold
    near, far = compared.filter(resembles), compared.filter(~resembles).drop("similarity")
    of_far = pl.col("survivor_row").is_in(far["row"].implode())
    near = near.select("row", "similarity", survivor_row="best")
    return Choice(describe_rejected(copies.filter(~of_far), near, rest), far, copies.filter(of_far))


def describe_rejected(copies: pl.DataFrame, near: pl.DataFrame, pair_ids: pl.DataFrame) -> pl.DataFrame:
    """Return `row, reason, survivor, similarity` of rejected pairs.

    copies: `row, survivor_row`, the latter equal to the former. near: `row, survivor_row, similarity`. pair_ids: `row,
    pair_id`, at least of the survivors.
    """
    # The survivor of a copy may itself be a near-duplicate of another pair.
    final = near.select("similarity", survivor_row="row", final_row="survivor_row")
    exact = copies.join(final, on="survivor_row", how="left", maintain_order="left").select(
        "row",
        reason=pl.lit("exact_duplicate"),
        similarity=pl.col("similarity").fill_null(1.0),
        survivor_row=pl.coalesce("final_row", "survivor_row"),
    )
    near = near.select("row", pl.lit("near_duplicate").alias("reason"), "similarity", "survivor_row")
    names = pair_ids.select(survivor_row="row", survivor="pair_id")
    return pl.concat([exact, near]).join(names, on="survivor_row", maintain_order="left").drop("survivor_row")


def compare_with_best(
    pairs: Pairs, found: dict[Side, Clusters], others: pl.DataFrame, settings: DedupSettings, engine: Engine
) -> NDArray[np.float64]:
    """Compute the similarity of `row` and `best`: the lowest of the sides that decide, 0 if below the threshold."""
    lowest = np.ones(others.height)
    for side, one in found.items():
        equals = np.load(one.equals, mmap_mode="r")
        first, second = equals[others["row"].to_numpy()], equals[others["best"].to_numpy()]
        asked = (first != second) & others.select(decides(side, settings.on)).to_series().to_numpy()
        compared = compute_similarities(
            pairs.work, one.blocks, first[asked], second[asked], settings.threshold, fit_engine(engine, pairs)
        )
        lowest[asked] = np.minimum(lowest[asked], compared)
    return lowest


def decides(side: Side, on: On) -> pl.Expr:
    """Return whether a side decides about a row, given its `task`."""
    return pl.col("task").is_in(WHOLE) | pl.lit(on in ("pair", side))
