"""Run the recipe's SQL over the table `rows`: it gives the columns of a pair; rows without a pair get a reason."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from ...schemas.source_settings import Source
from .expressions import (
    Decimals,
    as_json,
    as_numbers,
    as_text,
    as_texts,
    choose_binding,
    find_decimals,
    find_missing,
    guard,
    list_readings,
    unmark_numbers,
)
from .problems import PLACE, no_problems
from .readers import find_reader
from .shown_records import show_records, show_rows

_NUMBER = "row_number() OVER () AS _pair"
"""Numbers the rows, as `_row` numbers records and one record may give several rows."""

_STRING_OR_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)')
_LISTED = 50  # columns in a message
_LOOKED_AT = 1_000  # records whose keys are listed in a message


@dataclass(frozen=True)
class Projected:
    """The pairs and problems that the table `rows` gives."""

    pairs: pl.DataFrame
    problems: pl.DataFrame
    missing: list[str]  # columns that the SQL names but these rows lack
    left_out: int  # rows excluded by `where`


def project(
    connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame, plans: "Plans | None" = None
) -> Projected:
    """Turn the rows of the batch, which was loaded from `frame`, into pairs and problems.

    A column that these rows lack is taken as NULL, since other rows of the source may have it.

    Args:
        plans: The plans of earlier batches of the source, for those with the same columns; new ones are added.

    Raises:
        SourceError, duckdb.Error: the SQL does not fit the rows.
    """
    batch = connection.sql("FROM batch")
    schema = tuple(zip(batch.columns, map(str, batch.types), strict=True))
    plans = {} if plans is None else plans
    plan = plans[schema] = plans.get(schema) or _plan(connection, source)
    for view in plan.views:
        connection.execute(view)
    projected: pl.DataFrame = connection.sql(plan.pairs).pl()
    if plan.unused:
        unused = connection.sql(plan.unused).pl()
        projected = pl.concat([projected, unused.with_columns(no_pair=pl.lit(True))], how="diagonal_relaxed")
    ((left_out,),) = connection.sql(plan.left_out).fetchall() if plan.left_out else ((0,),)
    projected = projected.with_columns(meta=_keep_valid(unmark_numbers(pl.col("meta"))))
    pairs, problems = _judge(connection, source, frame, projected, plan.missing)
    return Projected(pairs, problems, plan.missing, int(left_out))


@dataclass(frozen=True)
class Plan:
    """The SQL by which batches with certain columns become pairs.

    Attributes:
        views: Creates `rows` and `selected`.
        pairs: Selects the columns of a pair for each row that `select` and `where` leave; values may be NULL.
        unused: Selects the rows of which `select` or `from` gives no row. None without both, or if they drop `_pair`.
        left_out: Counts the rows that `where` excludes, or None without `where`.
        missing: Columns that the SQL names but these rows lack.
    """

    views: list[str]
    pairs: str
    unused: str | None
    left_out: str | None
    missing: list[str]


Plans = dict[tuple[tuple[str, str], ...], Plan]
"""Plans by the names and types of the batch's columns."""


def _plan(connection: duckdb.DuckDBPyConnection, source: Source) -> Plan:
    decimals = find_decimals(connection, source)
    missing: dict[str, str] = {}
    select = source.select
    while True:
        nulls = "".join(f', {null} AS "{name}"' for name, null in missing.items())
        rows = f"CREATE OR REPLACE VIEW rows AS SELECT {_NUMBER}, *{nulls} FROM batch"
        connection.execute(rows)
        try:
            return _plan_with(connection, source, select, decimals, rows, list(missing))
        except duckdb.BinderException as error:
            name, is_struct = find_missing(error) or ("", False)
            if not name and select and select != as_numbers(select, decimals):
                select = as_numbers(select, decimals)  # the other keys may compute with what it selects
                continue
            if not name or name in missing or re.search(rf"\b{re.escape(name)}\b", source.where or ""):
                raise  # without that column it is unknown what `where` excludes
            missing[name] = "NULL::JSON" if is_struct else "NULL"  # JSON has every field


