"""Find which pairs are duplicates of each other, and choose the survivors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..engine.calls import Engine
from .clusters import Clusters, Pairs, call_all, compute_similarities, fit_engine, save
from .lsh import find_buckets, pack
from .signatures import SIDES, Side

On = Literal["pair", "query", "positive"]

WHOLE = ("sts", "classification", "passage")
"""Tasks whose pairs are compared on both sides whatever `on` says: one side of a labelled pair says too little, and the
queries of all passages are empty."""

_JUDGED = 500_000
"""Chosen here: duplicates in memory while survivors are chosen, at a few hundred bytes each."""


def duplicate_key(query: str, positive: str, on: On) -> list[pl.Expr]:
    """List what duplicates have in common: the task, the sides that decide, and the label of sentence pairs."""
    task = pl.col("task")
    is_whole = task.is_in(WHOLE)
    return [
        task,
        pl.when(is_whole | pl.lit(on != "positive")).then(query).alias("same_query"),
        pl.when(is_whole | pl.lit(on != "query")).then(positive).alias("same_positive"),
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
    hashing = [(str(file), (pairs, found, number, on, file)) for number, file in enumerate(files)]
    call_all("duplicates", write_duplicate_keys, hashing, engine)
    keys = np.concatenate([np.load(file) for file in files])
    keys[left_out.to_numpy()] = 0
    rows, bits = keys.nonzero()[0], pairs.rows.bit_length()
    has_duplicate = np.zeros(pairs.rows, np.bool_)
    for edge in find_buckets(pack(keys[rows], rows, bits), bits):
        has_duplicate[edge] = True
    parts = 1 + int(has_duplicate.sum()) // _JUDGED
    del keys, rows
    wanted = save(pairs.work / "duplicates.npy", has_duplicate)
    files = [pairs.work / f"duplicates-{number}.parquet" for number in shards]
    choosing = [(str(file), (pairs, found, number, on, wanted, parts, file)) for number, file in enumerate(files)]
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


def write_duplicate_keys(pairs: Pairs, found: dict[Side, Clusters], number: int, on: On, file: Path) -> None:
    """Write a hash of each pair's duplicate key for a shard, uint64[n], never 0."""
    save(file, _read_rows(pairs, found, number).select(_hash_duplicate_key(on)).to_series().to_numpy())


def write_duplicates(
    pairs: Pairs, found: dict[Side, Clusters], number: int, on: On, wanted: Path, parts: int, file: Path
) -> None:
    """Write the wanted rows of a shard; the column `part` is the same for duplicates."""
    chosen = np.load(wanted, mmap_mode="r")[pairs.starts[number] : pairs.starts[number + 1]]
    frame = _read_rows(pairs, found, number, "pair_id", "source").filter(pl.Series(chosen, dtype=pl.Boolean))
    frame.with_columns(pl.col("source").cast(pl.String), part=_hash_duplicate_key(on) % parts).write_parquet(file)


def _hash_duplicate_key(on: On) -> pl.Expr:
    return pl.struct(duplicate_key("query_id", "positive_id", on)).hash().replace(0, 1)


def _read_rows(pairs: Pairs, found: dict[Side, Clusters], number: int, *columns: str) -> pl.DataFrame:
    """Read the rows of a shard: `row, task, label, length`, each side's hash and cluster id, and more `columns`."""
    start, stop = pairs.starts[number : number + 2]
    frame = pl.concat(
        [
            pl.read_parquet(pairs.filtered[number], columns=["task", "label", *columns]),
            pl.read_parquet(pairs.signed[number], columns=["query_hash", "positive_hash", "length"]),
        ],
        how="horizontal",
    )
    ids = {
        f"{side}_id": np.load(found[side].ids, mmap_mode="r")[start:stop] if side in found else frame[f"{side}_hash"]
        for side in SIDES
    }
    return frame.with_columns(pl.col("task").cast(pl.String), row=pl.int_range(start, stop)).with_columns(
        **{name: pl.Series(values, dtype=pl.Int64) for name, values in ids.items()}
    )


def choose_duplicates(frame: pl.DataFrame, on: On) -> pl.DataFrame:
    """Choose the rows to reject: `row, task, reason, survivor, survivor_row`; `survivor` is a pair_id.

    frame: row, pair_id, task, label, query_hash, positive_hash, query_id, positive_id, in order of preference: the
    first of several duplicates survives.
    """
    duplicates = []
    for reason, query, positive in (
        ("exact_duplicate", "query_hash", "positive_hash"),
        ("near_duplicate", "query_id", "positive_id"),
    ):
        key = duplicate_key(query, positive, on)
        judged = frame.with_columns(
            survivor=pl.col("pair_id").first().over(key),
            survivor_row=pl.col("row").first().over(key),
            reason=pl.lit(reason),
        )
        is_duplicate = pl.col("row") != pl.col("survivor_row")
        duplicates.append(judged.filter(is_duplicate).select("row", "task", "reason", "survivor", "survivor_row"))
        frame = frame.filter(judged.select(~is_duplicate).to_series())
    exact, near = duplicates
    # The survivor of an exact duplicate may itself be a near-duplicate of another pair.
    final = near.select(survivor_row="row", final="survivor", final_row="survivor_row")
    exact = exact.join(final, on="survivor_row", how="left", maintain_order="left").select(
        "row",
        "task",
        "reason",
        survivor=pl.coalesce("final", "survivor"),
        survivor_row=pl.coalesce("final_row", "survivor_row"),
    )
    return pl.concat([exact, near])


def survivor_similarity(
    pairs: Pairs, found: dict[Side, Clusters], duplicates: pl.DataFrame, on: On, engine: Engine
) -> NDArray[np.float64]:
    """Compute the Jaccard similarity of each duplicate and its survivor: the lowest of the sides that decide."""
    lowest = np.ones(duplicates.height)
    is_whole = duplicates["task"].is_in(WHOLE).to_numpy()
    for side, one in found.items():
        equals = np.load(one.equals, mmap_mode="r")
        first, second = equals[duplicates["row"].to_numpy()], equals[duplicates["survivor_row"].to_numpy()]
        asked = (first != second) & (is_whole | (on in ("pair", side)))
        compared = compute_similarities(
            pairs.work, one.blocks, first[asked], second[asked], 0.0, fit_engine(engine, pairs)
        )
        lowest[asked] = np.minimum(lowest[asked], compared)
    return lowest
