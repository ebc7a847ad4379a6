"""Make vectors smaller: truncate them, quantise them to one byte per dimension (int8) or to one bit (binary).

In shapes, n is the number of vectors and D their width.
"""

import math

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.int8]

CALIBRATION = 1_000
"""Chosen here: passages whose vectors calibrate int8. sentence-transformers calls fewer than 100 too few."""
RANGES_FILE = "int8_ranges.safetensors"
"""The ranges in an exported folder. A name chosen here: no tool reads ranges from a model's folder."""
_LEVELS = 255
"""Steps between the lowest and the highest value of a byte."""


def cut(vectors: Vectors, width: int) -> Vectors:
    """Truncate vectors to their first `width` numbers and normalise again (Matryoshka, arXiv 2205.13147)."""
    if width == vectors.shape[1]:
        return vectors
    first = vectors[:, :width]
    found: Vectors = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found


def calibration_rows(count: int) -> npt.NDArray[np.int64]:
    """Return the rows, at most CALIBRATION of `count` and evenly spaced, whose vectors calibrate int8."""
    chosen = min(count, CALIBRATION)
    return np.arange(chosen) * count // chosen


def calibrate(vectors: Vectors) -> Vectors:
    """Return the least and the greatest value of each dimension: `ranges` in sentence-transformers, float32 [2, D]."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def quantize_int8(vectors: Vectors, ranges: Vectors) -> Bytes:
    """Map each dimension's range linearly to -128 to 127, int8 [n, D]; values beyond the range become its ends.

    These are the bytes of `quantize_embeddings(vectors, "int8", ranges)` in sentence-transformers 6.2.
    """
    levels: Vectors = np.clip(np.floor((vectors - ranges[0]) / _steps(ranges)), 0, _LEVELS)
    return (levels - 128).astype(np.int8)


def dequantize_int8(levels: Bytes, ranges: Vectors) -> Vectors:
    """Map bytes back to values, float32 [n, D], as sentence-transformers does before it rescores."""
    values: Vectors = (levels.astype(np.float32) + 128) * _steps(ranges) + ranges[0]
    return values


def _steps(ranges: Vectors) -> Vectors:
    steps = (ranges[1] - ranges[0]) / _LEVELS
    return np.where(steps == 0, 1, steps)


def binarize(vectors: Vectors) -> Vectors:
    """Replace values by their bits, as 1 if positive and else as -1: float32 [n, D].

    The inner product of two such vectors is D minus twice their Hamming distance.
    """
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


def bytes_per_vector(width: int, precision: str) -> int:
    """Return the size of a stored vector: float32, int8 or binary."""
    return {"float32": 4 * width, "int8": width, "binary": math.ceil(width / 8)}[precision]
