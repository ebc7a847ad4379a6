"""Which pairs are duplicates of each other, and which of them stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..engine.calls import Engine
from .clusters import Clusters, Pairs, call_all, fitting, save, similarities
from .lsh import buckets, pack
from .signatures import SIDES, Side

On = Literal["pair", "query", "positive"]

_JUDGED = 500_000
"""Chosen here: duplicates whose survivors are chosen together; they take some hundred bytes each."""


def duplicate_key(query: str, positive: str, on: On) -> list[pl.Expr]:
    """What duplicates have in common: their task, the sides that count, of labelled sentence pairs the label."""
    task = pl.col("task")
    labelled = task.is_in(["sts", "classification"])
    return [
        task,
        pl.when(labelled | pl.lit(on != "positive")).then(query).alias("same_query"),
        pl.when(labelled | pl.lit(on != "query")).then(positive).alias("same_positive"),
        pl.when(task == "sts").then("label").alias("same_label"),
    ]


def duplicates(
    pairs: Pairs, found: dict[Side, Clusters], priorities: dict[str, int], left_out: pl.Series, on: On, engine: Engine
) -> Iterator[pl.DataFrame]:
    """Pairs that have a duplicate, the best first, a part of the clusters at a time, with the columns of
    `choose_duplicates`.

    left_out: numbers of rows that are gone already.
    """
    engine = fitting(engine, pairs)
    shards = range(len(pairs.filtered))
    files = [pairs.work / f"agreeing-{number}.npy" for number in shards]
    naming = [(str(file), (pairs, found, number, on, file)) for number, file in enumerate(files)]
    call_all("duplicates", write_duplicate_keys, naming, engine)
    names = np.concatenate([np.load(file) for file in files])
    names[left_out.to_numpy()] = 0
    rows, bits = names.nonzero()[0], pairs.rows.bit_length()
    has_duplicate = np.zeros(pairs.rows, np.bool_)
    for edge in buckets(pack(names[rows], rows, bits), bits):
        has_duplicate[edge] = True
    parts = 1 + int(has_duplicate.sum()) // _JUDGED
    del names, rows
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
    """Write one number for what a pair has in common with its duplicates, uint64[n], never 0: of a shard's pairs."""
    save(file, _rows(pairs, found, number).select(_name(on)).to_series().to_numpy())


def write_duplicates(
    pairs: Pairs, found: dict[Side, Clusters], number: int, on: On, wanted: Path, parts: int, file: Path
) -> None:
    """Write the wanted rows of a shard as they are judged, duplicates with the same `part`."""
    mine = np.load(wanted, mmap_mode="r")[pairs.starts[number] : pairs.starts[number + 1]]
    frame = _rows(pairs, found, number, "pair_id", "source").filter(pl.Series(mine, dtype=pl.Boolean))
    frame.with_columns(pl.col("source").cast(pl.String), part=_name(on) % parts).write_parquet(file)


def _name(on: On) -> pl.Expr:
    return pl.struct(duplicate_key("query_id", "positive_id", on)).hash().replace(0, 1)


def _rows(pairs: Pairs, found: dict[Side, Clusters], number: int, *columns: str) -> pl.DataFrame:
    """Rows of a shard as they are judged: `row, task, label, length`, each side's hash and cluster id, `columns`."""
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
    """Of rows in the order of preference those that go: `row, task, reason, survivor` (a pair_id), `survivor_row`.

    frame: row, pair_id, task, label, query_hash, positive_hash, query_id, positive_id.
    """
    gone = []
    for reason, query, positive in (
        ("exact_duplicate", "query_hash", "positive_hash"),
        ("near_duplicate", "query_id", "positive_id"),
    ):
        same = duplicate_key(query, positive, on)
        judged = frame.with_columns(
            survivor=pl.col("pair_id").first().over(same),
            survivor_row=pl.col("row").first().over(same),
            reason=pl.lit(reason),
        )
        is_gone = pl.col("row") != pl.col("survivor_row")
        gone.append(judged.filter(is_gone).select("row", "task", "reason", "survivor", "survivor_row"))
        frame = frame.filter(judged.select(~is_gone).to_series())
    exact, near = gone
    # The survivor of an exact duplicate may be gone itself, for a pair that it is near to.
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
    pairs: Pairs, found: dict[Side, Clusters], gone: pl.DataFrame, on: On, engine: Engine
) -> NDArray[np.float64]:
    """The Jaccard similarity of each pair and its survivor: of the two sides' the lower, where both must be alike."""
    lowest = np.ones(gone.height)
    labelled = gone["task"].is_in(["sts", "classification"]).to_numpy()
    for side, one in found.items():
        equals = np.load(one.equals, mmap_mode="r")
        first, second = equals[gone["row"].to_numpy()], equals[gone["survivor_row"].to_numpy()]
        asked = (first != second) & (labelled | (on in ("pair", side)))
        compared = similarities(pairs.work, one.blocks, first[asked], second[asked], 0.0, fitting(engine, pairs))
        lowest[asked] = np.minimum(lowest[asked], compared)
    return lowest
