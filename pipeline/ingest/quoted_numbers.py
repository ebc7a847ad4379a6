"""Keep the digits of numbers in JSON, which DuckDB would read as double precision."""

import polars as pl

from .column_types import LONGEST_INTEGER

_NUMBER = rf"-?(?:[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]+|[0-9]+\.[0-9]+|[0-9]{{{LONGEST_INTEGER + 1},}}|NaN|Infinity)"
_STRING = r'"(?:[^"\\]|\\.)*"'
_SUSPICIOUS = rf"[:\[,]\s*{_NUMBER}"  # also within strings
_EDGE = "\1"  # of a number; JSON has no control characters


def quote_numbers(records: pl.Series) -> pl.Series:
    """Turn every number in JSON records that BIGINT does not hold exactly into a string of its characters.

    `{"price": 3.10, "id": 12}` becomes `{"price": "3.10", "id": 12}`. So do NaN and Infinity, which are not JSON but
    which Python writes. Records without such numbers stay as they are.
    """
    rows = records.str.contains(_SUSPICIOUS).arg_true()
    if not len(rows):
        return records
    # A match is a string, which gets two edges after it, or a number, which gets one on either side.
    edged = records.gather(rows).str.replace_all(f"(?s)({_STRING})|({_NUMBER})", f"${{1}}{_EDGE}${{2}}{_EDGE}")
    quoted = edged.str.replace_all(_EDGE * 2, "", literal=True).str.replace_all(_EDGE, '"', literal=True)
    return records.scatter(rows, quoted)
