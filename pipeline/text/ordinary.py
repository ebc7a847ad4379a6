"""Find the texts that `normalise` may change. Import this module in functions, since Numba takes time to load."""

from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .kernels import code_point, kernel, utf8_buffers

_TABLED = 0x20000  # code points in the table; no character beyond is ordinary
_BLOCK = 64  # code points whose UTF-8 differs only in the last byte

_ORDINARY, _UNUSUAL, _BLANK = range(3)


def find_changeable(texts: pl.Series, unusual: str) -> pl.Series:
    """Tell which texts have a character that matches the pattern `unusual`, or spaces or line breaks that aren't tidy.

    These are: a space next to another or to a line break, three line breaks, and either at an end of the text.
    """
    offsets, data = utf8_buffers(texts.to_arrow())
    found = np.empty(len(texts), np.bool_)
    _scan(offsets, data, *_build_tables(unusual), found)
    return pl.Series(texts.name, found)


@cache
def _build_tables(unusual: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Build a table of the kinds of characters, and one of the blocks in which all are ordinary."""
    points = np.delete(np.arange(_TABLED), slice(0xD800, 0xE000))
    kinds = np.full(_TABLED, _UNUSUAL, np.uint8)
    kinds[points] = pl.Series([chr(point) for point in points]).str.contains(unusual).to_numpy()
    kinds[[ord(" "), ord("\n")]] = _BLANK
    return kinds, (kinds.reshape(-1, _BLOCK) == _ORDINARY).all(axis=1)


@kernel
def _scan(offsets: Any, data: Any, kinds: Any, ordinary_blocks: Any, found: Any) -> None:
    for row in range(len(found)):
        start, end = offsets[row], offsets[row + 1]
        at, spaces, breaks = start, 0, 0  # the runs of spaces and of line breaks that end at `at`
        is_found = False
        while at < end and not is_found:
            if _is_in_ordinary_block(data, np.uint64(at), ordinary_blocks):
                at, spaces, breaks = at + 3, 0, 0
                continue
            point, width = code_point(data, at)
            kind = kinds[np.uint64(point)] if point < _TABLED else _UNUSUAL
            if kind == _ORDINARY:
                spaces, breaks = 0, 0
            elif kind == _UNUSUAL or at == start or at + width == end:
                is_found = True
            elif point == 0x20:
                is_found = spaces > 0 or breaks > 0
                spaces = 1
            else:
                is_found = spaces > 0 or breaks == 2
                breaks += 1
            at += width
        found[row] = is_found


@kernel
def _is_in_ordinary_block(data: Any, at: Any, ordinary_blocks: Any) -> Any:
    """Whether the character at data[at] is in such a block and has three bytes, as nearly all of a Chinese text have.

    This look-up needs only the first two bytes; with it, the scan is twice as fast.
    """
    if data[at] < 0xE0 or data[at] >= 0xF0:
        return False
    high = np.uint64(data[at] & 0x0F) << np.uint64(6)
    return ordinary_blocks[high | np.uint64(data[at + np.uint64(1)] & 0x3F)]
