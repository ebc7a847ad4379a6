"""Build the `record` of rejects from what was read: its text, or the columns of a row as JSON."""

import base64
import json
from typing import Any

import polars as pl

from ..text.personal_data import mask_texts
from .problems import PLACE, RECORD
from .text_encodings import restore_bytes

BASE64 = "base64:"
"""Begins the `record` of a reject that is not text: its bytes follow."""

_DAYS = (-719_162, 2_932_896)
"""Days from 1970 to the first and the last one that datetime can show."""

_PER_DAY = {"ms": 86_400_000, "us": 86_400_000_000}  # nanoseconds of 64 bits only reach from 1677 to 2262


def show_records(frame: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows of a frame as problems: `rows` has the columns `_row`, `reason` and `detail`."""
    places = rows.select("_row", "reason", "detail").join(
        frame.select("_row", "_file", "_line"), on="_row", how="left", maintain_order="left"
    )
    return places.select(
        file="_file", line="_line", record=show_rows(frame, rows["_row"]), reason="reason", detail="detail"
    )


def show_rows(frame: pl.DataFrame, numbers: pl.Series) -> pl.Series:
    """Return what was read for the rows with these numbers (`_row`): a text for each number, null for a null.

    It is the text in the frame's column RECORD, or without that column, the row's other columns as JSON.
    """
    wanted = numbers.cast(pl.UInt32).alias("_row").to_frame()
    chosen = wanted.unique().join(frame, on="_row", how="inner")
    columns = [name for name in frame.columns if name not in PLACE]
    record = chosen[RECORD] if RECORD in frame.columns else show_columns(chosen.select(columns))
    shown = chosen.select("_row").with_columns(record=record)
    return wanted.join(shown, on="_row", how="left", maintain_order="left")["record"]


def show_columns(rows: pl.DataFrame) -> pl.Series:
    """Return the columns of each row as JSON; bytes are shown in base64."""
    readable = rows.with_columns(
        column.cast(_store_times(column.dtype)) for column in rows if not _are_times_readable(column)
    )
    if readable.is_empty() or not any(_holds_bytes(kind) for kind in readable.dtypes):
        return readable.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    shown = [json.dumps(row, ensure_ascii=False, default=_show_value) for row in readable.iter_rows(named=True)]
    return pl.Series(shown, dtype=pl.String)


def _are_times_readable(values: pl.Series) -> bool:
    """Whether all times, also in lists and structs, are in the years 1 to 9999: Polars panics on some others."""
    kind = values.dtype
    if isinstance(kind, pl.Struct):
        return all(_are_times_readable(values.struct.field(field.name)) for field in kind.fields)
    if isinstance(kind, pl.List | pl.Array):
        return _are_times_readable(values.explode())
    if isinstance(kind, pl.Datetime) and kind.time_unit in _PER_DAY:
        unit = _PER_DAY[kind.time_unit]
    elif isinstance(kind, pl.Date):
        unit = 1
    else:
        return True
    return bool(values.to_physical().is_between(_DAYS[0] * unit, (_DAYS[1] + 1) * unit - 1).all())


def _store_times(kind: pl.DataType) -> pl.DataType:
    """Replace times in a type with the integers that are stored for them."""
    if isinstance(kind, pl.Struct):
        return pl.Struct([pl.Field(field.name, _store_times(field.dtype)) for field in kind.fields])  # type: ignore[arg-type]
    if isinstance(kind, pl.List):
        return pl.List(_store_times(kind.inner))  # type: ignore[arg-type]
    if isinstance(kind, pl.Array):
        return pl.Array(_store_times(kind.inner), kind.size)  # type: ignore[arg-type]
    return pl.Int32() if isinstance(kind, pl.Date) else pl.Int64() if isinstance(kind, pl.Datetime) else kind


def _holds_bytes(kind: pl.DataType) -> bool:
    """Whether a type has bytes in it, for which Polars can't write JSON."""
    if isinstance(kind, pl.Struct):
        return any(_holds_bytes(field.dtype) for field in kind.fields)  # type: ignore[arg-type]
    if isinstance(kind, pl.List | pl.Array):
        return _holds_bytes(kind.inner)  # type: ignore[arg-type]
    return kind == pl.Binary


def _show_value(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def show_bytes(records: pl.Expr) -> pl.Expr:
    """Show records with undecodable bytes, as they were read, in base64."""
    return records.map_elements(lambda text: _encode(restore_bytes(text)), pl.String)


def _encode(record: bytes) -> str:
    return BASE64 + base64.b64encode(record).decode()


def mask_problems(problems: pl.DataFrame) -> pl.DataFrame:
    """Mask the personal data in the records and details of problems, as the filter does in pairs."""
    masked = problems.with_columns(mask_texts(problems[name])[0].alias(name) for name in ("record", "detail"))
    is_bytes = pl.col("record").str.starts_with(BASE64)
    return masked.with_columns(
        record=pl.when(is_bytes)
        .then(pl.when(is_bytes).then("record").map_elements(_mask_bytes, pl.String))
        .otherwise("record")
    )


def _mask_bytes(record: str) -> str:
    """Mask the personal data in a record in base64: whatever encoding it has, numbers and addresses are ASCII."""
    text = base64.b64decode(record.removeprefix(BASE64)).decode("latin-1")
    masked, _ = mask_texts(pl.Series([text]))
    return _encode(b"".join(one.encode("latin-1" if one < "\u0100" else "utf-8") for one in masked[0]))
