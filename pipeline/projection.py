"""The recipe's SQL over the table `rows`: the columns of the pair, and for every row that gives no pair the reason."""

import re
from dataclasses import dataclass

import duckdb
import polars as pl

from ..schemas.settings import Source
from .readers import SourceError

REJECTED_ROW = "_row, _file AS file, _line AS line, CAST(to_json(rows) AS VARCHAR) AS record"

_MISSING = re.compile(r'Referenced (?:column|table) "(.+?)" not found|does not have a column named "(.+?)"')


@dataclass(frozen=True)
class Projected:
    """What became of the rows in the table `rows`."""

    pairs: pl.DataFrame
    problems: pl.DataFrame
    missing: list[str]  # columns that the SQL names and none of these rows has
    left_out: int  # rows that `where` gives to no source, or to another


def project(connection: duckdb.DuckDBPyConnection, source: Source) -> Projected:
    """Pairs and problems of the rows in the table `rows`.

    A column that these rows lack is NULL: others of the source may have it.

    Raises:
        SourceError, duckdb.Error: the SQL does not fit the rows.
    """
    missing: dict[str, str] = {}
    while True:
        nulls = "".join(f', {null} AS "{name}"' for name, null in missing.items())
        connection.execute(f"CREATE OR REPLACE VIEW rows AS SELECT *{nulls} FROM batch")
        try:
            projected = _project(connection, source)
        except duckdb.BinderException as error:
            found = _MISSING.search(str(error))
            is_struct = "Referenced table" in str(error)  # `name.field` or `name.field.field`
            name = (found[1].partition(".")[0] if is_struct else found[1] or found[2]) if found else None
            if name is None or name in missing or re.search(rf"\b{re.escape(name)}\b", source.where or ""):
                raise  # a row that `where` can't judge is none that belongs elsewhere
            missing[name] = "NULL::JSON" if is_struct else "NULL"  # JSON has every field
        else:
            pairs, problems = _judge(connection, source, projected, list(missing))
            return Projected(pairs, problems, list(missing), _left_out(connection, source))


def _left_out(connection: duckdb.DuckDBPyConnection, source: Source) -> int:
    if not source.where:
        return 0
    query = f"SELECT count(*) FROM selected WHERE NOT coalesce(({source.where})::BOOLEAN, false)"
    ((rows,),) = connection.execute(query).fetchall()
    return int(rows)


def unfit(connection: duckdb.DuckDBPyConnection, source: Source, error: Exception) -> pl.DataFrame:
    """Every row as a problem: nothing is lost, each says why it stayed out."""
    detail = f"source {source.name}: {str(error).strip()} {_columns_there(connection)}"
    connection.execute("CREATE OR REPLACE VIEW rows AS FROM batch")
    rows: pl.DataFrame = connection.sql(f"SELECT {REJECTED_ROW} FROM rows").pl()
    return rows.drop("_row").with_columns(reason=pl.lit("projection"), detail=pl.lit(detail))


def _columns_there(connection: duckdb.DuckDBPyConnection) -> str:
    names = [name for name in connection.sql("FROM batch").columns if name not in ("_row", "_file", "_line")]
    return f"Columns there are: {', '.join(names) or 'none'}"


def _project(connection: duckdb.DuckDBPyConnection, source: Source) -> pl.DataFrame:
    """The pair's columns of every selected row; where SQL gives NULL, NULL.

    Rows of the file that `select` makes no row of are there too, with `no_pair` true.
    """
    select = f"{source.select}, rows.*" if source.select and not source.from_ else source.select or "*"
    connection.execute(f"CREATE OR REPLACE VIEW selected AS SELECT {select} FROM {source.from_ or 'rows'}")
    has_place = "_row" in connection.sql("FROM selected").columns
    place = "_row, _file, _line" if has_place else "NULL AS _row, NULL AS _file, NULL AS _line"
    negatives = source.negatives or _own(connection, "negatives", "[]")
    kind = _kind(connection, negatives)
    if not kind.endswith("]") and kind not in ("JSON", '"NULL"', "NULL"):
        raise SourceError(f"negatives: expected a list of strings, found {kind}.")
    own_meta = _own(connection, "meta", "{}")
    columns = {
        "query": _text(connection, source.query),
        "positive": _text(connection, source.positive),
        "negatives": f"TRY_CAST({_guarded(connection, negatives)} AS VARCHAR[])",
        "label": f"TRY_CAST({_guarded(connection, source.label or 'NULL')} AS FLOAT)",
        "meta": f"CAST({_guarded(connection, f'to_json({source.meta or own_meta})')} AS VARCHAR)",
    }
    values = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    where = f"WHERE {source.where}" if source.where else ""
    projected: pl.DataFrame = connection.sql(f"SELECT {place}, {values}, false AS no_pair FROM selected {where}").pl()
    if has_place:
        unused = connection.sql("SELECT _row, _file, _line FROM rows ANTI JOIN selected USING (_row)").pl()
        projected = pl.concat([projected, unused.with_columns(no_pair=pl.lit(True))], how="diagonal")
    return projected


def _guarded(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """The expression with NULL where it fails on a row; as it is where DuckDB can't guard it (a subquery)."""
    guarded = f"TRY({expression})"
    try:
        connection.sql(f"SELECT {guarded} FROM selected LIMIT 0")
    except duckdb.BinderException:
        return f"({expression})"
    return guarded


def _text(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    """An expression as text; of a JSON value its content, not its quoted form."""
    guarded = _guarded(connection, expression)
    return f"{guarded} ->> '$'" if _kind(connection, guarded) == "JSON" else f"CAST({guarded} AS VARCHAR)"


def _kind(connection: duckdb.DuckDBPyConnection, expression: str) -> str:
    return str(connection.sql(f"SELECT {expression} AS value FROM selected LIMIT 0").types[0])


def _own(connection: duckdb.DuckDBPyConnection, column: str, otherwise: str) -> str:
    """What a shape brings where the recipe gives no SQL."""
    return column if column in connection.sql("FROM selected").columns else f"'{otherwise}'::JSON"


def _judge(
    connection: duckdb.DuckDBPyConnection, source: Source, projected: pl.DataFrame, missing: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split projected rows into pairs and rejects."""
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
    bad = judged.filter(pl.col("reason").is_not_null())
    connection.register("bad", bad.select(pl.col("_row").cast(pl.Int64)).to_arrow())
    rows = connection.sql(f"SELECT {REJECTED_ROW} FROM rows SEMI JOIN bad USING (_row)").pl()
    rejects = bad.select(pl.col("_row").cast(pl.Int64), "query", "positive", "label", "meta", "reason").join(
        rows.with_columns(pl.col("_row").cast(pl.Int64)), on="_row", how="left", maintain_order="left"
    )
    return judged.filter(pl.col("reason").is_null()), rejects.select(
        pl.col("file").fill_null(""),  # `from:` left the row's place out
        "line",
        pl.coalesce("record", pl.struct("query", "positive", "label", "meta").struct.json_encode()),
        pl.lit("projection").alias("reason") if missing else pl.col("reason"),
        detail=pl.lit(
            f"source {source.name}: these rows have no column {', '.join(missing)}. {_columns_there(connection)}"
        )
        if missing
        else pl.when(pl.col("reason") == "no_pair")
        .then(pl.lit("`select` makes no row of it"))
        .otherwise(pl.lit("the recipe's SQL gave NULL here")),
    )
