"""Read Parquet files, and convert Arrow tables to types that Polars and DuckDB support."""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ...schemas.source_settings import Source
from .files import FileError, FileSplit, open_file
from .problems import Frames, make_distinct, no_problems
from .text_encodings import decode

_BATCH_BYTES = 4 << 20
"""Chosen here: uncompressed bytes of column data to read at a time."""

_MOST_ROWS = 65_536
"""Chosen here: the most rows to read at a time, however small they are."""

_UNKNOWN = (
    pa.types.is_decimal256,
    pa.types.is_interval,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
    pa.types.is_run_end_encoded,
    pa.types.is_union,
)
"""Arrow types that Polars can't read, or panics on."""


def read_parquet(split: FileSplit) -> Iterator[Frames]:
    """Read the row groups of a split; `_line` counts the file's rows from 1.

    Raises:
        FileError: the file can't be read.
    """
    line = split.first_line
    try:
        with open_file(split.path) as opened, pq.ParquetFile(opened) as file:
            groups = range(split.start, file.num_row_groups if split.end is None else split.end)
            for batch in file.iter_batches(batch_size=_count_batch_rows(file), row_groups=groups):
                table = pa.Table.from_batches([batch])
                table = table.rename_columns(make_distinct(table.column_names))
                frame = arrow_to_frame(_mark_broken(table)).with_columns(
                    _file=pl.lit(split.name), _line=pl.int_range(line, line + table.num_rows, dtype=pl.Int64)
                )
                line += table.num_rows
                yield frame, no_problems()
    except (OSError, ValueError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error


def split_row_groups(path: str, _: Source, size: int) -> list[FileSplit]:
    """Split a file between row groups into parts of at least `size` compressed bytes, counting rows.

    Raises:
        FileError: its metadata can't be read.
    """
    try:
        with open_file(path) as file:
            metadata = pq.read_metadata(file)
    except pa.ArrowException as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error
    splits: list[FileSplit] = []
    start, taken, line, first_line = 0, 0, 1, 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        taken += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        line += group.num_rows
        if taken >= size or number + 1 == metadata.num_row_groups:
            splits.append(FileSplit(path, start, number + 1, first_line))
            start, taken, first_line = number + 1, 0, line
    return splits


def _mark_broken(table: pa.Table) -> pa.Table:
    """Mark invalid UTF-8 with BROKEN, as `decode` does: neither Arrow nor Polars checks what the writer wrote.

    Raises:
        pa.ArrowInvalid: the table has another fault.
    """
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        for place, field in enumerate(table.schema):
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                values = table.column(place).cast(pa.large_binary()).to_pylist()
                texts = [value if value is None else decode(value, "utf-8", 0).decode() for value in values]
                table = table.set_column(place, field.name, pa.array(texts, pa.large_string()))
        table.validate(full=True)
    return table


def _count_batch_rows(file: pq.ParquetFile) -> int:
    """Choose how many rows to read at a time, from the sizes in the file's metadata."""
    metadata = file.metadata
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return int(max(1, min(_MOST_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, size))))


def arrow_to_frame(table: pa.Table) -> pl.DataFrame:
    """Convert a table to Polars; columns of types that Polars does not support are dropped.

    Raises:
        FileError: Polars can't convert the remaining columns.
    """
    known = [place for place, field in enumerate(table.schema) if _is_known(field.type)]
    table = table.select(known)
    try:
        table = table.cast(pa.schema([field.with_type(_widen_half_floats(field.type)) for field in table.schema]))
        frame = pl.from_arrow(table)
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error
    assert isinstance(frame, pl.DataFrame)
    return frame


def _is_known(kind: pa.DataType) -> bool:
    return not any(is_unknown(kind) for is_unknown in _UNKNOWN) and all(
        _is_known(kind.field(place).type) for place in range(kind.num_fields)
    )


def _widen_half_floats(kind: pa.DataType) -> pa.DataType:
    """Replace half precision in a type with single precision: DuckDB can't read half floats from Arrow."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_widen_half_floats(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _widen_half_floats(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inside = kind.value_field.with_type(_widen_half_floats(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(inside, kind.list_size)
        return pa.list_(inside) if pa.types.is_list(kind) else pa.large_list(inside)
    return kind
