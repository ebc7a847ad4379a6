"""Write shards with their rejects: Parquet files with row groups of bounded size, committed atomically."""

import hashlib
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...schemas.footer import FOOTER_KEY, Footer
from .atomic import commit
from .folder import rejects

ROW_GROUP = 65_536
"""Chosen here: the most rows in a row group, since stages hold a whole group in memory."""
GROUP_BYTES = 32 << 20
"""Chosen here: the bytes of text at which a row group is full, however few its rows, for the same reason."""


class ShardWriter:
    """Writes a shard and its rejects; both appear if the `with` block succeeds, neither if it raises.

    There are no rejects if their schema is None. Rejects are committed first, so a shard that exists is complete.
    Raises ValueError and commits nothing unless rows in = rows out + rejected.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        rejected: pa.Schema | None,
        *,
        stage: str,
        version: int,
        fingerprint: str,
        compression: str = "zstd",
    ) -> None:
        self.stage, self.version, self.fingerprint = stage, version, fingerprint
        self.started = time.monotonic()
        self.rows_in = 0
        self.rows_out = 0
        self.reasons: Counter[str] = Counter()
        self.notes: dict[str, Any] = {}
        self._out = _ParquetFile(path, schema, compression)
        try:
            self._rejected = None if rejected is None else _ParquetFile(rejects(path), rejected)
        except OSError:  # the disk is full
            self._out.discard()
            raise

    def received(self, rows: int) -> None:
        """Count input rows."""
        self.rows_in += rows

    def keep(self, table: pa.Table, rows: int | None = None) -> None:
        """Write output rows; `rows` is the number of input rows that they were made from, if it differs."""
        self._out.write(table)
        self.rows_out += table.num_rows if rows is None else rows

    def reject(self, table: pa.Table) -> None:
        """Write rejected rows, which have the columns `reason` and `detail`."""
        assert self._rejected is not None, f"{self.stage} has no rejects"
        self._rejected.write(table)
        counts = table.column("reason").value_counts().to_pylist()
        self.reasons.update({count["values"]: count["counts"] for count in counts})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                footer = Footer(
                    stage=self.stage,
                    version=self.version,
                    fingerprint=self.fingerprint,
                    content="",
                    rows_in=self.rows_in,
                    rows_out=self.rows_out,
                    rejected=dict(sorted(self.reasons.items())),
                    seconds=round(time.monotonic() - self.started, 3),
                    notes=self.notes,
                )
                footer.check()
                if self._rejected:
                    self._rejected.close(None)
                self._out.close(footer)
                # So that an old shard never lies next to the rejects of the new one.
                self._out.path.unlink(missing_ok=True)
                if self._rejected:
                    self._rejected.commit()
                self._out.commit()
        finally:
            if self._rejected:
                self._rejected.discard()
            self._out.discard()


class _HashingFile:
    """A file that hashes what is written to it, which gives the content id of the shard."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb")
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()

    @property
    def closed(self) -> bool:
        return self.file.closed

    def close(self) -> None:
        """Do nothing: the Parquet writer closes its sink, but _ParquetFile still has to fsync it."""


class _ParquetFile:
    """A Parquet file of full row groups under a temporary name; `commit` renames it to its final name."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str = "zstd") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.sink = _HashingFile(self.temporary)
        self.writer = pq.ParquetWriter(self.sink, schema, compression=compression, use_dictionary=compression != "none")
        self.pending: list[pa.Table] = []
        self.sizes = np.zeros(0, np.int64)  # bytes of each pending row

    def write(self, table: pa.Table) -> None:
        table = table.select(self.schema.names).cast(self.schema)
        self.pending.append(table)
        self.sizes = np.concatenate([self.sizes, _row_bytes(table)])
        while rows := self._full_group():
            self._write_group(rows)

    def _full_group(self) -> int:
        """Return how many pending rows make a full row group, or 0 if there are not enough."""
        rows = min(ROW_GROUP, int(np.searchsorted(np.cumsum(self.sizes), GROUP_BYTES)) + 1)
        return rows if rows <= len(self.sizes) else 0

    def _write_group(self, rows: int) -> None:
        whole = pa.concat_tables(self.pending)
        # One chunk and one dictionary per group, so that equal rows give equal bytes, however they were batched.
        group = _with_fresh_dictionaries(whole.slice(0, rows).combine_chunks())
        self.writer.write_table(group, row_group_size=ROW_GROUP)
        self.pending, self.sizes = [whole.slice(rows)], self.sizes[rows:]

    def close(self, footer: Footer | None) -> None:
        """Write pending rows and the footer (with its content hash filled in), and fsync the file."""
        if len(self.sizes):
            self._write_group(len(self.sizes))
        if footer is not None:
            footer = footer.model_copy(update={"content": self.sink.hash.hexdigest()})
            self.writer.add_key_value_metadata({FOOTER_KEY: footer.model_dump_json().encode()})
        self.writer.close()
        self.sink.file.flush()
        os.fsync(self.sink.file.fileno())
        self.sink.file.close()

    def commit(self) -> None:
        commit(self.temporary, self.path)

    def discard(self) -> None:
        """Delete the temporary file, even if the disk is full; does nothing after `commit`."""
        self.temporary.unlink(missing_ok=True)
        # Always close the file: a deleted file occupies the disk for as long as it is open.
        with suppress(OSError):
            if self.writer.is_open:
                self.writer.close()
        with suppress(OSError):
            self.sink.file.close()


def _row_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Count the bytes of text in each row: int64 [rows].

    By offsets, since the first value that pyarrow makes loads pandas where it is installed: a quarter of a second.
    """
    sizes = np.zeros(table.num_rows, np.int64)
    for column in table.itercolumns():
        is_list = pa.types.is_list(column.type)
        if not pa.types.is_string(column.type.value_type if is_list else column.type):
            continue
        ends = [_offsets(array.values)[_offsets(array)] if is_list else _offsets(array) for array in column.chunks]
        sizes += np.concatenate([sizes[:0], *map(np.diff, ends)])
    return sizes


def _offsets(array: pa.Array) -> npt.NDArray[np.int64]:
    """Return where each text or list of an array begins in what it is made of, and where the last one ends."""
    if not len(array):  # it may have no buffers
        return np.zeros(1, np.int64)
    ends = np.frombuffer(array.buffers()[1], np.int32)
    return ends[array.offset : array.offset + len(array) + 1].astype(np.int64)


def _with_fresh_dictionaries(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(index).cast(field.type.value_type).combine_chunks().dictionary_encode()
            table = table.set_column(index, field, column.cast(field.type))
    return table
