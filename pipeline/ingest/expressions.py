"""Build the SQL for the columns of a pair from a recipe's expressions: as texts, as numbers, or as JSON.

A column of decimals holds texts in the batch, with the digits that the file has. An expression that takes texts sees
these; one that computes sees numbers; `meta` keeps the digits.
"""

import re
from dataclasses import dataclass

import duckdb
import polars as pl

from ...schemas.source_settings import Source
from ..corpus.sql import quote_name
from .quoted_numbers import NUMBER_MARK
from .readers import SourceError
from .sql_names import compares, replace_columns

_AS_NUMBER = "TRY_CAST({} AS DOUBLE)"
_AS_MARKED = f"('{NUMBER_MARK}' || CAST({{}} AS VARCHAR))"
_MARKED_NUMBER = f'"{NUMBER_MARK}(-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"'
_SHORTENED = ("FLOAT", "DECIMAL")  # types whose digits to_json changes
_MISSING = re.compile(r'Referenced (?:column|table) "(.+?)" not found|does not have a column named "(.+?)"')


@dataclass(frozen=True)
class Decimals:
    """The columns of the batch whose digits need care."""

    written: list[str]  # texts that are numbers, as they are written in the file
    shortened: list[str]  # numbers that to_json would write with other digits


def find_decimals(connection: duckdb.DuckDBPyConnection, source: Source) -> Decimals:
    """Find the columns of `batch` whose digits need care."""
    batch = connection.sql("FROM batch")
    types = dict(zip(batch.columns, map(str, batch.types), strict=True))
    numbers = {name.lower() for name, kind in source.columns.items() if kind == "DOUBLE"}
    return Decimals(
        [name for name, kind in types.items() if kind == "VARCHAR" and name.lower() in numbers],
        [name for name, kind in types.items() if kind.startswith(_SHORTENED) and not kind.endswith("]")],
    )


def find_missing(error: duckdb.BinderException) -> tuple[str, bool] | None:
    """Return the column that an error says is missing, and whether the SQL uses its fields; None for other errors."""
    found = _MISSING.search(str(error))
    if not found:
        return None
    is_struct = "Referenced table" in str(error)  # `name.field` or `name.field.field`
    return (found[1].partition(".")[0] if is_struct else found[1] or found[2]), is_struct


def as_numbers(expression: str, decimals: Decimals) -> str:
    """Let an expression see decimals as numbers."""
    return replace_columns(expression, decimals.written, _AS_NUMBER) if decimals.written else expression


def choose_binding(connection: duckdb.DuckDBPyConnection, view: str, *candidates: str) -> str:
    """Return the first of several expressions that fits the columns of a view, or the last one."""
    for expression in candidates[:-1]:
        try:
            connection.sql(f"SELECT {expression}\n FROM {view} LIMIT 0")
        except duckdb.BinderException as error:
            if find_missing(error):
                raise
        else:
            return expression
    return candidates[-1]


def guard(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """Wrap an expression so that it is NULL on rows where it fails; unchanged if DuckDB can't do that (a subquery)."""
    guarded = f"TRY({expression}\n)"  # the expression may end in a comment
    try:
        connection.sql(f"SELECT {guarded} FROM selected LIMIT 0")
    except duckdb.BinderException:
        return f"({expression}\n)"
    return guarded


def list_readings(expression: str, decimals: Decimals) -> list[str]:
    """Return an expression that sees decimals as texts or as numbers, whichever is better first."""
    readings = [expression, as_numbers(expression, decimals)]
    return readings[::-1] if compares(expression) else readings


def as_text(connection: duckdb.DuckDBPyConnection, expression: str, decimals: Decimals) -> tuple[str, str]:
    """Convert an expression to text: JSON strings lose their quotes, bytes are decoded (NULL if they are not UTF-8).

    Returns the SQL for the text, and for what was found in its place in JSON (`OBJECT`, `ARRAY`), else NULL.

    Raises:
        SourceError: its value is a list, a struct or a map.
    """
    bound = choose_binding(connection, "selected", *list_readings(expression, decimals))
    guarded = guard(connection, bound)
    kind = _find_type(connection, guarded)
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP")):
        raise SourceError(
            f"{expression.strip()}: expected text, found {kind}. Unnest it in `select`, or take one element with [1]."
        )
    if kind == "BLOB":
        return guard(connection, f"decode({bound}\n)"), "NULL"
    if kind != "JSON":
        return f"CAST({guarded} AS VARCHAR)", "NULL"
    found = f"nullif(json_type({guarded}) IN ('OBJECT', 'ARRAY'), false)"
    return f"CASE WHEN {found} THEN NULL ELSE {guarded} ->> '$' END", f"CASE WHEN {found} THEN json_type({guarded}) END"


def as_texts(connection: duckdb.DuckDBPyConnection, expression: str, decimals: Decimals) -> tuple[str, str]:
    """Convert an expression to a list of texts. Returns two expressions, as `as_text` does.

    Raises:
        SourceError: its value is no list, or a list of something else.
    """
    readings = (f"({reading}\n)" for reading in list_readings(expression, decimals))
    bound = choose_binding(connection, "selected", *readings)
    kind = _find_type(connection, bound)
    if kind not in ("JSON", '"NULL"', "NULL"):
        if not kind.endswith("]"):
            raise SourceError(f"negatives: expected a list of strings, found {kind}.")
        if kind.startswith(("STRUCT", "MAP")) or kind.endswith("][]"):
            raise SourceError(
                f"negatives: expected a list of strings, found {kind}. Take one text of each element, as in "
                f"`list_transform({expression.strip()}, lambda each: each.text)`."
            )
    guarded = guard(connection, bound)
    if kind != "JSON":
        return f"TRY_CAST({guarded} AS VARCHAR[])", "NULL"
    inside = f"list_filter(json_type({guarded}, '$[*]'), lambda kind: kind IN ('OBJECT', 'ARRAY'))[1]"
    return f"CASE WHEN {inside} IS NULL THEN TRY_CAST({guarded} AS VARCHAR[]) END", inside


def as_json(connection: duckdb.DuckDBPyConnection, expression: str, decimals: Decimals) -> str:
    """Convert an expression to JSON in which decimals that it passes on are marked texts; see `unmark_numbers`."""
    values = dict.fromkeys([name.lower() for name in [*decimals.written, *decimals.shortened]], _AS_MARKED)
    marked = {
        name.removesuffix(NUMBER_MARK).lower(): quote_name(name)
        for name in connection.sql("FROM selected").columns
        if name.endswith(NUMBER_MARK)
    }
    candidates = [
        replace_columns(expression, columns, _AS_NUMBER, passed)
        for passed in (values | marked, values, {})
        for columns in ([], decimals.written)
    ]
    json = guard(connection, f"to_json({choose_binding(connection, 'selected', *candidates)}\n)")
    return f"CAST({json} AS VARCHAR)"


def unmark_numbers(meta: pl.Expr) -> pl.Expr:
    """Turn marked texts in JSON into the numbers they are; what JSON does not have as a number stays a text."""
    return meta.str.replace_all(_MARKED_NUMBER, "$1").str.replace_all(NUMBER_MARK, "", literal=True)


def _find_type(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    return str(connection.sql(f"SELECT {expression} AS value FROM selected LIMIT 0").types[0])
