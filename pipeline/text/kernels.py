"""The settings shared by all Numba kernels, and UTF-8 decoding for those that read text."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from numba import njit
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

Texts: TypeAlias = pa.Array | pa.ChunkedArray
"""A column of strings: string, large_string or string_view."""
Bytes: TypeAlias = NDArray[np.uint8]
Offsets: TypeAlias = NDArray[np.int64]

Function = TypeVar("Function", bound=Callable[..., Any])

_SOURCE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _cached(**settings: bool) -> Callable[[Function], Function]:
    """Return Numba's njit with a cache on disk that is valid until a file changes that the compiled code comes from.

    Numba itself watches only the function's file, but the code contains the kernels of other files that the function
    calls, and the settings in this one.
    """

    def decorate(function: Function) -> Function:
        compiled = njit(cache=True, **settings)(function)
        if cache := getattr(compiled, "_cache", None):  # absent with NUMBA_DISABLE_JIT
            cache._cache_file._source_stamp = (cache._cache_file._source_stamp, _SOURCE, *_imported_stamps(function))
        return compiled  # type: ignore[no-any-return]

    return decorate


def _imported_stamps(function: Callable[..., Any]) -> list[Any]:
    """List the stamps of the kernels that the function's module imports; each includes those of its own imports."""
    kernels: list[Any] = [value for value in function.__globals__.values() if isinstance(value, Dispatcher)]
    return [each._cache._cache_file._source_stamp for each in kernels if each.__module__ != function.__module__]


kernel: Callable[[Function], Function] = _cached(nogil=True)
"""Compile a function that releases the GIL."""
inner_kernel: Callable[[Function], Function] = _cached()
"""Compile a function that only kernels call, whose caller decides about the GIL."""
parallel_kernel: Callable[[Function], Function] = _cached(parallel=True)
"""Compile a function whose `prange` loops run on all of Numba's threads."""


def utf8_buffers(texts: Texts) -> tuple[Offsets, Bytes]:
    """Return (offsets int64[n + 1], data uint8) of a string column; the data of a single chunk is not copied.

    Text i is data[offsets[i] : offsets[i + 1]]; a null is empty. Raises TypeError if the column is not of strings.
    """
    kind = texts.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise TypeError(f"expected a column of strings, not {kind}")
    # Large offsets first: combining the chunks of 32-bit offsets would overflow at 2 GiB.
    column = texts.cast(pa.large_string())
    if column.null_count:  # a null slot may still own bytes
        column = column.fill_null("")
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if not len(column):  # an empty column may have no buffers
        return np.frombuffer(bytes(8), dtype=np.int64), np.frombuffer(b"", dtype=np.uint8)
    _, ends, data = column.buffers()
    offsets = np.frombuffer(ends, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    return offsets, np.frombuffer(data or b"", dtype=np.uint8)


@kernel
def decode(data: Bytes, start: int, end: int, points: NDArray[np.uint32]) -> int:
    """Write the code points of data[start:end] to `points` and return their number.

    Never reads beyond `end`: a character that is cut off there (in damaged text) becomes U+FFFD.
    """
    count, at = 0, start
    while at < end and (at + 4 <= end or at + _width(data[at]) <= end):
        points[count], width = code_point(data, at)
        count += 1
        at += width
    if at < end:
        points[count] = 0xFFFD
        count += 1
    return count


@kernel
def code_point(data: Bytes, at: int) -> tuple[np.uint32, int]:
    """Return (code point, width in bytes) of the character at data[at]; its bytes are read without any check."""
    lead = np.uint32(data[np.uint64(at)])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & np.uint32(0x1F)) << np.uint32(6) | _six_bits(data, at, 1), 2
    if lead < 0xF0:
        high = (lead & np.uint32(0x0F)) << np.uint32(12)
        return high | _six_bits(data, at, 1) << np.uint32(6) | _six_bits(data, at, 2), 3
    high = (lead & np.uint32(0x07)) << np.uint32(18) | _six_bits(data, at, 1) << np.uint32(12)
    return high | _six_bits(data, at, 2) << np.uint32(6) | _six_bits(data, at, 3), 4


@kernel
def _width(lead: int) -> int:
    """Return how many bytes `code_point` reads for a character with this first byte."""
    return 1 + (lead >= 0x80) + (lead >= 0xE0) + (lead >= 0xF0)


@kernel
def _six_bits(data: Bytes, at: int, further: int) -> np.uint32:
    """Return the bits of a continuation byte; the index is unsigned, so that Numba doesn't check for negative ones."""
    return np.uint32(data[np.uint64(at) + np.uint64(further)] & 0x3F)
