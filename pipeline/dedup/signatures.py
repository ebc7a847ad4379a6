"""What dedup keeps of each pair, a shard for a shard: hashes of its texts, and the band hashes of their signatures.

They are made once for a shard and stay beside dedup's own, so that a corpus to which sources are added has only the new
ones signed. A band is a column, so that its buckets are found by reading that column alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..corpus.folder import fingerprint, read_batches, read_footer
from ..corpus.shard_writer import ShardWriter
from ..engine.stage import Task
from ..text.match_key import match_keys
from .lsh import NO_BUCKET, band_hashes
from .minhash import signatures, text_hashes

Side = Literal["query", "positive"]
SIDES: tuple[Side, Side] = ("query", "positive")

FOLDER = "dedup/signatures"
VERSION = 1

_ROWS_AT_ONCE = 8192
"""Chosen here: texts signed together, so that their signatures (4 MB) stay in the processor's cache."""


def band_columns(side: Side, bands: int) -> list[str]:
    """The names of a side's bands."""
    return [f"{side}_band_{band:02}" for band in range(bands)]


def tasks(shards: Sequence[Path], sides: Sequence[Side], bands: int, rows: int) -> list[Task]:
    """What makes the signatures of filtered shards; sides that are not in `sides` get no bands."""
    return [
        Task(
            (shard, tuple(sides), bands, rows),
            fingerprint("signatures", VERSION, shard.name, read_footer(shard).content, sides, bands, rows),
        )
        for shard in shards
    ]


def sign_shard(filtered: Path, sides: Sequence[Side], bands: int, rows: int, fingerprint: str, shard: Path) -> None:
    """One row a pair: `query_hash`, `positive_hash` (int64), `length` (characters of the positive), and the bands.

    A class name is nobody's text, and one class of two sources is two classes: it is hashed with its source and has no
    bands.
    """
    columns = [
        pa.field("query_hash", pa.int64()),
        pa.field("positive_hash", pa.int64()),
        pa.field("length", pa.int32()),
    ]
    columns += [pa.field(name, pa.uint64()) for side in sides for name in band_columns(side, bands)]
    schema = pa.schema(columns)
    with ShardWriter(
        shard, schema, None, stage="signatures", version=VERSION, fingerprint=fingerprint, compression="none"
    ) as writer:
        for table in read_batches(filtered, ["source", "task", "query", "positive"]):
            made: dict[str, Any] = {"length": pc.utf8_length(table.column("positive"))}
            for side in SIDES:
                texts = compared_by(table, side)
                made[f"{side}_hash"] = text_hashes(texts)
                if side in sides:
                    hashes = banded(texts, bands, rows)
                    if side == "positive":
                        hashes[:, is_class(table)] = NO_BUCKET
                    made |= dict(zip(band_columns(side, bands), hashes, strict=True))
            writer.received(table.num_rows)
            writer.keep(pa.table([made[name] for name in schema.names], schema=schema))


def compared_by(table: pa.Table, side: Side) -> pa.LargeStringArray:
    """What the texts of a side of pairs are compared by (see `keys`); a class name goes with its source."""
    texts = match_keys(table.column(side))
    if side == "query" or not (classes := is_class(table)).any():
        return texts
    sources, names = table.column("source").cast(pa.string()), table.column(side)
    named = pc.binary_join_element_wise(sources, names, "\n").combine_chunks().cast(pa.large_string())
    return pc.if_else(pa.array(classes), named, texts)


def is_class(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows have a class name for their positive, bool[n]."""
    return pc.equal(table.column("task").cast(pa.string()), "classification").to_numpy()  # type: ignore[no-any-return]


def banded(texts: pa.LargeStringArray, bands: int, rows: int) -> NDArray[np.uint64]:
    """The band hashes of a column, uint64[bands, n]: a band's lie side by side."""
    result = np.empty((bands, len(texts)), np.uint64)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        window = slice(start, start + _ROWS_AT_ONCE)
        result[:, window] = band_hashes(signatures(texts[window]), bands, rows).T
    return result


def read_column(shard: Path, name: str) -> NDArray[Any]:
    """One column of a shard's signatures."""
    return pq.read_table(shard, columns=[name]).column(name).to_numpy()  # type: ignore[no-any-return]
