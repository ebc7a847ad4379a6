"""What all readers share: frames of rows and of problems, records that fit, and names that DuckDB tells apart."""

from collections.abc import Sequence

import polars as pl

from .records import LONGEST_RECORD

PLACE = ("_row", "_file", "_line")
"""Columns that say where a row comes from; no column of a file has one of these names."""

PROBLEM = {"file": pl.String, "line": pl.Int64, "record": pl.String, "reason": pl.String, "detail": pl.String}
"""The columns of problems: what a file holds that is no row, and why."""

Frames = tuple[pl.DataFrame, pl.DataFrame]
"""Rows and problems."""


def problem(file: str, line: int | None, record: str | None, reason: str, detail: str) -> pl.DataFrame:
    """Make a frame of one problem."""
    return pl.DataFrame([[file], [line], [record], [reason], [detail]], PROBLEM)


def no_problems() -> pl.DataFrame:
    """Make a frame of no problem."""
    return pl.DataFrame(schema=PROBLEM)


def fitting(records: pl.DataFrame) -> Frames:
    """Split records of `LINE` into those to read and problems: over-long ones, NUL bytes. Blank ones are dropped."""
    text = pl.col("text")
    reason = (
        pl.when(text.str.len_chars() > LONGEST_RECORD)
        .then(pl.lit("too_long"))
        .when(text.str.contains("\0", literal=True))
        .then(pl.lit("nul_bytes"))
    )
    marked = records.filter(text.str.strip_chars() != "").with_columns(reason=reason)
    bad = marked.filter(pl.col("reason").is_not_null()).select(
        file="_file",
        line="_line",
        record=shown(text),
        reason="reason",
        detail=pl.format("{} characters", text.str.len_chars()),
    )
    return marked.filter(pl.col("reason").is_null()).drop("reason"), bad


def shown(text: pl.Expr) -> pl.Expr:
    """A record as problems keep it: cut to LONGEST_RECORD, and without NUL, which few tools can read."""
    return text.str.slice(0, LONGEST_RECORD).str.replace_all("\0", "␀", literal=True)


def make_distinct(names: Sequence[str]) -> list[str]:
    """Make names differ without regard to case, as DuckDB does: the second `a`, or `A`, becomes `a_1`."""
    taken = set(PLACE)
    chosen: list[str] = []
    for name in names:
        candidates = (name if number == 0 else f"{name}_{number}" for number in range(len(names) + len(taken)))
        chosen.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
        taken.add(chosen[-1].lower())
    return chosen
