"""Signatures of pairs, one shard per filtered shard: hashes of the texts, and hashes of their MinHash bands.

They are computed once per shard and kept in the dedup folder, so that a later run signs only new sources. Each band is
a column, so that finding its buckets reads only that column.
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
from .lsh import NO_BUCKET, hash_bands
from .minhash import signatures, text_hashes

Side = Literal["query", "positive"]
SIDES: tuple[Side, Side] = ("query", "positive")

FOLDER = "dedup/signatures"
VERSION = 3

_ROWS_AT_ONCE = 8192
"""Chosen here: texts signed at a time, so that their signatures (4 MB) stay in the processor's cache."""


def band_columns(side: Side, bands: int) -> list[str]:
    """List the names of a side's band columns."""
    return [f"{side}_band_{band:02}" for band in range(bands)]


def plan_signing(shards: Sequence[Path], sides: Sequence[Side], bands: int, rows: int) -> list[Task]:
    """Plan the tasks that sign filtered shards; only the sides in `sides` get bands."""
    return [
        Task(
            (shard, tuple(sides), bands, rows),
            fingerprint("signatures", VERSION, shard.name, read_footer(shard).content, sides, bands, rows),
        )
        for shard in shards
    ]


def sign_shard(filtered: Path, sides: Sequence[Side], bands: int, rows: int, fingerprint: str, shard: Path) -> None:
    """Write one row per pair: `query_hash`, `positive_hash` (int64), `length` (the positive's characters), the bands.

    A class name is not a text, and the same name in two sources means two classes: it is hashed together with its
    source and has no bands.
    """
    fields = [
        pa.field("query_hash", pa.int64()),
        pa.field("positive_hash", pa.int64()),
        pa.field("length", pa.int32()),
    ]
    fields += [pa.field(name, pa.uint64()) for side in sides for name in band_columns(side, bands)]
    schema = pa.schema(fields)
    with ShardWriter(
        shard, schema, None, stage="signatures", version=VERSION, fingerprint=fingerprint, compression="none"
    ) as writer:
        for table in read_batches(filtered, ["source", "task", "query", "positive"]):
            columns: dict[str, Any] = {"length": pc.utf8_length(table.column("positive"))}
            for side in SIDES:
                texts = read_compared_texts(table, side)
                columns[f"{side}_hash"] = text_hashes(texts)
                if side in sides:
                    hashes = hash_text_bands(texts, bands, rows)
                    if side == "positive":
                        hashes[:, is_class(table)] = NO_BUCKET
                    columns |= dict(zip(band_columns(side, bands), hashes, strict=True))
            writer.received(table.num_rows)
            writer.keep(pa.table([columns[name] for name in schema.names], schema=schema))


def read_compared_texts(table: pa.Table, side: Side) -> pa.LargeStringArray:
    """Return what a side's texts are compared by: their match keys, or source and class name for classes."""
    texts = match_keys(table.column(side))
    if side == "query" or not (classes := is_class(table)).any():
        return texts
    sources, names = table.column("source").cast(pa.string()), table.column(side)
    named = pc.binary_join_element_wise(sources, names, "\n").combine_chunks().cast(pa.large_string())
    return pc.if_else(pa.array(classes), named, texts)


def is_class(table: pa.Table) -> NDArray[np.bool_]:
    """Return, for each row, whether its positive is a class name, bool[n]."""
    return pc.equal(table.column("task").cast(pa.string()), "classification").to_numpy()  # type: ignore[no-any-return]


def hash_text_bands(texts: pa.LargeStringArray, bands: int, rows: int) -> NDArray[np.uint64]:
    """Compute the band hashes of texts, uint64[bands, n]."""
    result = np.empty((bands, len(texts)), np.uint64)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        window = slice(start, start + _ROWS_AT_ONCE)
        result[:, window] = hash_bands(signatures(texts[window]), bands, rows).T
    return result


def read_column(shard: Path, name: str) -> NDArray[Any]:
    """Read one column of a shard's signatures."""
    return pq.read_table(shard, columns=[name]).column(name).to_numpy()  # type: ignore[no-any-return]
