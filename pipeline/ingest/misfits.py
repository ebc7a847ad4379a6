"""Find the rows whose values do not fit the types of their source's columns."""

import json
from collections.abc import Collection, Mapping

import duckdb
import polars as pl

from ...schemas.source_settings import Source
from ..corpus.sql import quote, quote_name
from .column_types import family, fits, parse_type

MISFIT = {"_row": pl.UInt32, "detail": pl.String}
"""The columns of a frame of misfits: a row of the batch, and which value does not fit which column."""

_LATE = {"negatives": "VARCHAR[]", "meta": "JSON"}  # keys that the projection takes without SQL, and their usual types
_SHOWN = 200  # characters of a value in a detail
_TEXTS = ("VARCHAR", "DOUBLE")  # types whose columns hold texts, numbers as they are written


def find_misfits(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """Find the rows of `batch` whose record, in `frame(_row, text)`, has a value of another type than its column."""
    found = [pl.DataFrame(schema=MISFIT)]
    spelled: dict[str, list[str]] = {}
    for key, kind in source.columns.items():
        if kind != "JSON":
            spelled.setdefault(key.lower(), []).append(key)
    for name in _find_late(connection, source, spelled):
        rows = connection.sql(
            f"SELECT _row FROM ({_select_values([name])}) WHERE CAST(value AS VARCHAR) NOT IN ('[]', '{{}}', '\"\"')"
        ).pl()
        cure = f'declare it, as in `columns: {{{name}: "{_LATE[name]}"}}`'
        said = pl.lit(f"{name}: none of the first records has this column; {cure}")
        found.append(rows.select(pl.col("_row").cast(pl.UInt32), detail=said))
    suspected = _find_suspected(connection, source, spelled)
    for name, keys in spelled.items():
        kind = source.columns[keys[0]]
        if kind in _TEXTS and name not in suspected:
            continue
        misfits = (_find_no_texts if kind in _TEXTS else _find_no_structures)(connection, keys, kind)
        if misfits.height:
            value = pl.col("value").str.slice(0, _SHOWN)
            detail = pl.format("{}: expected {}, found {}", pl.lit(keys[0]), pl.lit(kind), value)
            found.append(misfits.select(pl.col("_row").cast(pl.UInt32), detail=detail))
    return pl.concat(found).unique("_row", keep="first", maintain_order=True)


def _find_late(connection: duckdb.DuckDBPyConnection, source: Source, spelled: Collection[str]) -> list[str]:
    """Find the keys of records that would be columns without any SQL, had the sample had them."""
    names = [name for name in _LATE if name not in spelled and getattr(source, name) is None]
    return _find_true(connection, "frame", {name: f"contains(text, '\"{name}\"')" for name in names})


def _find_suspected(
    connection: duckdb.DuckDBPyConnection, source: Source, spelled: Mapping[str, list[str]]
) -> list[str]:
    """Find the columns of texts that may hold something else in some row."""
    kinds = {name: source.columns[keys[0]] for name, keys in spelled.items()}
    conditions = {name: _suspects(keys[0], kinds[name]) for name, keys in spelled.items() if kinds[name] in _TEXTS}
    return _find_true(connection, "batch", conditions)


def _find_true(connection: duckdb.DuckDBPyConnection, table: str, conditions: Mapping[str, str]) -> list[str]:
    """Return the names of the conditions that are true in some row of a table."""
    if not conditions:
        return []
    (row,) = connection.sql(
        f"SELECT {', '.join(f'bool_or({one})' for one in conditions.values())} FROM {table}"
    ).fetchall()
    return [name for name, is_true in zip(conditions, row, strict=True) if is_true]


def _suspects(column: str, kind: str) -> str:
    """Return the condition for texts that may be something else: as texts, lists and objects begin with a bracket."""
    name = quote_name(column)
    if kind == "DOUBLE":
        return f"({name} IS NOT NULL AND TRY_CAST({name} AS DOUBLE) IS NULL)"
    return f"(starts_with({name}, '{{') OR starts_with({name}, '['))"


def _find_no_texts(connection: duckdb.DuckDBPyConnection, keys: list[str], kind: str) -> pl.DataFrame:
    """Find lists and objects where a scalar is expected, and texts where a number is."""
    unfit = "true" if kind == "DOUBLE" else "json_type(value) IN ('OBJECT', 'ARRAY')"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE suspects AS SELECT _row, text FROM frame WHERE _row IN "
        f"(SELECT _row FROM batch WHERE {_suspects(keys[0], kind)})"
    )
    misfits: pl.DataFrame = connection.sql(
        f"SELECT _row, value FROM ({_select_values(keys, 'suspects')}) WHERE {unfit}"
    ).pl()
    return misfits


