"""Keep the digits of numbers in JSON, which DuckDB would read as double precision."""

import polars as pl

from .column_types import LONGEST_INTEGER

NUMBER_MARK = "\ufdd0"
"""Marks texts in `meta` that are numbers and lose their quotes there: a noncharacter, which text should not contain."""

_NUMBER = rf"-?(?:[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]+|[0-9]+\.[0-9]+|[0-9]{{{LONGEST_INTEGER + 1},}}|NaN|Infinity)"
_STRING = r'"(?:[^"\\]|\\.)*"'
_SUSPICIOUS = rf"[:\[,]\s*{_NUMBER}"  # also within strings
_BEGIN, _END = "\1", "\2"  # of a number; JSON has no control characters


def quote_numbers(records: pl.Series, mark: str = "") -> pl.Series:
    """Turn every number in JSON records that BIGINT does not hold exactly into a string of its characters.

    Before these comes `mark`.

    `{"price": 3.10, "id": 12}` becomes `{"price": "3.10", "id": 12}`. So do NaN and Infinity, which are not JSON but
    which Python writes. Records without such numbers stay as they are.
    """
    rows = records.str.contains(_SUSPICIOUS).arg_true()
    if not len(rows):
        return records
    # A match is a string, which gets both edges after it, or a number, which gets one on either side.
    edged = records.gather(rows).str.replace_all(f"(?s)({_STRING})|({_NUMBER})", f"${{1}}{_BEGIN}${{2}}{_END}")
    bare = edged.str.replace_all(f"{_BEGIN}{_END}", "", literal=True)
    quoted = bare.str.replace_all(_BEGIN, f'"{mark}', literal=True).str.replace_all(_END, '"', literal=True)
    return records.scatter(rows, quoted)
