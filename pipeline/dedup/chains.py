"""Choose further survivors in clusters whose pairs do not all resemble the best one.

A cluster is joined transitively: A resembles B and B resembles C, but C may have little in common with A. The rows that
don't resemble their cluster's best one are processed in order of preference: a row that resembles an earlier survivor
is rejected for it, any other survives. Only rows that share a bucket are compared, so that the time is linear in the
rows of a cluster, however many survivors it has.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .blocks import gather_sets
from .clusters import HEADS, Clusters, Pairs
from .lsh import Rows
from .minhash import Compared, choose_representatives
from .signatures import SIDES, Side, band_columns, read_column
from .survivors import On, decides


def find_further_survivors(
    pairs: Pairs, found: dict[Side, Clusters], far: pl.DataFrame, on: On, bands: int, threshold: float
) -> pl.DataFrame:
    """Find the rows that resemble an earlier survivor: `row, survivor_row, similarity`.

    far: `row, task, best` of rows that don't resemble `best`, the best row of their cluster, in order of preference.
    """
    if far.is_empty():
        return pl.DataFrame(schema={"row": pl.Int64, "survivor_row": pl.Int64, "similarity": pl.Float64})
    rows = far["row"].to_numpy()
    texts = far.with_columns(
        pl.Series(side, np.load(found[side].equals, mmap_mode="r")[rows] if side in found else rows) for side in SIDES
    ).select("best", *(pl.when(_tells_apart(side, on)).then(side).otherwise(-1).alias(side) for side in SIDES))
    chosen, similarities = choose_representatives(
        _number_buckets(pairs, rows, texts, bands),
        (_gather(found.get("query"), texts["query"]), _gather(found.get("positive"), texts["positive"])),
        threshold,
        HEADS,
    )
    is_near = chosen >= 0
    return pl.DataFrame(
        {"row": rows[is_near], "survivor_row": rows[chosen[is_near]], "similarity": similarities[is_near]}
    )


def _tells_apart(side: Side, on: On) -> pl.Expr:
    """Return whether a side decides, and the rows of the cluster differ in its text."""
    return decides(side, on) & (pl.col(side).n_unique().over("best") > 1)


def _number_buckets(pairs: Pairs, rows: Rows, texts: pl.DataFrame, bands: int) -> NDArray[np.int64]:
    """Number the buckets of each row, int64[n, bands]: rows of a cluster that share a band hash share a bucket.

    If both sides tell the rows of a cluster apart, the bands are those of the side with more texts.
    """
    more_queries = pl.col("query").n_unique().over("best") > pl.col("positive").n_unique().over("best")
    by_query = texts.select(more_queries).to_series().to_numpy()
    chosen: dict[Side, NDArray[np.bool_]] = {"query": by_query, "positive": ~by_query}
    hashes = np.empty((len(rows), bands), np.uint64)
    for shard, start, stop in zip(pairs.signed, pairs.starts, pairs.starts[1:], strict=False):
        for side, of_side in chosen.items():
            here = np.flatnonzero(of_side & (rows >= start) & (rows < stop))
            for band, name in enumerate(band_columns(side, bands) if len(here) else ()):
                hashes[here, band] = read_column(shard, name)[rows[here] - start]
    # Fibonacci hashing's multiplier: clusters stay apart, as far as 64 bits can keep them.
    hashes += texts["best"].to_numpy().astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    return np.unique(hashes, return_inverse=True)[1].reshape(hashes.shape)


def _gather(clusters: Clusters | None, texts: pl.Series) -> Compared:
    first_rows = texts.to_numpy()
    wanted = np.unique(first_rows[first_rows >= 0])
    letters, sets = gather_sets(clusters.blocks if clusters else (), wanted)
    return Compared(sets, letters, np.where(first_rows < 0, 0, np.searchsorted(wanted, first_rows)))