def _find_no_structures(connection: duckdb.DuckDBPyConnection, keys: list[str], kind: str) -> pl.DataFrame:
    """Find values of another structure, by one example of each structure that the batch has."""
    connection.execute(f"""CREATE OR REPLACE TEMP TABLE structures AS
        SELECT _row, value, CASE WHEN contains(structure, '"JSON"') THEN value ELSE structure END AS structure
        FROM (SELECT _row, CAST(value AS VARCHAR) AS value, CAST(json_structure(value) AS VARCHAR) AS structure
              FROM ({_select_values(keys)}) WHERE value IS NOT NULL)""")  # "JSON" stands for values that differ
    examples = connection.sql("SELECT structure, any_value(value) FROM structures GROUP BY structure").fetchall()
    expected = parse_type(kind)
    unfit = [structure for structure, value in examples if not fits(json.loads(value), expected)]
    failed = f"SELECT _row FROM batch WHERE {quote_name(keys[0])} IS NULL"  # such as '2024-13-01' for a DATE
    misfits = f"SELECT _row, value FROM structures WHERE list_contains($unfit, structure) OR _row IN ({failed})"
    found: pl.DataFrame = connection.sql(misfits, params={"unfit": unfit}).pl()
    return found


def _select_values(keys: list[str], table: str = "frame") -> str:
    """Return a SELECT for the values, in JSON, of the first of these keys that a record has."""
    values = (f"from_json(text, {quote(json.dumps({key: 'JSON'}))}).{quote_name(key)}" for key in keys)
    return f"SELECT _row, coalesce({', '.join(values)}, NULL) AS value FROM {table}"


def cast_columns(connection: duckdb.DuckDBPyConnection, source: Source, has_types: bool) -> pl.DataFrame:
    """Cast the columns of `batch` to the types of the source's columns, and find the rows whose values do not fit.

    Numbers of any type fit DOUBLE and stay as they are.

    Args:
        has_types: Whether the file has types, so that a text is a text, even if it looks like a list.
    """
    batch = connection.sql("FROM batch")
    found = [pl.DataFrame(schema=MISFIT)]
    casts: list[str] = []
    wanted = {name.lower(): kind for name, kind in source.columns.items()}
    for name, kind in zip(batch.columns, map(str, batch.types), strict=True):
        expected = wanted.get(name.lower(), kind)
        if expected == kind or (expected == "DOUBLE" and _is_number(kind)):
            continue
        column = quote_name(name)
        given = f"nullif(trim({column}), '')" if kind == "VARCHAR" else column  # an empty cell of a table is NULL
        can_fit = not has_types or family(kind) == family(expected)
        cast = f"TRY_CAST({given} AS {expected})" if can_fit else f"NULL::{expected}"
        misfits = connection.sql(
            f"SELECT _row, CAST({column} AS VARCHAR) AS value FROM batch WHERE {given} IS NOT NULL AND {cast} IS NULL"
        ).pl()
        value = pl.col("value").str.slice(0, _SHOWN)
        detail = pl.format("{}: expected {}, found {} of type {}", pl.lit(name), pl.lit(expected), value, pl.lit(kind))
        found.append(misfits.select(pl.col("_row").cast(pl.UInt32), detail=detail))
        if not (expected == "DOUBLE" and kind == "VARCHAR"):  # texts keep numbers as they are written
            casts.append(f"{cast} AS {column}")
    if casts:
        connection.execute(f"CREATE OR REPLACE TABLE batch AS SELECT * REPLACE ({', '.join(casts)}) FROM batch")
    return pl.concat(found).unique("_row", keep="first", maintain_order=True)


def _is_number(kind: str) -> bool:
    return kind.startswith(("DECIMAL", "FLOAT", "DOUBLE")) or kind.endswith(("INT", "INTEGER"))
