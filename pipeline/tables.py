"""Lines and delimited tables: text to rows with their line numbers, and what is no row with its reason."""

from collections.abc import Sequence

import polars as pl

from ..schemas.settings import ReaderOptions
from .files import FileError

LONGEST_RECORD = 16 << 20
"""Ours: characters; a longer record is a broken file or no text for an embedding model, and is rejected."""

PLACE = ("_row", "_file", "_line")
PROBLEM = {"file": pl.String, "line": pl.Int64, "record": pl.String, "reason": pl.String, "detail": pl.String}
LINE = {"_file": pl.String, "_line": pl.Int64, "text": pl.String}


def distinct(names: Sequence[str]) -> list[str]:
    """Names as DuckDB tells them apart, in the way it does: the second `a`, or `A`, is `a_1`."""
    taken = set(PLACE)
    found: list[str] = []
    for name in names:
        candidates = (name if number == 0 else f"{name}_{number}" for number in range(len(names) + len(taken)))
        found.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
        taken.add(found[-1].lower())
    return found


def problem(file: str, line: int | None, record: str | None, reason: str, detail: str) -> pl.DataFrame:
    """One reject that is no row."""
    return pl.DataFrame([[file], [line], [record], [reason], [detail]], PROBLEM)


def no_problems() -> pl.DataFrame:
    return pl.DataFrame(schema=PROBLEM)


def lines_of(path: str, text: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lines of a text that hold something, with their numbers; over-long ones and NUL bytes are problems."""
    lines = pl.DataFrame({"text": text.split("\n")})
    return _fit(path, lines.with_columns(_line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)))


def _fit(path: str, lines: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    reason = (
        pl.when(pl.col("text").str.len_chars() > LONGEST_RECORD)
        .then(pl.lit("too_long"))
        .when(pl.col("text").str.contains("\0", literal=True))
        .then(pl.lit("nul_bytes"))
    )
    marked = (
        lines.filter(pl.col("text").str.strip_chars() != "")
        .select(pl.lit(path).alias("_file"), "_line", "text")
        .with_columns(reason=reason)
    )
    bad = marked.filter(pl.col("reason").is_not_null()).select(
        file="_file",
        line="_line",
        record=pl.col("text").str.slice(0, LONGEST_RECORD).str.replace_all("\0", "␀", literal=True),
        reason="reason",
        detail=pl.format("{} characters", pl.col("text").str.len_chars()),
    )
    return marked.filter(pl.col("reason").is_null()).drop("reason"), bad


def table(
    path: str, text: str, options: ReaderOptions, default_delimiter: str, default_quote: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    delimiter = options.delimiter if options.delimiter is not None else default_delimiter
    quote = options.quote if options.quote is not None else default_quote
    has_header = options.header if options.header is not None else options.columns is None
    records, bad = _quoted_records(path, text, delimiter, quote) if quote else lines_of(path, text)
    if records.is_empty():
        return records.select("_file", "_line"), bad
    if has_header and bad.height and bad["line"][0] < records["_line"][0]:
        raise FileError("columns", f"the header can't be read: {bad['reason'][0]}")
    split = records.with_columns(fields=_fields(pl.col("text"), delimiter, quote))
    first = split["fields"][0]
    header = records["text"][0].split(delimiter) if first is None else first.to_list()
    names = options.columns or (header if has_header else [""] * len(header))
    names = distinct([name.strip() or f"column{index}" for index, name in enumerate(names)])
    split = split.slice(int(has_header))
    fits = (pl.col("fields").list.len() == len(names)).fill_null(False)
    misfits = split.filter(~fits).select(
        file="_file",
        line="_line",
        record="text",
        reason=pl.lit("columns"),
        detail=pl.coalesce(
            pl.format("expected {} fields, found {}", pl.lit(len(names)), pl.col("fields").list.len()),
            pl.lit("a quote is not closed, or text stands after it"),
        ),
    )
    fields = [pl.col("fields").list.get(index).alias(name) for index, name in enumerate(names)]
    return split.filter(fits).select("_file", "_line", *fields), pl.concat([bad, misfits])


def _field_pattern(delimiter: str, quote: str) -> str:
    """A field of RFC 4180: in quotes, or without any at its start."""
    d, q = (f"\\x{{{ord(character):x}}}" for character in (delimiter, quote))
    return f"(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{q}{d}\\n][^{d}\\n]*|)"


def _quoted_records(path: str, text: str, delimiter: str, quote: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The records of a table with quoted fields, which may hold line breaks; each with its first line's number.

    What is no record is taken line by line, so a quote that nothing closes costs its own line and no other.
    """
    field = _field_pattern(delimiter, quote)
    record = f"{field}(?:\\x{{{ord(delimiter):x}}}{field})*\\n|[^\\n]*\\n"
    found = pl.DataFrame({"text": [text + "\n"]}).select(pl.col("text").str.extract_all(record)).explode("text")
    breaks = pl.col("text").str.count_matches("\n", literal=True).cast(pl.Int64)
    return _fit(path, found.select(pl.col("text").str.strip_suffix("\n"), _line=1 + breaks.cum_sum() - breaks))


def _fields(text: pl.Expr, delimiter: str, quote: str) -> pl.Expr:
    """The fields of records, without their quotes; null where a record is none."""
    if not quote:
        return text.str.split(delimiter)
    ended = text + delimiter
    found = ended.str.extract_all(_field_pattern(delimiter, quote) + f"\\x{{{ord(delimiter):x}}}")
    bare = pl.element().str.strip_suffix(delimiter)
    inside = bare.str.slice(1).str.strip_suffix(quote).str.replace_all(quote * 2, quote, literal=True)
    unquoted = found.list.eval(pl.when(bare.str.starts_with(quote)).then(inside).otherwise(bare))
    return pl.when(found.list.join("") == ended).then(unquoted)
