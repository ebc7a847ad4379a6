"""Tell when Numba's kernels are worth loading, where there is a slower way without them."""

import polars as pl

_BREAK_EVEN = 128 << 20
"""Chosen here: bytes of text after which kernels have saved as much time as they take to load, 0.6 s a process."""

_seen = 0.0  # bytes


def kernels_pay(texts: pl.Series) -> bool:
    """Count the texts that this process works on; say whether there were enough to make up for loading kernels."""
    global _seen
    _seen += texts.estimated_size()
    return _seen > _BREAK_EVEN
