"""Turn retrieval pairs into records: one for each query, with the positives and negatives of all its pairs.

The pairs of a query can be anywhere in the shards of a source, which may be larger than memory. So they are divided
into files by a hash of their query, of which one at a time is in memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

PART_BYTES = 128 << 20
"""Chosen here: the bytes of pairs that are in memory together. Making records of them takes some five times as much."""
MOST_PARTS = 500
"""Chosen here: each part is an open file, and Linux allows a process 1,024 by default."""
_BLOCK = 1 << 32
"""More than the rows of a frame. The place of a pair is the number of its frame times this, plus that of its row."""


def count_parts(shards: Iterable[Path]) -> int:
    """Return into how many parts of PART_BYTES, on average, the pairs of shards are to be divided."""
    files = [pq.read_metadata(shard) for shard in shards]
    size: int = sum(file.row_group(group).total_byte_size for file in files for group in range(file.num_row_groups))
    return min(1 + size // PART_BYTES, MOST_PARTS)


def build_query_records(frames: Iterable[pl.DataFrame], parts: int, work: Path) -> Iterator[pl.DataFrame]:
    """Yield the records of the pairs in `frames`, in the order in which their queries first appear.

    Each yielded frame has the records of the queries that first appear in one of `frames`. The pairs are divided into
    `parts` files in the folder `work`, which the caller creates and deletes.
    """
    count = _divide(frames, parts, work)
    with ExitStack() as stack:
        files = [
            pa.ipc.open_file(stack.enter_context(pa.OSFile(str(_group(pairs, count)))))
            for pairs in sorted(work.glob("pairs-*"))
        ]
        for number in range(count):
            yield pl.concat(pl.DataFrame(file.get_batch(number)) for file in files).sort("place").drop("place")


def _divide(frames: Iterable[pl.DataFrame], parts: int, work: Path) -> int:
    """Write the pairs of a query, with their places, to one of the files `pairs-*`; return the number of frames."""
    count = 0
    with ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for count, frame in enumerate(frames, start=1):
            placed = frame.with_columns(
                place=(count - 1) * _BLOCK + pl.int_range(pl.len(), dtype=pl.Int64), part=pl.col("query").hash() % parts
            )
            for (part,), rows in placed.partition_by("part", as_dict=True, include_key=False).items():
                table = rows.to_arrow()
                if part not in writers:
                    file = stack.enter_context(pa.OSFile(str(work / f"pairs-{part:05d}"), "wb"))
                    writers[part] = stack.enter_context(pa.ipc.new_stream(file, table.schema))
                writers[part].write_table(table)
    return count


def _group(pairs: Path, count: int) -> Path:
    """Replace a file of pairs with one of their records, which has a batch for each of the `count` frames."""
    with pa.OSFile(str(pairs)) as file, pa.ipc.open_stream(file) as stream:
        records = group_by_query(pl.DataFrame(stream.read_all()))
    pairs.unlink()
    whole = records.to_arrow().combine_chunks().to_batches()[0]
    ends = np.searchsorted(records["place"], np.arange(count + 1) * _BLOCK).tolist()
    target = pairs.with_name(pairs.name.replace("pairs", "records"))
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, whole.schema) as writer:
        for start, stop in pairwise(ends):
            writer.write_batch(whole.slice(start, stop - start))
    return target


def group_by_query(frame: pl.DataFrame) -> pl.DataFrame:
    """Build one record per query: all its positives, and its distinct provided negatives that are not among them."""
    records = frame.group_by("query", maintain_order=True).agg(
        pl.col("source", "category", "place").first(),
        pair_ids="pair_id",
        positives="positive",
        cluster_ids="cluster_id",
    )
    negatives = (
        frame.select("query", "negatives")
        .explode("negatives")
        .drop_nulls()
        .unique(maintain_order=True)
        .join(frame.select("query", negatives="positive"), on=["query", "negatives"], how="anti", maintain_order="left")
        .group_by("query", maintain_order=True)
        .agg("negatives")
    )
    return records.join(negatives, on="query", how="left", maintain_order="left").with_columns(
        pl.col("negatives").fill_null([])
    )
