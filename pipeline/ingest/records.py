"""Find records in blocks of text: lines, elements of a JSON array, records of a table with quotes.

Records are frames of `LINE`: a record's file, its first line and its text. Damage costs the record that it is in and
what can't be read without that, never what came before.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

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
"""Chosen here: characters; a longer record comes of a broken file, or is too long for any model, and is rejected."""

_LONGEST = 4 * LONGEST_RECORD  # bytes that LONGEST_RECORD characters take at most
_AT_ONCE = 1 << 16  # records that a kernel finds in one call
_RESUMED = 100  # elements without an end that are given up for the next line; each costs a pass over the rest


def lines(blocks: Iterable[Block], file: str) -> Iterator[pl.DataFrame]:
    """Yield lines, blank ones too. One that is much longer than LONGEST_RECORD is cut, but stays longer."""
    for block in whole_lines(blocks):
        ends = np.flatnonzero(np.frombuffer(block.text, np.uint8) == 0x0A) + 1
        if not block.text.endswith(b"\n"):
            ends = np.append(ends, len(block.text))
        found = _make_frame(file, block.first_line + np.arange(len(ends)), block.text, np.concatenate([[0], ends]))
        yield found.with_columns(pl.col("text").str.strip_suffix("\n"))


def whole_lines(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield blocks that end where a line does. The rest of an endless line is left out."""
    held: list[bytes] = []
    size, first_line = 0, 1
    for block, is_last in _mark_last(blocks):
        cut = len(block.text) if is_last else block.text.rfind(b"\n") + 1
        if not held:
            first_line = block.first_line
        if cut:
            yield Block(b"".join([*held, block.text[:cut]]), first_line)
            held, size, first_line = [], 0, block.first_line + block.text.count(b"\n")
        rest = block.text[cut:]
        if rest and size <= _LONGEST + 4:
            held.append(rest)
            size += len(rest)


def _make_frame(file: str, numbers: Integers, texts: bytes | Bytes, offsets: Integers) -> pl.DataFrame:
    """Make a frame of records, whose texts are `texts` cut at the offsets."""
    array = pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(texts))
    return pl.DataFrame({"_line": numbers, "text": pl.from_arrow(array)}).select(
        pl.lit(file).alias("_file"), pl.col("_line").cast(pl.Int64), "text"
    )


def _copy_records(file: str, numbers: Integers, data: bytes, starts: Integers, ends: Integers) -> pl.DataFrame:
    """Make a frame of records that lie apart in `data`."""
    from .scanners import copy_spans

    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    copied = np.empty(offsets[-1], np.uint8)
    copy_spans(np.frombuffer(data, np.uint8), starts, offsets, copied)
    return _make_frame(file, numbers, copied, offsets)


def array_elements(blocks: Iterator[Block], file: str) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield the elements of a JSON array, and the pieces between them in which none can be found.

    Damage ends at the next line that begins like the line of an earlier element, or like the damaged element's own.
    What follows the array is read as lines, which may be records of their own.
    """
    held, number, at, begun, opening = b"", 1, 0, False, b""
    pending = _mark_last(blocks)
    for block, is_last in pending:
        number = number if held else block.first_line
        data = held + block.text
        if not begun:
            at, begun = data.index(b"[") + 1, True
        good, bad, at, ended, opening = _scan_array(data, at, is_last, opening)
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x0A)

        def cut_out(spans: tuple[Integers, Integers]) -> pl.DataFrame:
            starts, ends = spans
            return _copy_records(file, number + np.searchsorted(breaks, starts), data, starts, ends)  # noqa: B023

        yield cut_out(good), cut_out(bad)
        if ended:
            rest = Block(data[at:], number + int(np.searchsorted(breaks, at)))
            for frame in lines(chain([rest], (block for block, _ in pending)), file):
                # If damage closed the array, its other elements are here.
                yield frame.with_columns(pl.col("text").str.strip_chars().str.strip_suffix(",")), frame.clear()
            return
        kept = _find_indent(data, at)
        number += int(np.searchsorted(breaks, kept))
        held, at = data[kept:], at - kept


def _mark_last(blocks: Iterable[Block]) -> Iterator[tuple[Block, bool]]:
    """Yield blocks, and whether each is the last that can be read; an error is raised after that one."""
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


def _scan_array(
    data: bytes, at: int, is_last: bool, opening: bytes
) -> tuple[tuple[Integers, Integers], tuple[Integers, Integers], int, bool, bytes]:
    """Find the spans of whole elements and of damage in data[at:], where to go on, and whether the array is closed.

    `opening` is what an element's line begins with. It is returned as well, as the first elements show it.
    """
    from . import scanners

    array = np.frombuffer(data, np.uint8)
    found = np.empty((2, _AT_ONCE), np.int64)
    good: list[Integers] = [np.empty((2, 0), np.int64)]
    bad: list[tuple[int, int]] = []
    status, endless = scanners.FULL, 0
    while status in (scanners.FULL, scanners.DAMAGED):
        count, at, status = scanners.find_elements(array, at, found[0], found[1])
        good.append(found[:, :count].copy())
        opening = opening or next(
            filter(None, (_find_opening(data, int(start)) for start in found[0, : min(count, 2)])), b""
        )
        over = is_last or len(data) - at > _LONGEST  # no later block can end it
        if status == scanners.DAMAGED or (status == scanners.MORE and over and data[at:].strip()):
            endless += status == scanners.MORE
            resumed = _find_next(data, at, opening) if endless <= _RESUMED else len(data)
            if resumed == len(data) and not over:
                status = scanners.MORE  # the line to go on from may come with the next block
                break
            bad.append((at, resumed))
            at, status = resumed, scanners.DAMAGED if resumed < len(data) else scanners.MORE
    spans = np.concatenate(good, axis=1)
    damage = np.array(bad, np.int64).reshape(-1, 2).T
    return (spans[0], spans[1]), (damage[0], damage[1]), at, status == scanners.ENDED, opening


def _find_opening(data: bytes, at: int) -> bytes:
    """Find the line feed, white space and bracket that begin an object or list; empty if it begins within a line."""
    return data[_find_indent(data, at) : at + 1] if data[at] in b"{[" and _find_indent(data, at) < at else b""


def _find_next(data: bytes, at: int, opening: bytes) -> int:
    """Find the next line that begins with `opening`, or like the one at `at`; the end if there is none."""
    opening = opening or b"\n" + data[_find_indent(data, at) : at + 1].lstrip(b"\n")
    found = data.find(opening, at)
    return found + len(opening) - 1 if found >= 0 else len(data)


def _find_indent(data: bytes, at: int) -> int:
    """Find the line feed before `at` and its white space; `at` itself if something else is on its line."""
    line_feed = data.rfind(b"\n", 0, at)
    return at if line_feed < 0 or data[line_feed:at].strip() else line_feed


def quoted_records(blocks: Iterable[Block], file: str, delimiter: str, quote: str) -> Iterator[pl.DataFrame]:
    """Yield the records of a table with quoted fields, which may hold line breaks; `_line` is a record's first.

    What is no record is read line by line, so that a quote which nothing closes costs only its own line.
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
