"""MD5 of many texts at once. Import this module in functions, since Numba takes time to load.

A step of MD5 needs the result of the one before it, so that a processor that hashes one text mostly waits. Here each
step is done for many texts, by vector instructions: 2 GB a second on one core, where OpenSSL makes 0.6.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .kernels import Texts, inner_kernel, kernel, utf8_buffers

_LANES = 64
"""Chosen here: texts that are hashed together; with 32, a third as fast."""

# RFC 1321, section 3.4: per step a constant, a rotation, and which of the block's 16 words it takes.
_CONSTANTS = np.array([int(abs(math.sin(step + 1)) * 2**32) for step in range(64)], np.uint32)
_ROTATIONS = np.repeat(np.array([[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]]), 4, axis=0)
_ROTATIONS = _ROTATIONS.reshape(-1).astype(np.uint32)
_STEPS = np.arange(16)
_WORDS = np.concatenate([_STEPS, (5 * _STEPS + 1) % 16, (3 * _STEPS + 5) % 16, 7 * _STEPS % 16])
_INITIAL = np.array([[0x67452301], [0xEFCDAB89], [0x98BADCFE], [0x10325476]], np.uint32)

_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)


def md5(texts: Texts) -> pa.StringArray:
    """Compute the MD5 of each text in hexadecimal; that of a null is the MD5 of an empty text."""
    offsets, data = utf8_buffers(texts)
    rows = len(offsets) - 1
    by_length = np.argsort(np.diff(offsets), kind="stable")
    digests: NDArray[np.uint32] = np.empty((rows, 4), np.uint32)
    _hash_all(data, offsets, by_length, digests)
    ends = np.arange(0, 32 * rows + 1, 32, dtype=np.int32)
    shown = _HEX[digests.astype("<u4").view(np.uint8)]
    return pa.StringArray.from_buffers(rows, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(shown)))


@kernel
def _hash_all(data: Any, offsets: Any, by_length: Any, digests: Any) -> None:
    """Write the digest of each text: uint32[n, 4]."""
    words = np.zeros((16, _LANES), np.uint32)
    state = np.empty((4, _LANES), np.uint32)
    before = np.empty((4, _LANES), np.uint32)
    for first in range(0, len(by_length), _LANES):
        rows = by_length[first : first + _LANES]
        state[:] = _INITIAL
        for block in range(_count_blocks(offsets, rows[-1])):
            for lane in range(len(rows)):
                _load(data, offsets[rows[lane]], offsets[rows[lane] + 1], block, words[:, lane])
            before[:] = state
            _mix(state, words)
            state += before
            for lane in range(len(rows)):
                if block == _count_blocks(offsets, rows[lane]) - 1:
                    digests[rows[lane]] = state[:, lane]


@inner_kernel
def _count_blocks(offsets: Any, row: int) -> Any:
    """Count a text's blocks of 64 bytes, with the padding: a byte, and eight for the length."""
    return (offsets[row + 1] - offsets[row] + 8) // 64 + 1


@inner_kernel
def _load(data: Any, start: int, end: int, block: int, words: Any) -> None:
    """Write a block of a text, or its padding, to `words`: uint32[16]."""
    at = start + 64 * block
    left = max(0, min(64, end - at))
    for word in range(left // 4):
        words[word] = _four_bytes(data, np.uint64(at + 4 * word))  # unsigned: no check for negative indices
    if left == 64:
        return
    words[left // 4 :] = 0
    for byte in range(left // 4 * 4, left):
        words[byte // 4] |= np.uint32(data[at + byte]) << np.uint32(8 * (byte % 4))
    if at <= end:
        words[left // 4] |= np.uint32(0x80) << np.uint32(8 * (left % 4))
    if at + 56 > end:
        bits = np.uint64(8 * (end - start))
        words[14] = np.uint32(bits & np.uint64(0xFFFFFFFF))
        words[15] = np.uint32(bits >> np.uint64(32))


@inner_kernel
def _four_bytes(data: Any, at: Any) -> Any:
    """Return the word at data[at]; the compiler makes one load of it."""
    first = np.uint32(data[at]) | np.uint32(data[at + np.uint64(1)]) << np.uint32(8)
    return (
        first
        | np.uint32(data[at + np.uint64(2)]) << np.uint32(16)
        | np.uint32(data[at + np.uint64(3)]) << np.uint32(24)
    )


@inner_kernel
def _mix(state: Any, words: Any) -> None:
    """Do the 64 steps of a block for every lane."""
    for step in range(64):
        constant, left, right = _CONSTANTS[step], _ROTATIONS[step], np.uint32(32) - _ROTATIONS[step]
        word = words[_WORDS[step]]
        a, b, c, d = state[-step % 4], state[(1 - step) % 4], state[(2 - step) % 4], state[(3 - step) % 4]
        # A loop for each kind of step, since a branch within would keep it from being vectorised.
        if step < 16:
            for lane in range(_LANES):
                total = np.uint32(a[lane] + (d[lane] ^ (b[lane] & (c[lane] ^ d[lane]))) + constant + word[lane])
                a[lane] = b[lane] + (total << left | total >> right)
        elif step < 32:
            for lane in range(_LANES):
                total = np.uint32(a[lane] + (c[lane] ^ (d[lane] & (b[lane] ^ c[lane]))) + constant + word[lane])
                a[lane] = b[lane] + (total << left | total >> right)
        elif step < 48:
            for lane in range(_LANES):
                total = np.uint32(a[lane] + (b[lane] ^ c[lane] ^ d[lane]) + constant + word[lane])
                a[lane] = b[lane] + (total << left | total >> right)
        else:
            for lane in range(_LANES):
                total = np.uint32(a[lane] + (c[lane] ^ (b[lane] | ~d[lane])) + constant + word[lane])
                a[lane] = b[lane] + (total << left | total >> right)
