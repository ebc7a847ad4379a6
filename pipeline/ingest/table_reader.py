"""Read delimited tables: a row for each record, or a problem if it does not fit the header."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import polars as pl

from ...schemas.source_settings import ReaderOptions, Source
from .files import FileError, FileSplit
from .problems import RECORD, Frames, fitting, make_distinct, no_problems
from .records import LINE, lines, quoted_records
from .sql_names import find_names
from .text_encodings import Block, read_blocks


class Dialect(NamedTuple):
    """The delimiter between a table's fields, and the quote around some of them; an empty `quote` means no quoting."""

    delimiter: str
    quote: str


CSV, TSV = Dialect(",", '"'), Dialect("\t", "")

_DELIMITERS = (",", ";", "\t", "|")  # other than the table's, for a hint
_COMPARED = 10  # records whose numbers of fields are compared for it
_INSIDE = '(?:[^"]|"")*'
_DIVIDED = 1_000  # lines of which quotes may make records
_USUAL = 0.3
"""Chosen here: the share of fields in quotes from which the quotes are the file's; numbers have none. Doubled quotes in
a field say so, too."""
_BLANK = " \t\n\u00a0\u3000\u200b\ufeff"  # around column names
_SEPARATOR = re.compile(rb'"?sep=([^\r\n])"?[ \t,;]*(?:\n|\Z)', re.IGNORECASE)


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


def read_table(split: FileSplit, source: Source, default: Dialect) -> Iterator[Frames]:
    """Read the rows in a split of a table. The header is read from the start of the file, wherever the split is.

    Raises:
        FileError: the header can't be read, or has another delimiter; or see text_encodings.read_blocks.
    """
    options = source.options
    if (line := _find_quoted(split, source, default)) is not None:
        if split.start:
            return  # the file's first split has told it
        cure = "set `options: {quote: '\"'}`, or `quote: ''` if the quotes belong to the texts"
        raise FileError("columns", f"fields are in double quotes: {cure}", line)
    has_header = options.header if options.header is not None else options.columns is None
    names, header = options.columns, None
    start = FileSplit(split.path, end=split.start, encoding=split.encoding) if split.start else split
    records, dialect = _open_records(start, source, default)
    if split.start:  # which is only done to tables without quotes
        if has_header:
            named = (_read_names(frame, dialect, options) for frame in records)
            names, header = next((found for found in named if found), (None, None))
        records = lines(read_blocks(split, source.encoding), split.name)
    for frame in records:
        good, bad = fitting(frame)
        if names is None or (has_header and header is None):
            found = _read_names(frame, dialect, options)
            if found is None:
                yield pl.DataFrame(schema=LINE).drop("text"), bad
                continue
            names = found[0]
            if has_header:
                header = found[1]
                bad = pl.concat([bad, _doubt_header(good.head(1), names, dialect, source)])
                good = good.slice(1)
        repeated = pl.col("text") == (header or "")
        rows, misfits = _split_rows(good.filter(~repeated), names, dialect)
        yield rows, pl.concat([bad, misfits, _reject(good.filter(repeated), pl.lit("the header again: files joined"))])


def _open_records(split: FileSplit, source: Source, default: Dialect) -> tuple[Iterator[pl.DataFrame], Dialect]:
    """Open the records from the start of a file, and find its dialect: Excel may name the delimiter in a first line."""
    dialect = choose_dialect(source.options, default)
    blocks = read_blocks(split, source.encoding, dialect.quote)
    first = next(blocks, Block(b"", 1))
    if named := _SEPARATOR.match(first.text):
        first = Block(first.text[named.end() :], 2)
        dialect = choose_dialect(source.options, default._replace(delimiter=named[1].decode()))
    blocks = chain([first], blocks)
    if dialect.quote:
        return quoted_records(blocks, split.name, dialect.delimiter, dialect.quote), dialect
    return lines(blocks, split.name), dialect


