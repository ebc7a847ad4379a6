"""Find records in blocks of text: lines, elements of a JSON array, records of a table with quotes.

Frames of records have the columns of LINE: the record's file, its first line and its text. Damage costs the record it
is in and, where the next one can't be found without it, records after it, but never records before it.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from .files import FileError
from .text_encodings import Block

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

LINE = {"_file": pl.String, "_line": pl.Int64, "text": pl.String}
LONGEST_RECORD = 16 << 20
"""Chosen here: characters. A longer record comes from a broken file or is too long for any model, and is rejected."""

_LONGEST = 4 * LONGEST_RECORD  # the most bytes that LONGEST_RECORD characters can take
_AT_ONCE = 1 << 16  # records that a kernel finds per call
_RESUMED = 100  # unterminated elements that are skipped; each costs a pass over the rest of the data


def lines(blocks: Iterable[Block], file: str) -> Iterator[pl.DataFrame]:
    """Yield all lines, blank ones too. A much too long line is cut, but stays longer than LONGEST_RECORD."""
    for block in whole_lines(blocks):
        ends = block.breaks + 1
        if not block.text.endswith(b"\n"):
            ends = np.append(ends, len(block.text))
        found = _make_frame(file, block.first_line + np.arange(len(ends)), block.text, np.concatenate([[0], ends]))
        yield found.with_columns(pl.col("text").str.strip_suffix("\n"))


def whole_lines(blocks: Iterable[Block]) -> Iterator[Block]:
    """Join or cut blocks so that each ends where a line does. The rest of an endless line is dropped."""
    held: list[bytes] = []
    size, first_line = 0, 1
    for block, is_last in _mark_last(blocks):
        cut = len(block.text) if is_last else block.text.rfind(b"\n") + 1
        if not held:
            first_line = block.first_line
        rest = block.text[cut:]
        if cut:
            yield Block(b"".join([*held, block.text[:cut]]), first_line) if held or rest else block
            held, size = [], 0
            first_line = block.first_line + block.text.count(b"\n") if rest else first_line
        if rest and size <= _LONGEST + 4:
            held.append(rest)
            size += len(rest)


def _make_frame(file: str, numbers: Integers, texts: bytes | Bytes, offsets: Integers) -> pl.DataFrame:
    """Make a frame of records whose texts are the buffer `texts`, cut at the offsets."""
    array = pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(texts))
    return pl.DataFrame({"_line": numbers, "text": pl.from_arrow(array)}).select(
        pl.lit(file).alias("_file"), pl.col("_line").cast(pl.Int64), "text"
    )


def _copy_records(file: str, numbers: Integers, data: bytes, starts: Integers, ends: Integers) -> pl.DataFrame:
    """Make a frame of records whose texts are spans of `data`, not necessarily adjacent."""
    from .scanners import copy_spans

    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    copied = np.empty(offsets[-1], np.uint8)
    copy_spans(np.frombuffer(data, np.uint8), starts, offsets, copied)
    return _make_frame(file, numbers, copied, offsets)


def json_values(
    blocks: Iterable[Block], file: str, flatten: bool = False
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield the elements of a JSON array, or values that follow one another, and the damaged pieces between them.

    Damage extends to the next line that begins like the line of an earlier value, or like the damaged value's own.

    Args:
        flatten: Whether to yield, instead of an array of objects or of arrays, what is in it.
    """
    held, number, at, opening, lost = b"", 1, -1, b"", b""
    for block, is_last in _mark_last(blocks):
        number = number if held else block.first_line
        data = held + block.text
        if at < 0:
            at = len(data) - len(data.lstrip()) + data.lstrip().startswith(b"[")
        good, bad, at, opening, lost = _scan_values(data, at, is_last, flatten, opening, lost)
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x0A)
        yield (
            _copy_records(file, number + np.searchsorted(breaks, good[0]), data, *good),
            _copy_records(file, number + np.searchsorted(breaks, bad[0]), data, *bad),
        )
        kept = len(data) - data.endswith(b"\n") if lost else _find_indent(data, at)
        number += int(np.searchsorted(breaks, kept))
        held, at = data[kept:], at - kept


