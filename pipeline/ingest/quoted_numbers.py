"""Keep the digits of numbers in JSON, which DuckDB would read as double precision."""

import numpy as np
import polars as pl
import pyarrow as pa

from .column_types import LONGEST_INTEGER

_SUSPICIOUS = r"[:\[,]\s*-?(?:[0-9]+[.eE]|[0-9]{19}|NaN|Infinity)"


def quote_numbers(records: pl.Series) -> pl.Series:
    """Turn every number in JSON records that BIGINT does not hold exactly into a string of its characters.

    `{"price": 3.10, "id": 12}` becomes `{"price": "3.10", "id": 12}`. So do NaN and Infinity, which are not JSON but
    which Python writes. Records without such numbers stay as they are.
    """
    if not records.str.contains(_SUSPICIOUS).any():
        return records
    from ..text.kernels import utf8_buffers  # loading Numba takes a second, which most sources need not spend
    from . import scanners

    offsets, data = utf8_buffers(records.to_arrow())
    quoted = np.empty(2 * int(offsets[-1] - offsets[0]), np.uint8)
    ends = np.empty(len(offsets), np.int64)
    scanners.quote_numbers(data, offsets, LONGEST_INTEGER, quoted, ends)
    texts = pa.LargeStringArray.from_buffers(len(records), pa.py_buffer(ends), pa.py_buffer(quoted[: ends[-1]]))
    return pl.Series(records.name, texts)
