"""Check what a language model has answered: whether it can be read, its faults, and whether it was written before."""

import polars as pl

from ..llm_client.client import Answer
from ..text.match_key import match_key
from .answers import ANSWERED, parse
from .faults import faults

UNCHECKED = pl.col("reason").is_null()


def add_answers(rows: pl.DataFrame, answers: list[Answer | None], problems: dict[str, str]) -> pl.DataFrame:
    """Add the answer to each request, `raw`, `tokens` and `answer_tokens`; requests that were not sent are left out.

    Those that failed get the reason `failed`.
    """
    found = rows.with_columns(
        raw=pl.Series([None if answer is None else answer.text for answer in answers], dtype=pl.String),
        tokens=pl.Series([answer.tokens if answer else 0 for answer in answers], dtype=pl.Int64),
        answer_tokens=pl.Series([answer.answer_tokens if answer else 0 for answer in answers], dtype=pl.Int64),
        is_first=pl.col("request").is_first_distinct(),
        detail=pl.col("request").replace_strict(problems, default=None, return_dtype=pl.String),
    )
    reason = pl.when(pl.col("raw").is_null()).then(pl.lit("failed"))
    paid = pl.col("tokens", "answer_tokens") * pl.col("is_first")  # several rows may share a request
    found = found.with_columns(paid, reason=reason).drop("is_first")
    return found.filter(pl.col("raw").is_not_null() | pl.col("detail").is_not_null())


def read_queries(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `query`, `answer` and `positive`, and the reasons of answers that can't be read or break a rule."""
    written = [None if raw is None else parse(raw, kind) for raw, kind in rows.select("raw", "kind").iter_rows()]
    found = rows.with_columns(
        query=pl.Series([each and each.query for each in written], dtype=pl.String),
        answer=pl.Series([each and each.answer for each in written], dtype=pl.String),
    )
    is_answer = pl.col("kind").is_in(list(ANSWERED))
    positive = pl.when(pl.col("query").is_not_null()).then(pl.when(is_answer).then("answer").otherwise("passage"))
    found = reject(found.with_columns(positive=positive), pl.col("query").is_null(), "unparsed", "raw")
    shown = pl.coalesce("original", "passage").alias("passage")
    found = found.with_columns(rule=faults(found.select(shown, "query", "answer", "kind", "language")))
    found = found.with_columns(
        reason=pl.coalesce("reason", "rule"),
        detail=pl.when(UNCHECKED & pl.col("rule").is_not_null()).then("query").otherwise("detail"),
    ).drop("rule")
    return _reject_duplicates(found)


def _reject_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Reject queries that say what one in an earlier row does, but for case, width and punctuation.

    One that answers the same request is no copy: the query that it translates has several passages.
    """
    key = pl.when(UNCHECKED).then(match_key(pl.col("query")))
    found = rows.with_columns(key=key).with_columns(
        pl.col("request", "passage").first().over("key").name.prefix("first_")
    )
    is_copy = pl.col("request") != pl.col("first_request")
    is_same = pl.col("passage") == pl.col("first_passage")
    found = reject(found, is_copy & is_same, "duplicate_within_passage", "query")
    return reject(found, is_copy, "duplicate_across_passages", "query").select(rows.columns)


def reject(rows: pl.DataFrame, applies: pl.Expr, reason: str, detail: str | pl.Expr) -> pl.DataFrame:
    """Give the rows to which a condition applies a reason and a detail, unless they have one."""
    is_new = UNCHECKED & applies
    shown = pl.col(detail) if isinstance(detail, str) else detail
    return rows.with_columns(
        reason=pl.when(is_new).then(pl.lit(reason)).otherwise("reason"),
        detail=pl.when(is_new).then(shown).otherwise("detail"),
    )
