"""Read delimited tables: a row for each record, or a problem if it does not fit the header."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import polars as pl

from ...schemas.settings import ReaderOptions
from .files import FileError, FileSplit
from .problems import RECORD, Frames, fitting, make_distinct
from .records import LINE, lines, quoted_records
from .text_encodings import read_blocks


class Dialect(NamedTuple):
    """The delimiter between a table's fields, and the quote around some of them; an empty `quote` means no quoting."""

    delimiter: str
    quote: str


CSV, TSV = Dialect(",", '"'), Dialect("\t", "")


def choose_dialect(options: ReaderOptions, default: Dialect) -> Dialect:
    """Return the dialect set by a source's options, with `default` for whatever they do not set."""
    return Dialect(
        default.delimiter if options.delimiter is None else options.delimiter,
        default.quote if options.quote is None else options.quote,
    )


def check_dialect(dialect: Dialect) -> str | None:
    """Return what is wrong with a dialect, or None if tables in it can be read."""
    if dialect.quote and len(dialect.delimiter) > 1:
        return f"a table with quotes needs a delimiter of one character, not {dialect.delimiter!r}; or set quote: ''"
    return None


def read_table(split: FileSplit, encoding: str | None, options: ReaderOptions, dialect: Dialect) -> Iterator[Frames]:
    """Read the rows in a split of a table. The header is read from the start of the file, wherever the split is.

    Raises:
        FileError: the header can't be read; or see text_encodings.read_blocks.
    """
    delimiter, quote = dialect
    has_header = options.header if options.header is not None else options.columns is None

    def read_records(piece: FileSplit) -> Iterator[pl.DataFrame]:
        blocks = read_blocks(piece, encoding)
        return quoted_records(blocks, piece.name, delimiter, quote) if quote else lines(blocks, piece.name)

    names = options.columns
    if split.start and has_header:
        head = FileSplit(split.path, end=split.start, encoding=split.encoding)
        names = next(
            (found for frame in read_records(head) if (found := _read_names(frame, delimiter, quote, options))), None
        )
        has_header = False
    for frame in read_records(split):
        good, bad = fitting(frame)
        if names is None or has_header:
            names = _read_names(frame, delimiter, quote, options)
            if names is None:
                yield pl.DataFrame(schema=LINE).drop("text"), bad
                continue
            good, has_header = good.slice(int(has_header)), False
        rows, misfits = _split_rows(good, names, delimiter, quote)
        yield rows, pl.concat([bad, misfits])


def _read_names(records: pl.DataFrame, delimiter: str, quote: str, options: ReaderOptions) -> list[str] | None:
    """Find the column names in the first record of a file; None if these records are all blank or unusable.

    Raises:
        FileError: the first record is the header, and can't be read.
    """
    is_header = options.header if options.header is not None else options.columns is None
    good, bad = fitting(records)
    if is_header and bad.height and (good.is_empty() or bad["line"][0] < good["_line"][0]):
        raise FileError("columns", f"the header can't be read: {bad['reason'][0]}", bad["line"][0])
    first = good.head(1)
    if first.is_empty():
        return None
    fields = first.select(_split_fields(pl.col("text"), delimiter, quote)).to_series()[0]
    header = first["text"][0].split(delimiter) if fields is None else fields.to_list()
    names = options.columns or (header if is_header else [""] * len(header))
    return make_distinct([name.strip() or f"column{index}" for index, name in enumerate(names)])


def _split_rows(records: pl.DataFrame, names: Sequence[str], delimiter: str, quote: str) -> Frames:
    split = records.with_columns(fields=_split_fields(pl.col("text"), delimiter, quote))
    fits = (pl.col("fields").list.len() == len(names)).fill_null(False)
    misfits = split.filter(~fits).select(
        file="_file",
        line="_line",
        record="text",
        reason=pl.lit("columns"),
        detail=pl.coalesce(
            pl.format("expected {} fields, found {}", pl.lit(len(names)), pl.col("fields").list.len()),
            pl.lit("a quote is not closed, or text follows it"),
        ),
    )
    fields = [pl.col("fields").list.get(index).alias(name) for index, name in enumerate(names)]
    return split.filter(fits).select("_file", "_line", pl.col("text").alias(RECORD), *fields), misfits


def _field_pattern(delimiter: str, quote: str) -> str:
    """Return the pattern of a field (RFC 4180): in quotes, or not beginning with a quote."""
    d, q = (f"\\x{{{ord(character):x}}}" for character in (delimiter, quote))
    return f"(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{q}{d}\\n][^{d}\\n]*|)"


def _split_fields(text: pl.Expr, delimiter: str, quote: str) -> pl.Expr:
    """Split records into fields and remove their quotes; null for records whose quotes don't match."""
    if not quote:
        return text.str.split(delimiter)
    ended = text + delimiter
    found = ended.str.extract_all(_field_pattern(delimiter, quote) + f"\\x{{{ord(delimiter):x}}}")
    bare = pl.element().str.strip_suffix(delimiter)
    inside = bare.str.slice(1).str.strip_suffix(quote).str.replace_all(quote * 2, quote, literal=True)
    unquoted = found.list.eval(pl.when(bare.str.starts_with(quote)).then(inside).otherwise(bare))
    return pl.when(found.list.join("") == ended).then(unquoted)
