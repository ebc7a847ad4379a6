"""Rank the positive of each pair among passages sampled from the corpus: a wrong pair's is no better than theirs.

The filter by rank is that of E5 (arXiv 2212.03533 §3), which keeps a pair if its positive is among the first two of a
million passages; nomic-embed (arXiv 2402.01613) and KaLM (arXiv 2501.01028) do the same with 2 and 50.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from ..corpus.atomic import replacing
from ..corpus.sql import scan_shards

TOGETHER = 1 << 22
"""Chosen here: scores in memory at a time, 16 MB."""
TIE = 1e-6
"""Allowed difference: equal texts cut to the same tokens score the same but for the last bits of a product."""

Floats = npt.NDArray[np.float32]


class Sample(NamedTuple):
    """The sampled passages: `place, text, cluster_id`, and their vectors [n, D]."""

    passages: pl.DataFrame
    vectors: Floats


def draw_sample(shards: Sequence[Path], among: int) -> pl.DataFrame:
    """Draw at most `among` pairs with positives of different clusters: those with the smallest ids, which are hashes.

    So the sample depends on the pairs alone, not on their order or shards. Returns `pair_id, cluster_id`.
    """
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        drawn: pl.DataFrame = connection.sql(
            f"SELECT min(pair_id) AS pair_id, cluster_id FROM {scan_shards(shards)} WHERE task = 'pretrain' "
            f"GROUP BY cluster_id ORDER BY pair_id LIMIT {among}"
        ).pl()
        return drawn


def read_passages(shards: Sequence[Path], drawn: pl.DataFrame) -> pl.DataFrame:
    """Read the positives of the pairs that were drawn, in their order: columns `text, source`."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.register("drawn", drawn.to_arrow())
        texts: pl.DataFrame = connection.sql(
            "SELECT any_value(positive) AS text, min(CAST(source AS VARCHAR)) AS source "
            f"FROM {scan_shards(shards)} SEMI JOIN drawn USING (pair_id) GROUP BY pair_id ORDER BY pair_id"
        ).pl()
        return texts


def write_sample(file: Path, drawn: pl.DataFrame, texts: pl.Series, vectors: Floats) -> None:
    """Write a sample with its vectors for the workers, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        drawn.select("cluster_id", text=texts, vector=pl.Series(vectors)).write_parquet(temporary)


@lru_cache(maxsize=1)
def read_sample(file: Path) -> Sample:
    """Read a sample; once per process."""
    found = pl.read_parquet(file)
    return Sample(found.drop("vector").with_row_index("place"), found["vector"].to_numpy())


def rank_positives(pairs: pl.DataFrame, queries: Floats, cosines: Floats, sample: Sample) -> pl.DataFrame:
    """Return, for each pair, `rank` (of the positive, from 1) and `mismatched` (the cosine of query and a passage).

    `pairs` has `pair_id, query, cluster_id`; `queries` are the vectors of its queries [n, D], `cosines` the scores of
    its pairs [n]. Passages of the positive's cluster, and those with the query's own text, don't count. The pair's id
    decides which of the others `mismatched` is taken from; without others it is null. `rank` is null if the cosine is
    NaN.
    """
    numbered = pairs.select("query", "cluster_id", row=pl.int_range(pl.len()))
    left_out = pl.concat(
        numbered.join(sample.passages, left_on=left, right_on=right).select("row", "place")
        for left, right in (("cluster_id", "cluster_id"), ("query", "text"))
    ).sort("row")
    row, place = (left_out[name].to_numpy() for name in ("row", "place"))
    drawn = pairs["pair_id"].str.head(8).str.to_integer(base=16).to_numpy() % max(1, len(sample.vectors))
    ranks, mismatched = np.empty(len(queries), np.int32), np.empty(len(queries), np.float32)
    at_once = max(1, TOGETHER // max(1, len(sample.vectors)))
    for start in range(0, len(queries), at_once):
        block = slice(start, start + at_once)
        scores = queries[block] @ sample.vectors.T
        here = slice(*np.searchsorted(row, [start, start + at_once]))
        scores[row[here] - start, place[here]] = -np.inf
        ranks[block] = 1 + (scores > cosines[block, None] + TIE).sum(axis=1)
        other = np.stack([drawn[block], (drawn[block] + 1) % scores.shape[1]])
        first, second = np.take_along_axis(scores, other.T, axis=1).T
        mismatched[block] = np.where(np.isneginf(first), second, first)
    return pl.DataFrame(
        {
            "mismatched": pl.Series(mismatched).set(~pl.Series(np.isfinite(mismatched)), None),
            "rank": pl.Series(ranks).set(~pl.Series(np.isfinite(cosines)), None),
        }
    )