def split_values(records: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split records (columns of LINE) that hold several JSON values; return the values, and the damaged pieces."""
    data = "".join(f"{text}\x1e\n" for text in records["text"]).encode()
    good, bad, *_ = _scan_values(data, 0, is_last=True, flatten=True, opening=b"\x1e\n", lost=b"")
    breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x0A)

    def cut_out(spans: tuple[Integers, Integers]) -> pl.DataFrame:
        origin = records[np.searchsorted(breaks, spans[0])]
        pieces = _copy_records("", origin["_line"].to_numpy(), data, *spans)
        return pieces.with_columns(origin["_file"], pl.col("text").str.strip_chars_end("\x1e\n"))

    return cut_out(good), cut_out(bad)


def _mark_last(blocks: Iterable[Block]) -> Iterator[tuple[Block, bool]]:
    """Yield each block and whether it is the last that can be read; an error is raised only after that one."""
    waiting, damage = None, None
    try:
        for block in blocks:
            if waiting is not None:
                yield waiting, False
            waiting = block
    except FileError as error:
        damage = error
    if waiting is not None:
        yield waiting, True
    if damage:
        raise damage


def _scan_values(
    data: bytes, at: int, is_last: bool, flatten: bool, opening: bytes, lost: bytes
) -> tuple[tuple[Integers, Integers], tuple[Integers, Integers], int, bytes, bytes]:
    """Find the values in data[at:].

    Args:
        opening: What the line of a value begins with; empty if that is still unknown.
        lost: What the line of the next value begins with, if `data` begins within damage.

    Returns:
        Spans of whole values, spans of damage, where to continue, and `opening` and `lost` for what follows.
    """
    from . import scanners

    array = np.frombuffer(data, np.uint8)
    found = np.empty((2, _AT_ONCE), np.int64)
    good: list[Integers] = [np.empty((2, 0), np.int64)]
    bad: list[tuple[int, int]] = []
    status, endless = scanners.FULL, 0
    if lost:
        at = _find_next(data, 0, lost)
        bad.append((0, at))
    while at < len(data) and status != scanners.MORE:
        count, at, status = scanners.find_values(array, at, flatten, found[0], found[1])
        good.append(found[:, :count].copy())
        opening = opening or next(
            filter(None, (_find_opening(data, int(start)) for start in found[0, : min(count, 2)])), b""
        )
        over = is_last or len(data) - at > _LONGEST  # no later block can complete it
        if status == scanners.DAMAGED or (status == scanners.MORE and over and data[at:].strip()):
            endless += status == scanners.MORE
            beginning = opening or _find_own_opening(data, at)
            resumed = _find_next(data, at, beginning) if endless <= _RESUMED else len(data)
            if resumed == len(data) and not over:
                break  # the line to resume at may come with the next block
            bad.append((at, resumed))
            at, status = resumed, scanners.DAMAGED
            lost = beginning
    spans = np.concatenate(good, axis=1)
    damage = np.array(bad, np.int64).reshape(-1, 2).T
    is_lost = bool(bad) and bad[-1][1] == len(data)
    return (spans[0], spans[1]), (damage[0], damage[1]), at, opening, lost if is_lost else b""


def _find_opening(data: bytes, at: int) -> bytes:
    """Return the line feed, indentation and bracket with which an element begins; empty if it begins within a line."""
    return data[_find_indent(data, at) : at + 1] if data[at] in b"{[" and _find_indent(data, at) < at else b""


def _find_own_opening(data: bytes, at: int) -> bytes:
    """Return what the line of a damaged value begins with, or just the line feed if the value has no bracket."""
    return b"\n" + data[_find_indent(data, at) : at + 1].lstrip(b"\n") if data[at] in b"{[" else b"\n"


def _find_next(data: bytes, at: int, opening: bytes) -> int:
    """Return where the next value begins whose line starts with `opening`, or the length of the data."""
    found = data.find(opening, at)
    return found + len(opening) - 1 if found >= 0 else len(data)


def _find_indent(data: bytes, at: int) -> int:
    """Find the line feed before `at`, if there is only white space between; else return `at` itself."""
    line_feed = data.rfind(b"\n", 0, at)
    return at if line_feed < 0 or data[line_feed:at].strip() else line_feed


def quoted_records(blocks: Iterable[Block], file: str, delimiter: str, quote: str) -> Iterator[pl.DataFrame]:
    """Yield the records of a table with quoted fields, which may contain line breaks; `_line` is a record's first.

    Text that is not a record is taken line by line, so that an unclosed quote costs only its own line.
    """
    from .scanners import find_quoted

    marks = np.frombuffer(delimiter.encode(), np.uint8), np.frombuffer(quote.encode(), np.uint8)
    found = np.empty((2, _AT_ONCE), np.int64)
    held, number = b"", 1
    for block, is_last in _mark_last(whole_lines(blocks)):
        number = number if held else block.first_line
        data = held + block.text
        if is_last and not data.endswith(b"\n"):
            data += b"\n"
        array = np.frombuffer(data, np.uint8)
        breaks = np.flatnonzero(array == 0x0A)
        at, count = 0, _AT_ONCE
        while count == _AT_ONCE:
            patience = -1 if is_last else _LONGEST
            count, at = find_quoted(array, at, *marks, patience, found[0], found[1])
            starts, ends = found[0, :count], found[1, :count]
            yield _copy_records(file, number + np.searchsorted(breaks, starts), data, starts, ends)
        number += int(np.searchsorted(breaks, at))
        held = data[at:]
