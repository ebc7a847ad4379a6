"""Kernels that find records in bytes. Import this module in functions: loading Numba takes a second and 70 MB."""

from typing import Any

import numpy as np

from ..text.kernels import kernel

MORE, DAMAGED, FULL = range(3)
"""Statuses of `find_values`."""


@kernel
def copy_spans(data: Any, starts: Any, offsets: Any, copied: Any) -> None:
    """Copy the spans of `data` that begin at `starts` to `copied`, one after another, as `offsets` divides it."""
    for record in range(len(starts)):
        # Copying slices takes 3 s to compile. Unsigned places are not checked for negative ones.
        source, target = np.uint64(starts[record]), np.uint64(offsets[record])
        for byte in range(np.uint64(offsets[record + 1]) - target):
            copied[target + byte] = data[source + byte]


@kernel
def find_values(data: Any, at: int, flatten: bool, starts: Any, ends: Any) -> Any:
    """Find JSON values in data[at:], which begins outside any: the elements of an array, or one value after another.

    Returns their number, where the next one begins, and a status: it needs MORE data, the next value is DAMAGED, or
    `starts` is FULL. Commas, closing brackets and record separators (RFC 7464) between values are skipped. A line break
    within a string is damage, and so is a record separator within a value.

    Args:
        flatten: Whether arrays of objects or of arrays are not values themselves, but what is in them.
    """
    opening = np.empty(1_000, np.uint8)  # brackets deeper than this are only counted
    count, size = 0, len(data)
    while True:
        while at < size and data[at] in (0x20, 0x09, 0x0A, 0x0D, 0x2C, 0x5D, 0x1E):
            at += 1
        if at >= size:
            return count, at, MORE
        if flatten and data[at] == 0x5B:  # [
            inside = at + 1
            while inside < size and data[inside] in (0x20, 0x09, 0x0A, 0x0D):
                inside += 1
            if inside == size:
                return count, at, MORE
            if data[inside] == 0x7B or data[inside] == 0x5B:
                at = inside
                continue
        if count == len(starts):
            return count, at, FULL
        start, depth, in_string, whole = at, 0, False, False
        while at < size:
            byte = data[at]
            if in_string:
                if byte == 0x5C:  # backslash
                    at += 1
                elif byte == 0x22:
                    in_string = False
                elif byte == 0x0A or byte == 0x1E:
                    return count, start, DAMAGED
            elif byte == 0x22:
                in_string = True
            elif byte == 0x7B or byte == 0x5B:  # { [
                if depth < len(opening):
                    opening[depth] = byte
                depth += 1
            elif depth == 0 and (byte == 0x2C or byte == 0x5D or byte == 0x0A or byte == 0x1E):
                whole = True  # a number, a string or what is no JSON, which end with their line
                break
            elif byte == 0x1E:
                return count, start, DAMAGED
            elif byte == 0x7D or byte == 0x5D:
                depth -= 1
                if depth < 0 or (depth < len(opening) and opening[depth] != byte - 2):
                    return count, start, DAMAGED
                if depth == 0 and (data[start] == 0x7B or data[start] == 0x5B):
                    at, whole = at + 1, True
                    break
            elif byte == 0x3A and depth == 0 and data[start] == 0x22:  # a key outside of any object
                return count, start, DAMAGED
            at += 1
        if not whole:
            return count, start, MORE
        end = at
        while data[end - 1] in (0x20, 0x09, 0x0A, 0x0D):
            end -= 1
        starts[count], ends[count] = start, end
        count += 1


@kernel
def _matches_at(mark: Any, data: Any, at: int) -> bool:
    if at + len(mark) > len(data):
        return False
    for place in range(len(mark)):  # noqa: SIM110 (Numba has no generators)
        if data[at + place] != mark[place]:
            return False
    return True


@kernel
def find_quoted(data: Any, at: int, delimiter: Any, quote: Any, patience: int, starts: Any, ends: Any) -> Any:
    """Find the records in data[at:], whole lines of a table; return their number and where the next one begins.

    A line whose quote is not closed within `patience` bytes (by the end of the data, if negative) becomes a record.
    """
    count, size = 0, len(data)
    while at < size and count < len(starts):
        start, is_record = at, True
        while is_record:
            if _matches_at(quote, data, at):
                at += len(quote)
                closed = False
                while at < size and not closed:
                    if not _matches_at(quote, data, at):
                        at += 1
                    elif _matches_at(quote, data, at + len(quote)):
                        at += 2 * len(quote)
                    else:
                        at += len(quote)
                        closed = True
                if not closed and size - start <= patience:
                    return count, start
                is_record = closed and (data[at] == 0x0A or _matches_at(delimiter, data, at))
            else:
                while data[at] != 0x0A and not _matches_at(delimiter, data, at):
                    at += 1
            if is_record:
                if data[at] == 0x0A:
                    break
                at += len(delimiter)
        if not is_record:
            at = start
            while data[at] != 0x0A:
                at += 1
        starts[count], ends[count] = start, at
        count += 1
        at += 1
    return count, at
