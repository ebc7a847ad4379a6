"""Find the rows whose values do not fit the types of their source's columns."""

import json

import duckdb
import polars as pl

from ...schemas.settings import Source
from ..corpus.sql import quote, quote_name
from .column_types import family, fits, parse_type

MISFIT = {"_row": pl.UInt32, "detail": pl.String}
"""The columns of a frame of misfits: a row of the batch, and which value does not fit which column."""

_LATE = {"negatives": "VARCHAR[]", "meta": "JSON"}  # keys that the projection takes without SQL, and their usual types
_SHOWN = 200  # characters of a value in a detail
_TEXTS = ("VARCHAR", "DOUBLE")  # types whose columns hold texts, numbers as they are written


def find_misfits(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """Find the rows of `batch` whose record, in `frame(_row, quoted)`, has a value of another type than its column."""
    found = [pl.DataFrame(schema=MISFIT)]
    spelled: dict[str, list[str]] = {}
    for key, kind in source.columns.items():
        if kind != "JSON":
            spelled.setdefault(key.lower(), []).append(key)
    for name in _LATE:
        if name not in spelled and getattr(source, name) is None:
            rows = connection.sql(_find_late(name)).pl()
            cure = f'declare it, as in `columns: {{{name}: "{_LATE[name]}"}}`'
            said = pl.lit(f"{name}: none of the first records has this column; {cure}")
            found.append(rows.select(pl.col("_row").cast(pl.UInt32), detail=said))
    for keys in spelled.values():
        kind = source.columns[keys[0]]
        misfits = (_find_no_texts if kind in _TEXTS else _find_no_structures)(connection, keys, kind)
        if misfits.height:
            value = pl.col("value").str.slice(0, _SHOWN)
            detail = pl.format("{}: expected {}, found {}", pl.lit(keys[0]), pl.lit(kind), value)
            found.append(misfits.select(pl.col("_row").cast(pl.UInt32), detail=detail))
    return pl.concat(found).unique("_row", keep="first", maintain_order=True)


def _find_late(name: str) -> str:
    """Return a SELECT for the rows with a value for a key that would be a column without SQL, had the sample had it."""
    return f"""SELECT _row FROM ({_select_values([name], f"contains(quoted, '{name}')")})
        WHERE value IS NOT NULL AND CAST(value AS VARCHAR) NOT IN ('[]', '{{}}', '""')"""


def _find_no_texts(connection: duckdb.DuckDBPyConnection, keys: list[str], kind: str) -> pl.DataFrame:
    """Find lists and objects where a scalar is expected; as texts they begin with a bracket, as few others do."""
    name = quote_name(keys[0])
    suspicious = f"TRY_CAST({name} AS DOUBLE) IS NULL" if kind == "DOUBLE" else f"{name}[1] IN ('{{', '[')"
    suspects = connection.sql(f"SELECT _row FROM batch WHERE {name} IS NOT NULL AND {suspicious}").to_arrow_table()
    if not suspects.num_rows:
        return pl.DataFrame(schema={"_row": pl.UInt32, "value": pl.String})
    unfit = "true" if kind == "DOUBLE" else "json_type(value) IN ('OBJECT', 'ARRAY')"
    connection.register("suspects", suspects)
    misfits: pl.DataFrame = connection.sql(
        f"SELECT _row, value FROM ({_select_values(keys)}) SEMI JOIN suspects USING (_row) WHERE {unfit}"
    ).pl()
    connection.unregister("suspects")
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


def _select_values(keys: list[str], condition: str = "true") -> str:
    """Return a SELECT for the values, in JSON, of the first of these keys that a record has."""
    values = (f"from_json(record, {quote(json.dumps({key: 'JSON'}))}).{quote_name(key)}" for key in keys)
    return (
        f"SELECT _row, coalesce({', '.join(values)}, NULL) AS value FROM (SELECT _row, CAST(quoted AS JSON) AS record "
        f"FROM frame WHERE {condition})"
    )


def cast_columns(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """Cast the columns of `batch` to the types of the source's columns, and find the rows whose values do not fit.

    Numbers of any type fit DOUBLE and stay as they are.
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
        cast = f"TRY_CAST({given} AS {expected})" if family(kind) == family(expected) else f"NULL::{expected}"
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