def reject_batch(
    connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame, error: Exception
) -> pl.DataFrame:
    """Return every row of the batch as a problem, with this error as the detail."""
    detail = f"source {source.name}: {str(error).strip()} {_list_columns(connection, source, frame)}"
    rows: pl.DataFrame = connection.sql("SELECT _row FROM batch").pl()
    return show_records(frame, rows.with_columns(reason=pl.lit("projection"), detail=pl.lit(detail)))


def _list_columns(connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame) -> str:
    names = [name for name in connection.sql("FROM batch").columns if name not in PLACE]
    if find_reader(source).has_keys and not source.options.whole:  # only the keys that the SQL names became columns
        names = list(dict.fromkeys(key for text in frame["text"].head(_LOOKED_AT) for key in json.loads(text)))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"Available columns: {', '.join(names[:_LISTED]) or 'none'}{more}"


def _plan_with(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    select: str | None,
    decimals: Decimals,
    rows: str,
    missing: list[str],
) -> Plan:
    """Plan the projection of the view `rows`. Raises duckdb.BinderException if it lacks a column."""
    selected = _select(connection, source, select, decimals)
    connection.execute(selected)
    there = connection.sql("FROM selected").columns
    place = ", ".join(name if name in there else f"NULL AS {name}" for name in ("_pair", "_file", "_line"))
    query, query_found = as_text(connection, "''" if source.task == "passage" else source.query, decimals)
    positive, positive_found = as_text(connection, source.positive, decimals)
    given = source.negatives or _own_column(connection, "negatives", "[]")
    negatives, negatives_found = as_texts(connection, given, decimals)
    label = guard(connection, as_numbers(source.label or "NULL", decimals))
    columns = {
        "query": query,
        "query_found": query_found,
        "positive": positive,
        "positive_found": positive_found,
        "negatives": negatives,
        "negatives_found": negatives_found,
        "label": f"TRY_CAST({label} AS FLOAT)",
        "meta": as_json(connection, source.meta or _own_column(connection, "meta", "{}"), decimals),
    }
    values = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    where = source.where and choose_binding(connection, "selected", as_numbers(source.where, decimals), source.where)
    pairs = f"SELECT {place}, {values}, false AS no_pair FROM selected {f'WHERE {where}' if where else ''}"
    connection.sql(f"{pairs}\nLIMIT 0")  # binds all of it
    return Plan(
        views=[rows, selected],
        pairs=pairs,
        unused="SELECT _pair, _file, _line FROM rows ANTI JOIN selected USING (_pair)"
        if (source.select or source.from_) and "_pair" in there
        else None,
        left_out=f"SELECT count(*) FROM selected WHERE NOT coalesce(({where}\n)::BOOLEAN, false)" if where else None,
        missing=missing,
    )


def _select(connection: duckdb.DuckDBPyConnection, source: Source, select: str | None, decimals: Decimals) -> str:
    """Return SQL that creates the view `selected`: the rows with the columns that `select` adds."""
    table = source.from_ or "rows"
    all_columns = "\n, rows.*" if select and not source.from_ else ""
    chosen = choose_binding(connection, table, *list_readings(select, decimals)) if select else "*"
    return f"CREATE OR REPLACE VIEW selected AS SELECT {chosen}{all_columns}\nFROM {table}"


def _own_column(connection: duckdb.DuckDBPyConnection, column: str, otherwise: str) -> str:
    """Return a column for which the recipe has no SQL: the rows' own if there is one, else `otherwise` as JSON."""
    return column if column in connection.sql("FROM selected").columns else f"'{otherwise}'::JSON"


