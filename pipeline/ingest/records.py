"""From blocks of text to records: lines, elements of a JSON array, records of a table with quotes.

Records are frames of `LINE`: where a record stands and its text. What is too damaged to be one is told apart where the
damage is, so that it costs itself and what can't be read without it, never what came before.
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
"""Chosen here: characters; a longer record is a broken file or no text for an embedding model, and is rejected."""

_LONGEST = 4 * LONGEST_RECORD  # bytes of so many characters at most
_AT_ONCE = 1 << 16  # records that a kernel finds in one call
_RESUMED = 100  # how often an element that never ends is left for the next line; each time costs a pass


def lines(blocks: Iterable[Block], file: str) -> Iterator[pl.DataFrame]:
    """The lines, blank ones too; of one longer than LONGEST_RECORD so much that it is seen to be."""
    for block in whole_lines(blocks):
        ends = np.flatnonzero(np.frombuffer(block.text, np.uint8) == 0x0A) + 1
        if not block.text.endswith(b"\n"):
            ends = np.append(ends, len(block.text))
        found = _frame(file, block.first_line + np.arange(len(ends)), block.text, np.concatenate([[0], ends]))
        yield found.with_columns(pl.col("text").str.strip_suffix("\n"))


def whole_lines(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks that end where a line does. Of an endless line the rest is left out."""
    held: list[bytes] = []
    size, first_line = 0, 1
    for block, is_last in _with_last(blocks):
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


def _frame(file: str, numbers: Integers, texts: bytes | Bytes, offsets: Integers) -> pl.DataFrame:
    """Records as a frame; their texts are `texts` cut at the offsets."""
    array = pa.LargeStringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(texts))
    return pl.DataFrame({"_line": numbers, "text": pl.from_arrow(array)}).select(
        pl.lit(file).alias("_file"), pl.col("_line").cast(pl.Int64), "text"
    )


def _spans(file: str, numbers: Integers, data: bytes, starts: Integers, ends: Integers) -> pl.DataFrame:
    """Records that lie apart in `data`, copied out in one go."""
    from .scanners import copy_spans

    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    copied = np.empty(offsets[-1], np.uint8)
    copy_spans(np.frombuffer(data, np.uint8), starts, offsets, copied)
    return _frame(file, numbers, copied, offsets)


def array_elements(blocks: Iterator[Block], file: str) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The elements of a JSON array, and the splits in which none can be made out.

    Damage ends at the next line that begins as the line of an element before it does, or the damaged element's own.
    What follows the array is taken as lines, which may be records of their own.
    """
    held, number, at, begun, opening = b"", 1, 0, False, b""
    pending = _with_last(blocks)
    for block, is_last in pending:
        number = number if held else block.first_line
        data = held + block.text
        if not begun:
            at, begun = data.index(b"[") + 1, True
        good, bad, at, ended, opening = _scan_array(data, at, is_last, opening)
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x0A)

        def found(spans: tuple[Integers, Integers]) -> pl.DataFrame:
            starts, ends = spans
            return _spans(file, number + np.searchsorted(breaks, starts), data, starts, ends)  # noqa: B023

        yield found(good), found(bad)
        if ended:
            rest = Block(data[at:], number + int(np.searchsorted(breaks, at)))
            for frame in lines(chain([rest], (block for block, _ in pending)), file):
                # Where it was damage that closed the array, its other elements are here.
                yield frame.with_columns(pl.col("text").str.strip_chars().str.strip_suffix(",")), frame.clear()
            return
        kept = _indented_from(data, at)
        number += int(np.searchsorted(breaks, kept))
        held, at = data[kept:], at - kept


def _with_last(blocks: Iterable[Block]) -> Iterator[tuple[Block, bool]]:
    """Blocks, and whether each is the last that can be read; damage is raised after it."""
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
    """Spans of whole elements and of damage in data[at:], where reading goes on, and whether the array is closed.

    `opening` is what the line of an element begins with; returned where it is found out.
    """
    from . import scanners

    array = np.frombuffer(data, np.uint8)
    found = np.empty((2, _AT_ONCE), np.int64)
    good: list[Integers] = [np.empty((2, 0), np.int64)]
    bad: list[tuple[int, int]] = []
    status, endless = scanners.FULL, 0
    while status in (scanners.FULL, scanners.DAMAGED):
        count, at, status = scanners.elements(array, at, found[0], found[1])
        good.append(found[:, :count].copy())
        opening = opening or next(
            filter(None, (_opening(data, int(start)) for start in found[0, : min(count, 2)])), b""
        )
        over = is_last or len(data) - at > _LONGEST  # no later block can end it
        if status == scanners.DAMAGED or (status == scanners.MORE and over and data[at:].strip()):
            endless += status == scanners.MORE
            resumed = _next_after(data, at, opening) if endless <= _RESUMED else len(data)
            if resumed == len(data) and not over:
                status = scanners.MORE  # the line to go on from may come with the next block
                break
            bad.append((at, resumed))
            at, status = resumed, scanners.DAMAGED if resumed < len(data) else scanners.MORE
    spans = np.concatenate(good, axis=1)
    damage = np.array(bad, np.int64).reshape(-1, 2).T
    return (spans[0], spans[1]), (damage[0], damage[1]), at, status == scanners.ENDED, opening


def _opening(data: bytes, at: int) -> bytes:
    """The line feed, the white space and the bracket that an object or list begins with; nothing within a line."""
    return data[_indented_from(data, at) : at + 1] if data[at] in b"{[" and _indented_from(data, at) < at else b""


def _next_after(data: bytes, at: int, opening: bytes) -> int:
    """Where the next line begins as `opening` says, or as the one at `at` does; the end where there is none."""
    opening = opening or b"\n" + data[_indented_from(data, at) : at + 1].lstrip(b"\n")
    found = data.find(opening, at)
    return found + len(opening) - 1 if found >= 0 else len(data)


def _indented_from(data: bytes, at: int) -> int:
    """Where the line feed stands before `at` and its white space; `at` itself where something else is on its line."""
    line_feed = data.rfind(b"\n", 0, at)
    return at if line_feed < 0 or data[line_feed:at].strip() else line_feed


def quoted_records(blocks: Iterable[Block], file: str, delimiter: str, quote: str) -> Iterator[pl.DataFrame]:
    """The records of a table with quoted fields, which may hold line breaks; each with its first line's number.

    What is no record is taken line by line, so a quote that nothing closes costs its own line and no other.
    """
    from .scanners import quoted

    marks = np.frombuffer(delimiter.encode(), np.uint8), np.frombuffer(quote.encode(), np.uint8)
    found = np.empty((2, _AT_ONCE), np.int64)
    held, number = b"", 1
    for block, is_last in _with_last(whole_lines(blocks)):
        number = number if held else block.first_line
        data = held + block.text
        if is_last and not data.endswith(b"\n"):
            data += b"\n"
        array = np.frombuffer(data, np.uint8)
        breaks = np.flatnonzero(array == 0x0A)
        at, count = 0, _AT_ONCE
        while count == _AT_ONCE:
            patience = -1 if is_last else _LONGEST
            count, at = quoted(array, at, *marks, patience, found[0], found[1])
            starts, ends = found[0, :count], found[1, :count]
            yield _spans(file, number + np.searchsorted(breaks, starts), data, starts, ends)
        number += int(np.searchsorted(breaks, at))
        held = data[at:]
