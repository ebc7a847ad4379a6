"""Helpers shared by all readers: frames of problems, the check for unusable records, distinct column names."""

from collections.abc import Sequence

import polars as pl

from .records import LONGEST_RECORD

RECORD = "_record"
"""The column in which a reader keeps the text that a row was read from, for rejects; the SQL does not see it."""

PLACE = ("_row", "_file", "_line", RECORD)
"""The columns that say where a row comes from; a file's own columns are renamed if they have these names."""

PROBLEM = {"file": pl.String, "line": pl.Int64, "record": pl.String, "reason": pl.String, "detail": pl.String}
"""The columns of a frame of problems: the parts of a file that could not become rows, and why."""

Frames = tuple[pl.DataFrame, pl.DataFrame]
"""A frame of rows and a frame of problems."""


def problem(file: str, line: int | None, record: str | None, reason: str, detail: str) -> pl.DataFrame:
    """Return a frame with one problem."""
    return pl.DataFrame([[file], [line], [record], [reason], [detail]], PROBLEM)


def no_problems() -> pl.DataFrame:
    """Return an empty frame of problems."""
    return pl.DataFrame(schema=PROBLEM)


def fitting(records: pl.DataFrame) -> Frames:
    """Split records (columns of LINE) into usable ones and problems (too long, NUL bytes); drop blank ones."""
    text = pl.col("text")
    reason = (
        pl.when(text.str.len_chars() > LONGEST_RECORD)
        .then(pl.lit("too_long"))
        .when(text.str.contains("\0", literal=True))
        .then(pl.lit("nul_bytes"))
    )
    marked = records.filter(text.str.contains(r"\S")).with_columns(reason=reason)
    bad = marked.filter(pl.col("reason").is_not_null()).select(
        file="_file",
        line="_line",
        record=shown(text),
        reason="reason",
        detail=pl.format("{} characters", text.str.len_chars()),
    )
    return marked.filter(pl.col("reason").is_null()).drop("reason"), bad


def shown(text: pl.Expr) -> pl.Expr:
    """Shorten a record to LONGEST_RECORD and replace NUL, which few tools can read, for the `record` of a problem."""
    return text.str.slice(0, LONGEST_RECORD).str.replace_all("\0", "␀", literal=True)


def make_distinct(names: Sequence[str]) -> list[str]:
    """Make column names unique, ignoring case as DuckDB does, and unlike PLACE: `a, A` becomes `a, A_1`."""
    taken = set(PLACE)
    chosen: list[str] = []
    for name in names:
        candidates = (name if number == 0 else f"{name}_{number}" for number in range(len(names) + len(taken)))
        chosen.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
        taken.add(chosen[-1].lower())
    return chosen


def stack(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Stack the rows of several files; names of columns that differ only in case are one, as they are to DuckDB."""
    spelled: dict[str, str] = {}
    for frame in frames:
        for name in frame.columns:
            spelled.setdefault(name.lower(), name)
    renamed = (frame.rename({name: spelled[name.lower()] for name in frame.columns}) for frame in frames)
    return pl.concat(renamed, how="diagonal")
