"""Run the recipe's SQL over the table `rows`: it gives the columns of a pair; rows without a pair get a reason."""

import re
from dataclasses import dataclass

import duckdb
import polars as pl

from ...schemas.settings import Source
from .problems import PLACE
from .readers import SourceError

_NUMBER = "row_number() OVER () AS _pair"
"""Numbers the rows, as `_row` numbers records and one record may give several rows."""

_RECORD = "CAST(to_json(_batch) AS VARCHAR) AS record"
_MISSING = re.compile(r'Referenced (?:column|table) "(.+?)" not found|does not have a column named "(.+?)"')


@dataclass(frozen=True)
class Projected:
    """The pairs and problems that the table `rows` gives."""

    pairs: pl.DataFrame
    problems: pl.DataFrame
    missing: list[str]  # columns that the SQL names but these rows lack
    left_out: int  # rows excluded by `where`


def project(connection: duckdb.DuckDBPyConnection, source: Source) -> Projected:
    """Turn the rows of the batch into pairs and problems.

    A column that these rows lack is taken as NULL, since other rows of the source may have it.

    Raises:
        SourceError, duckdb.Error: the SQL does not fit the rows.
    """
    missing: dict[str, str] = {}
    while True:
        nulls = "".join(f', {null} AS "{name}"' for name, null in missing.items())
        connection.execute(f"CREATE OR REPLACE VIEW rows AS SELECT {_NUMBER}, *{nulls} FROM batch")
        try:
            projected = _project(connection, source)
        except duckdb.BinderException as error:
            found = _MISSING.search(str(error))
            is_struct = "Referenced table" in str(error)  # `name.field` or `name.field.field`
            name = (found[1].partition(".")[0] if is_struct else found[1] or found[2]) if found else None
            if name is None or name in missing or re.search(rf"\b{re.escape(name)}\b", source.where or ""):
                raise  # without that column it is unknown what `where` excludes
            missing[name] = "NULL::JSON" if is_struct else "NULL"  # JSON has every field
        else:
            pairs, problems = _judge(connection, source, projected, list(missing))
            return Projected(pairs, problems, list(missing), _count_left_out(connection, source))


def _count_left_out(connection: duckdb.DuckDBPyConnection, source: Source) -> int:
    if not source.where:
        return 0
    query = f"SELECT count(*) FROM selected WHERE NOT coalesce(({source.where}\n)::BOOLEAN, false)"
    ((rows,),) = connection.execute(query).fetchall()
    return int(rows)


def reject_batch(connection: duckdb.DuckDBPyConnection, source: Source, error: Exception) -> pl.DataFrame:
    """Return every row of the batch as a problem, with this error as the detail."""
    detail = f"source {source.name}: {str(error).strip()} {_list_columns(connection)}"
    rows: pl.DataFrame = connection.sql(f"SELECT _file AS file, _line AS line, {_RECORD} FROM batch AS _batch").pl()
    return rows.with_columns(reason=pl.lit("projection"), detail=pl.lit(detail))


def _list_columns(connection: duckdb.DuckDBPyConnection) -> str:
    names = [name for name in connection.sql("FROM batch").columns if name not in PLACE]
    return f"Available columns: {', '.join(names) or 'none'}"