def _judge(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    frame: pl.DataFrame,
    projected: pl.DataFrame,
    missing: Sequence[str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split projected rows into pairs, and problems with a reason."""
    reason = (
        pl.when(pl.col("no_pair"))
        .then(pl.lit("no_pair"))
        .when(pl.col("query").is_null())
        .then(pl.lit("no_query"))
        .when(pl.col("positive").is_null())
        .then(pl.lit("no_positive"))
        .when(pl.col("negatives_found").is_not_null())
        .then(pl.lit("column_type"))
        .when(pl.lit(source.task == "sts") & ~pl.col("label").is_finite().fill_null(False))
        .then(pl.lit("no_label"))
    )
    judged = projected.with_columns(reason=reason)
    bad = judged.filter(pl.col("reason").is_not_null()).with_columns(pl.col("_pair").cast(pl.Int64))
    explained = bad.with_columns(_explain(connection, source, frame, missing)) if bad.height else bad
    return judged.filter(pl.col("reason").is_null()), _show_rejects(connection, frame, explained)


def _show_rejects(connection: duckdb.DuckDBPyConnection, frame: pl.DataFrame, bad: pl.DataFrame) -> pl.DataFrame:
    """Return rejected rows as problems. The first row of a record has the record, the others have their values."""
    if bad.is_empty():
        return no_problems()
    connection.register("bad", bad.select("_pair").to_arrow())
    rows: pl.DataFrame = connection.sql("SELECT _pair, _row FROM rows SEMI JOIN bad USING (_pair)").pl()
    connection.unregister("bad")
    rejects = bad.join(rows, on="_pair", how="left", maintain_order="left")
    first = pl.col("_row").is_first_distinct()
    values = pl.struct("query", "positive", "label", "meta").struct.json_encode()
    return rejects.with_columns(whole=show_rows(frame, rejects["_row"])).select(
        pl.col("_file").cast(pl.String).fill_null("").alias("file"),  # SQL in `from:` may drop the row's place
        pl.col("_line").cast(pl.Int64).alias("line"),
        pl.coalesce(pl.when(first).then("whole"), values).alias("record"),
        "reason",
        "detail",
    )


def _explain(
    connection: duckdb.DuckDBPyConnection, source: Source, frame: pl.DataFrame, missing: Sequence[str]
) -> tuple[pl.Expr, pl.Expr]:
    """Return the expressions for `reason` and `detail` of a row that is rejected because the recipe's SQL made no pair.

    `missing` lists the columns that the SQL names and these rows don't have. If one of them is used by the expression
    that gave NULL, the reason becomes `projection`, and the detail lists the columns that there are.
    """
    reason = pl.col("reason")
    found = pl.coalesce(
        pl.when(reason == "no_query").then("query_found"),
        pl.when(reason == "no_positive").then("positive_found"),
        pl.when(reason == "column_type").then("negatives_found"),
    )
    detail = (
        pl.when(reason == "no_pair")
        .then(pl.lit("`select` gives no row for it"))
        .when(found.is_not_null())
        .then(
            pl.format("expected text, found {}: unnest it in `select`, or take what it holds by `->> '$.key'`", found)
        )
        .when(reason.is_in([f"no_{side}" for side in ("query", "positive") if getattr(source, side) == side]))
        .then(pl.format("the record has no {}", reason.str.strip_prefix("no_")))
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
        f"source {source.name}: these rows have no column {', '.join(missing)}. "
        f"{_list_columns(connection, source, frame)}"
    )
    return (
        pl.when(to_blame).then(pl.lit("projection")).otherwise(reason).alias("reason"),
        pl.when(to_blame).then(lacking).otherwise(pl.format("{}; {}", detail, lacking)).alias("detail"),
    )


def _keep_valid(meta: pl.Expr) -> pl.Expr:
    """Turn NaN and Infinity, which DuckDB writes for numbers but JSON does not have, into strings."""
    suspicious = meta.str.contains(r"[:\[,]-?(?:NaN|Infinity)")

    def rewrite(text: str) -> str:
        return _STRING_OR_NAN.sub(lambda found: found[0] if found[0].startswith('"') else f'"{found[0]}"', text)

    return pl.when(suspicious).then(pl.when(suspicious).then(meta).map_elements(rewrite, pl.String)).otherwise(meta)
