"""Delimited tables: records to rows with their line numbers, and what is no row with its reason."""

from collections.abc import Iterator, Sequence

import polars as pl

from ...schemas.settings import ReaderOptions
from .files import FileError, FileSplit
from .records import LINE, LONGEST_RECORD, lines, quoted_records
from .text_encodings import read_blocks

PLACE = ("_row", "_file", "_line")
PROBLEM = {"file": pl.String, "line": pl.Int64, "record": pl.String, "reason": pl.String, "detail": pl.String}

Frames = tuple[pl.DataFrame, pl.DataFrame]
"""Rows, and problems: what is none."""


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


def fitting(records: pl.DataFrame) -> Frames:
    """The records that hold something; over-long ones and NUL bytes are problems."""
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
    """A record as rejects keep it: no longer than a record may be, and without NUL, which few tools can read."""
    return text.str.slice(0, LONGEST_RECORD).str.replace_all("\0", "␀", literal=True)


def read_table(
    split: FileSplit, encoding: str | None, options: ReaderOptions, default_delimiter: str, default_quote: str
) -> Iterator[Frames]:
    """The rows of a split of a table; the header of a file stands at its start, wherever the split is.

    Raises:
        FileError: see encodings.read_blocks; or the header can't be read.
    """
    delimiter = options.delimiter if options.delimiter is not None else default_delimiter
    quote = options.quote if options.quote is not None else default_quote
    has_header = options.header if options.header is not None else options.columns is None

    def records(part: FileSplit) -> Iterator[pl.DataFrame]:
        blocks = read_blocks(part, encoding)
        return quoted_records(blocks, part.name, delimiter, quote) if quote else lines(blocks, part.name)

    names = options.columns
    if split.start and has_header:
        head = FileSplit(split.path, end=split.start, encoding=split.encoding)
        names = next((found for frame in records(head) if (found := _names(frame, delimiter, quote, options))), None)
        has_header = False
    for frame in records(split):
        good, bad = fitting(frame)
        if names is None or has_header:
            names = _names(frame, delimiter, quote, options)
            if names is None:
                yield pl.DataFrame(schema=LINE).drop("text"), bad
                continue
            good, has_header = good.slice(int(has_header)), False
        rows, misfits = _rows(good, names, delimiter, quote)
        yield rows, pl.concat([bad, misfits])


def _names(records: pl.DataFrame, delimiter: str, quote: str, options: ReaderOptions) -> list[str] | None:
    """The names of the columns by the first record of a file; None where there is none.

    Raises:
        FileError: that record is the header and can't be read.
    """
    is_header = options.header if options.header is not None else options.columns is None
    good, bad = fitting(records)
    if is_header and bad.height and (good.is_empty() or bad["line"][0] < good["_line"][0]):
        raise FileError("columns", f"the header can't be read: {bad['reason'][0]}", bad["line"][0])
    first = good.head(1)
    if first.is_empty():
        return None
    fields = first.select(_fields(pl.col("text"), delimiter, quote)).to_series()[0]
    header = first["text"][0].split(delimiter) if fields is None else fields.to_list()
    names = options.columns or (header if is_header else [""] * len(header))
    return distinct([name.strip() or f"column{index}" for index, name in enumerate(names)])


def _rows(records: pl.DataFrame, names: Sequence[str], delimiter: str, quote: str) -> Frames:
    split = records.with_columns(fields=_fields(pl.col("text"), delimiter, quote))
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
    return split.filter(fits).select("_file", "_line", *fields), misfits


def _field_pattern(delimiter: str, quote: str) -> str:
    """A field of RFC 4180: in quotes, or without any at its start."""
    d, q = (f"\\x{{{ord(character):x}}}" for character in (delimiter, quote))
    return f"(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{q}{d}\\n][^{d}\\n]*|)"


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