def _project(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """Compute the columns of a pair for each row that `select` and `where` leave; values may be NULL.

    Rows for which `select` gives no row are included, with `no_pair` true.
    """
    select = f"{source.select}\n, rows.*" if source.select and not source.from_ else source.select or "*"
    connection.execute(f"CREATE OR REPLACE VIEW selected AS SELECT {select}\nFROM {source.from_ or 'rows'}")
    there = connection.sql("FROM selected").columns
    place = ", ".join(name if name in there else f"NULL AS {name}" for name in ("_pair", "_file", "_line"))
    negatives = f"({source.negatives or _own_column(connection, 'negatives', '[]')}\n)"
    kind = _find_type(connection, negatives)
    if not kind.endswith("]") and kind not in ("JSON", '"NULL"', "NULL"):
        raise SourceError(f"negatives: expected a list of strings, found {kind}.")
    meta = f"to_json({source.meta or _own_column(connection, 'meta', '{}')}\n)"
    columns = {
        "query": _as_text(connection, source.query),
        "positive": _as_text(connection, source.positive),
        "negatives": f"TRY_CAST({_guard(connection, negatives)} AS VARCHAR[])",
        "label": f"TRY_CAST({_guard(connection, source.label or 'NULL')} AS FLOAT)",
        "meta": f"CAST({_guard(connection, meta)} AS VARCHAR)",
    }
    values = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    where = f"WHERE {source.where}" if source.where else ""
    projected: pl.DataFrame = connection.sql(f"SELECT {place}, {values}, false AS no_pair FROM selected {where}").pl()
    if "_pair" in there:
        unused = connection.sql("SELECT _pair, _file, _line FROM rows ANTI JOIN selected USING (_pair)").pl()
        projected = pl.concat([projected, unused.with_columns(no_pair=pl.lit(True))], how="diagonal")
    return projected


def _guard(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """Wrap an expression so that it is NULL on rows where it fails; unchanged if DuckDB can't do that (a subquery)."""
    guarded = f"TRY({expression}\n)"  # the expression may end in a comment
    try:
        connection.sql(f"SELECT {guarded} FROM selected LIMIT 0")
    except duckdb.BinderException:
        return f"({expression}\n)"
    return guarded


def _as_text(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """Convert an expression to text: JSON strings lose their quotes, bytes are decoded (NULL if they are not UTF-8).

    Raises:
        SourceError: its value is a list, a struct or a map.
    """
    guarded = _guard(connection, expression)
    kind = _find_type(connection, guarded)
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP")):
        raise SourceError(
            f"{expression.strip()}: expected text, found {kind}. Unnest it in `select`, or take one element with [1]."
        )
    if kind == "BLOB":
        return _guard(connection, f"decode({expression}\n)")
    return f"{guarded} ->> '$'" if kind == "JSON" else f"CAST({guarded} AS VARCHAR)"


def _find_type(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    return str(connection.sql(f"SELECT {expression} AS value FROM selected LIMIT 0").types[0])


def _own_column(connection: duckdb.DuckDBPyConnection, column: str, otherwise: str) -> str:
    """Return a column for which the recipe has no SQL: the rows' own if there is one, else `otherwise` as JSON."""
    return column if column in connection.sql("FROM selected").columns else f"'{otherwise}'::JSON"


def _judge(
    connection: duckdb.DuckDBPyConnection, source: Source, projected: pl.DataFrame, missing: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split projected rows into pairs, and problems with a reason."""
    reason = (
        pl.when(pl.col("no_pair"))
        .then(pl.lit("no_pair"))
        .when(pl.col("query").is_null())
        .then(pl.lit("no_query"))
        .when(pl.col("positive").is_null())
        .then(pl.lit("no_positive"))
        .when(pl.lit(source.task == "sts") & ~pl.col("label").is_finite().fill_null(False))
        .then(pl.lit("no_label"))
    )
    judged = projected.with_columns(reason=reason)
    bad = judged.filter(pl.col("reason").is_not_null()).with_columns(pl.col("_pair").cast(pl.Int64))
    connection.register("bad", bad.select("_pair").to_arrow())
    numbered = f"(SELECT {_NUMBER}, _batch FROM batch AS _batch)"
    records = connection.sql(f"SELECT _pair, {_RECORD} FROM {numbered} SEMI JOIN bad USING (_pair)").pl()
    rejects = bad.join(records, on="_pair", how="left", maintain_order="left")
    row = pl.when(pl.col("_pair").is_first_distinct()).then("record")  # only its first reject keeps the whole row
    return judged.filter(pl.col("reason").is_null()), rejects.select(
        pl.col("_file").cast(pl.String).fill_null("").alias("file"),  # SQL in `from:` may drop the row's place
        pl.col("_line").cast(pl.Int64).alias("line"),
        pl.coalesce(row, pl.struct("query", "positive", "label", "meta").struct.json_encode()).alias("record"),
        *_explain(connection, source, missing),
    )


def _explain(connection: duckdb.DuckDBPyConnection, source: Source, missing: list[str]) -> tuple[pl.Expr, pl.Expr]:
    """Return the expressions for `reason` and `detail` of a row that is rejected because the recipe's SQL made no pair.

    `missing` lists the columns that the SQL names and these rows don't have. If one of them is used by the expression
    that gave NULL, the reason becomes `projection`, and the detail lists the columns that there are.
    """
    reason = pl.col("reason")
    detail = (
        pl.when(reason == "no_pair")
        .then(pl.lit("`select` gives no row for it"))
        .otherwise(pl.lit("the recipe's SQL gave NULL here"))
    )
    if not missing:
        return reason, detail.alias("detail")
    sql = {
        "no_pair": f"{source.select or ''} {source.from_ or ''}",
        "no_query": source.query,
        "no_positive": source.positive,
        "no_label": source.label or "",
    }
    names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, missing))})(?!\w)")
    to_blame = reason.is_in([name for name, expression in sql.items() if names.search(expression)])
    lacking = pl.lit(
        f"source {source.name}: these rows have no column {', '.join(missing)}. {_list_columns(connection)}"
    )
    return (
        pl.when(to_blame).then(pl.lit("projection")).otherwise(reason).alias("reason"),
        pl.when(to_blame).then(lacking).otherwise(pl.format("{}; {}", detail, lacking)).alias("detail"),
    )