def _read_names(records: pl.DataFrame, dialect: Dialect, options: ReaderOptions) -> tuple[list[str], str] | None:
    """Find the column names in the first record of a file, and that record; None if all are blank or unusable.

    Raises:
        FileError: the first record is the header, and can't be read, or has another delimiter.
    """
    is_header = options.header if options.header is not None else options.columns is None
    good, bad = fitting(records)
    if is_header and bad.height and (good.is_empty() or bad["line"][0] < good["_line"][0]):
        raise FileError("columns", f"the header can't be read: {bad['reason'][0]}", bad["line"][0])
    if good.is_empty():
        return None
    record = good["text"][0]
    fields = good.head(1).select(_split_fields(pl.col("text"), dialect)).to_series()[0]
    found = record.split(dialect.delimiter) if fields is None else fields.to_list()
    if len(found) == 1 and options.columns is None and options.delimiter is None:
        _check_delimiter(good.head(_COMPARED), dialect)
    names = options.columns or (found if is_header else [""] * len(found))
    clean = (name.strip(_BLANK).removeprefix(dialect.quote).removesuffix(dialect.quote).strip(_BLANK) for name in names)
    return make_distinct([name or f"column{index}" for index, name in enumerate(clean)]), record


def _check_delimiter(records: pl.DataFrame, dialect: Dialect) -> None:
    """Raise FileError if records without the delimiter have equally many fields by another one."""
    for delimiter in _DELIMITERS:
        counts = records.select(_split_fields(pl.col("text"), Dialect(delimiter, dialect.quote)).list.len()).to_series()
        if counts.n_unique() == 1 and (counts[0] or 0) > 1:
            detail = (
                f"the header has no {dialect.delimiter!r}, and records have {counts[0]} fields between {delimiter!r}: "
                f"set `options: {{delimiter: {json.dumps(delimiter)}}}`"
            )
            raise FileError("columns", detail, records["_line"][0])


def _find_quoted(split: FileSplit, source: Source, default: Dialect) -> int | None:
    """Return the first line of a file if it is read without quoting, but has quotes that must be the file's.

    They stand around fields, as CSV has them, and nowhere else; or they make records that fit of lines that don't. All
    splits of a file look at its first block.
    """
    records, dialect = _open_records(FileSplit(split.path, encoding=split.encoding), source, default)
    if dialect.quote or source.options.quote is not None:
        return None
    good = next((good for good, _ in map(fitting, records) if good.height), None)
    if good is None:
        return None
    fields = good["text"].str.split(dialect.delimiter).explode()
    quoted = fields.filter(fields.str.contains('"', literal=True))
    are_around = quoted.str.contains(f'^"{_INSIDE}"$').all()
    are_usual = len(quoted) >= _USUAL * len(fields.filter(fields != ""))
    are_doubled = quoted.str.contains(f'^"{_INSIDE}""{_INSIDE}"$').any()
    is_quoted = (are_around and (are_usual or are_doubled)) or _make_records(good["text"], dialect)
    return int(good["_line"][0]) if len(quoted) and is_quoted else None


def _make_records(texts: pl.Series, dialect: Dialect) -> bool:
    """Whether quotes make records of equally many fields out of lines that have more or fewer."""
    texts = texts.head(_DIVIDED)
    delimiters = texts.str.count_matches(dialect.delimiter, literal=True)
    if len(dialect.delimiter) > 1 or delimiters.n_unique() == 1:
        return False
    reader = csv.reader((f"{text}\n" for text in texts), delimiter=dialect.delimiter)
    try:
        rows = [(len(row), reader.line_num) for row in reader][:-1]  # the last may be cut
    except csv.Error:  # a carriage return outside quotes, or a field of 128 KB, as after a stray quote
        return False
    is_divided = bool(rows) and delimiters.head(rows[-1][1]).n_unique() > 1
    return is_divided and {fields for fields, _ in rows} == {delimiters[0] + 1}


def _doubt_header(header: pl.DataFrame, names: Sequence[str], dialect: Dialect, source: Source) -> pl.DataFrame:
    """Return the header as a problem if it may be data: the recipe knows none of its names, or a quote swallowed lines.

    With `header: true`, the recipe has said what it is.
    """
    if source.options.header:
        return no_problems()
    if any("\n" in name and dialect.delimiter in name for name in names):
        return _reject(header, pl.lit("it was read as the header: a quote in it is closed only in a later line"))
    if _may_name(source, names):
        return no_problems()
    cure = "if it is data, set `options: {columns: [...]}`; if not, name its columns in the SQL, or set `header: true`"
    return _reject(header, pl.lit(f"it was read as the header, but the recipe's SQL names none of its columns; {cure}"))


def _may_name(source: Source, names: Sequence[str]) -> bool:
    """Whether a source's SQL may use one of these columns."""
    used = find_names(source)
    return used is None or not {name.lower() for name in used}.isdisjoint(name.lower() for name in names)


def _split_rows(records: pl.DataFrame, names: Sequence[str], dialect: Dialect) -> Frames:
    split = records.with_columns(fields=_split_fields(pl.col("text"), dialect))
    fits = (pl.col("fields").list.len() == len(names)).fill_null(False)
    rows, misfits = split.filter(fits), split.filter(~fits)
    parts = _part_at_carriage_returns(misfits, dialect).filter(fits.all().over("_line"))
    if parts.height:
        rows = pl.concat([rows, parts]).sort("_line", maintain_order=True)
        misfits = misfits.join(parts, on="_line", how="anti", maintain_order="left")
    found = pl.format("expected {} fields, found {}", pl.lit(len(names)), pl.col("fields").list.len())
    is_escaped = pl.col("text").str.contains(f"\\{dialect.quote}", literal=True)
    cure = pl.when(is_escaped).then(pl.lit("; in CSV, quotes inside a field are doubled, not escaped by a backslash"))
    unmatched = pl.concat_str(pl.lit("a quote is not closed, or text follows it"), cure.otherwise(pl.lit("")))
    detail = pl.coalesce(found, unmatched)
    fields = [pl.col("fields").list.get(index).alias(name) for index, name in enumerate(names)]
    return rows.select("_file", "_line", pl.col("text").alias(RECORD), *fields), _reject(misfits, detail)


def _part_at_carriage_returns(misfits: pl.DataFrame, dialect: Dialect) -> pl.DataFrame:
    """Part records at carriage returns: files joined from several may end some of their lines so."""
    text = pl.col("text")
    parts = misfits.filter(text.str.contains("\r", literal=True)).with_columns(text.str.split("\r")).explode("text")
    return parts.filter(text != "").with_columns(fields=_split_fields(text, dialect))


def _reject(records: pl.DataFrame, detail: pl.Expr) -> pl.DataFrame:
    return records.select(
        file="_file", line="_line", record="text", reason=pl.lit("columns"), detail=detail.cast(pl.String)
    )


def _field_pattern(delimiter: str, quote: str) -> str:
    """Return the pattern of a field (RFC 4180): in quotes, or not beginning with a quote."""
    d, q = (f"\\x{{{ord(character):x}}}" for character in (delimiter, quote))
    return f"(?:{q}(?:[^{q}]|{q}{q})*{q}|[^{q}{d}\\n][^{d}\\n]*|)"


def _split_fields(text: pl.Expr, dialect: Dialect) -> pl.Expr:
    """Split records into fields and remove their quotes; null for records whose quotes don't match."""
    delimiter, quote = dialect
    if not quote:
        return text.str.split(delimiter)
    ended = text + delimiter
    found = ended.str.extract_all(_field_pattern(delimiter, quote) + f"\\x{{{ord(delimiter):x}}}")
    bare = pl.element().str.strip_suffix(delimiter)
    inside = bare.str.slice(1).str.strip_suffix(quote).str.replace_all(quote * 2, quote, literal=True)
    unquoted = found.list.eval(pl.when(bare.str.starts_with(quote)).then(inside).otherwise(bare))
    return pl.when(found.list.join("") == ended).then(unquoted)
