"""Read JSON records from lines, arrays and whole documents, and select columns from them."""

import json
import re
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from itertools import chain

import duckdb
import polars as pl

from ...schemas.source_settings import Source
from .files import FileError, FileSplit
from .problems import RECORD, Frames, fitting, no_problems, problem, shown
from .records import LINE, json_values, lines, split_values
from .sql_names import uses_column
from .text_encodings import LONGEST_DOCUMENT, Block, read_blocks
from .text_reader import split_lines

DEEPEST_RECORD = 100
"""Chosen here: levels of nesting; beyond 128, DuckDB's json_structure fails and invalidates the database."""

_PAIRED = r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_LONGEST_FIRST = 16 << 20
"""Chosen here: characters in which the end of a file's first value is sought; a longer value is a document."""
_FIRST_OBJECT = 1 << 16
"""Chosen here: the same for a first value or line that is JSON only without commas before closing brackets."""

_DECODER = json.JSONDecoder()
_TRAILING_COMMA = r",\s*[\]}]"
_DROPPED_COMMA = r'("(?:[^"\\]|\\.)*")|,(\s*[\]}])'  # strings are matched so that they stay as they are
_KINDS = dict.fromkeys(("BIGINT", "UBIGINT", "HUGEINT", "DOUBLE"), "a number") | {
    "ARRAY": "an array",
    "VARCHAR": "a string",
    "BOOLEAN": "true or false",
    "NULL": "null",
}
"""What DuckDB's names of kinds of JSON mean."""
_BEGINS_LIKE_VALUE = r"^[ \t\r,\x1e]*[\[{]"
_HOLDS_VALUES = r"^[ \t\r]*\[[ \t\r]*[\[{]"
_INVALID = (
    pl.when(pl.col("text").str.contains(r"^[\s\[]*\{\s*'"))
    .then(pl.lit("not valid JSON: texts are in single quotes, as Python prints them; write them with json.dumps"))
    .when(pl.col("text").str.contains(r"^[\s\[]*\{\s*\w+\s*:"))
    .then(pl.lit("not valid JSON: keys without quotes, as in JavaScript; write them with JSON.stringify"))
    .when(pl.col("text").str.contains(r"[:\[,]\s*(?:None|True|False)\s*[,}\]]"))
    .then(pl.lit("not valid JSON: None, True and False are Python's; write them with json.dumps"))
    .otherwise(pl.lit("not valid JSON"))
)
_ARRAY_ADVICE = "; for the recipe's SQL it is the column `json`, as in `query: json[1]`"


class Form(Enum):
    """How the records of a JSON file are written."""

    LINES = auto()
    """One or more on each line."""
    VALUES = auto()
    """An array of them, or one after another, over any number of lines."""
    UNKNOWN = auto()
    """The first is damaged, or very long: a document."""


def read_json_lines(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    """Read each line of a split as an object. A whole file may also be what `read_json` reads, but not a document.

    Raises:
        FileError: the file is not JSON; see text_encodings.read_blocks.
    """
    blocks = read_blocks(split, source.encoding)
    form = Form.LINES
    if not split.start and split.end is None:
        blocks, _, form = _find_form(blocks, by_line=True)
    read = _read_values if form is Form.VALUES else _read_lines
    yield from read(connection, blocks, split.name, _find_array_key(source))


def split_json_lines(path: str, source: Source, size: int) -> list[FileSplit]:
    """Split a file as text_reader.split_lines does, unless its records take several lines.

    Raises:
        FileError: see text_reader.split_lines.
    """
    _, _, form = _find_form(read_blocks(FileSplit(path), source.encoding), by_line=True)
    return [FileSplit(path)] if form is Form.VALUES else split_lines(path, source, size)


def read_json(
    split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection, conversations: bool = False
) -> Iterator[Frames]:
    """Read the objects of a file: the elements of its array, its lines, values one after another, or the document.

    Args:
        conversations: Whether to read an array of messages as one object, `{"messages": […]}`.

    Raises:
        FileError: the file is not JSON; see text_encodings.read_blocks.
    """
    blocks, begin, form = _find_form(read_blocks(split, source.encoding))
    array_key = "messages" if conversations else _find_array_key(source)
    if not begin:
        yield pl.DataFrame(schema=LINE), problem(split.name, None, None, "broken_json", "the file is empty")
    elif source.options.whole:
        yield from _read_document(connection, blocks, split.name, array_key)
    elif form is Form.LINES:
        yield from _read_lines(connection, blocks, split.name, array_key)
    elif form is Form.UNKNOWN or (conversations and _is_conversation(begin)):
        yield from _read_document(connection, blocks, split.name, array_key)
    else:
        yield from _read_values(connection, blocks, split.name, array_key)


def read_chats(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    """Read conversations as `read_json` reads objects; a file may also be the messages of a single conversation."""
    return read_json(split, source, connection, conversations=True)


def _find_form(blocks: Iterator[Block], by_line: bool = False) -> tuple[Iterator[Block], str, Form]:
    """Tell how the records of a file are written.

    Args:
        by_line: Whether an array of records on the only line of a file is a record rather than the file's array.

    Returns the blocks again, without blank ones before the first value, and the text in which it was sought.

    Raises:
        FileError: the file is a web page or XML.
    """
    held: list[Block] = []
    text, form = "", Form.UNKNOWN
    while form is Form.UNKNOWN and len(text) <= _LONGEST_FIRST:
        try:
            block = next(blocks, None)
        except FileError as error:
            if not held:
                raise
            blocks = _raise_after((), error)
            break
        if not block:
            break
        if not held and not block.text.strip():
            continue
        held.append(block)
        text = b"".join(block.text for block in held).decode().lstrip()
        line, line_feed, rest = text.partition("\n")
        if len(line) <= _FIRST_OBJECT:
            line = _drop_commas(line)
        if line_feed and _find_end(line) == len(line):
            if by_line or rest.strip() or not re.match(_HOLDS_VALUES, line):
                form = Form.LINES
        elif text.startswith("[") or _find_end(text) or _find_end(_drop_commas(text[:_FIRST_OBJECT])):
            form = Form.VALUES
    if form is Form.UNKNOWN and re.match(_HOLDS_VALUES, text):
        form = Form.VALUES
    if text.startswith("<") and not re.search(r"^[\[{]", text, re.MULTILINE):
        raise FileError("unreadable", "a web page or XML, not JSON; perhaps the error message of a download")
    return chain(held, blocks), text, form


def _raise_after(blocks: Iterable[Block], error: FileError) -> Iterator[Block]:
    yield from blocks
    raise error


def _find_end(text: str) -> int:
    """Return the length of the whole JSON values at the start of a text; 0 if it does not start with one."""
    end = 0
    while end < len(text):
        try:
            _, at = _DECODER.raw_decode(text, _skip(text, end))
        except (ValueError, RecursionError):
            break
        end = _skip(text, at)
    return end


def _drop_commas(text: str) -> str:
    """Drop commas before closing brackets, which many programs write and read, though JSON does not allow them."""
    return re.sub(_DROPPED_COMMA, r"\1\2", text)


def _skip(text: str, at: int) -> int:
    """Skip what may stand between values: white space, commas, record separators (RFC 7464)."""
    while at < len(text) and text[at] in " \t\r\n,\x1e":
        at += 1
    return at


def _find_array_key(source: Source) -> str | None:
    """Return the key under which a record that is an array can be used: `json`, if the recipe's SQL names that."""
    return "json" if uses_column(source, "json") else None


def _is_conversation(begin: str) -> bool:
    """Whether an array is a single conversation, that is, whether its first element is a message."""
    try:
        first, _ = _DECODER.raw_decode(begin.removeprefix("[").lstrip())
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and ("role" in first or "from" in first)


def _read_lines(
    connection: duckdb.DuckDBPyConnection, blocks: Iterable[Block], file: str, array_key: str | None
) -> Iterator[Frames]:
    for frame in lines(blocks, file):
        whole, unfit = fitting(frame)
        good, bad = _check_objects(connection, whole, array_key, split=True)
        yield good, pl.concat([unfit, bad])


def _read_values(
    connection: duckdb.DuckDBPyConnection, blocks: Iterable[Block], file: str, array_key: str | None
) -> Iterator[Frames]:
    for values, damage in json_values(blocks, file, flatten=array_key is None):
        whole, unfit = fitting(values)
        good, bad = _check_objects(connection, whole, array_key)
        yield good, pl.concat([unfit, bad, _make_problems(damage, "broken_json", _INVALID)])


def _read_document(
    connection: duckdb.DuckDBPyConnection, blocks: Iterator[Block], file: str, array_key: str | None
) -> Iterator[Frames]:
    """Read a file as one record or, if it is not valid as one, as values."""
    held: list[Block] = []
    size = 0
    damage: FileError | None = None
    try:
        for block in blocks:
            held.append(block)
            size += len(block.text)
            if size > LONGEST_DOCUMENT:
                break
    except FileError as error:
        damage = error
    if size <= LONGEST_DOCUMENT:
        text = b"".join(block.text for block in held).decode()
        one = pl.DataFrame({"_file": [file], "_line": [held[0].first_line], "text": [text]}, LINE)
        good, bad = _check_objects(connection, one, array_key)
        if good.height or (bad["reason"] != "broken_json").any():
            yield good, bad
            return
    whole = 0
    found = [no_problems()]
    for good, bad in _read_values(connection, chain(held, blocks), file, array_key):
        whole += good.height
        if not whole:  # unless some value is a record, one broken document is reported
            found.append(bad)
            continue
        yield good, pl.concat([*found, bad])
        found = [no_problems()]
    if not whole and size <= LONGEST_DOCUMENT:
        reason = _find_error(text)
        broken = problem(file, reason.lineno, None, "broken_json", str(reason))
        yield pl.DataFrame(schema=LINE), broken.with_columns(record=shown(pl.lit(text)))
    elif not whole:
        yield pl.DataFrame(schema=LINE), pl.concat(found)
    if damage:
        raise damage


def _find_error(text: str) -> json.JSONDecodeError:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deeply", "", 0)
    return json.JSONDecodeError("not valid JSON", "", 0)


def _check_objects(
    connection: duckdb.DuckDBPyConnection, records: pl.DataFrame, array_key: str | None, split: bool = False
) -> Frames:
    """Split records into JSON objects and problems: not an object, or an object that DuckDB can't represent.

    Args:
        array_key: Makes an object of a record that is an array.
        split: Whether a record may hold several values. Without `array_key`, an array of objects does, too.
    """
    good, half = _split_off_half_characters(records)
    objects, problems = _find_kinds(connection, good), [half]
    if objects["kind"].ne_missing("OBJECT").any():
        objects, bad = _split_off_others(connection, objects, array_key, split)
        problems += bad
    shallow, deep = _split_off_deep(objects)
    return _make_objects(shallow, array_key), pl.concat([*problems, deep])


def _split_off_others(
    connection: duckdb.DuckDBPyConnection, judged: pl.DataFrame, array_key: str | None, split: bool
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Split off records that are not objects, and replace those that hold several values; see `_check_objects`."""
    text, kind = pl.col("text"), pl.col("kind")
    problems = []
    several = kind.is_null() & text.str.contains(_BEGINS_LIKE_VALUE)
    if not array_key:
        several |= (kind == "ARRAY").fill_null(False) & text.str.contains(_HOLDS_VALUES)
    if split and judged.select(several.any()).item():
        values, damage = split_values(judged.filter(several))
        problems.append(_make_problems(damage, "broken_json", _INVALID))
        judged = pl.concat([judged.filter(~several), _find_kinds(connection, values)]).sort(
            "_line", maintain_order=True
        )
    fits = kind.is_in(["OBJECT", "ARRAY"] if array_key else ["OBJECT"]).fill_null(False)
    found = pl.format("expected an object, found {}", kind.replace(_KINDS))
    detail = pl.when(kind.is_null()).then(_INVALID).when(kind == "ARRAY").then(found + _ARRAY_ADVICE).otherwise(found)
    problems.append(_make_problems(judged.filter(~fits), "broken_json", detail))
    return judged.filter(fits), problems


def _make_objects(records: pl.DataFrame, array_key: str | None) -> pl.DataFrame:
    """Give arrays their key, and drop commas before closing brackets; RECORD then is the text as it was."""
    text, is_array = pl.col("text"), pl.col("kind") == "ARRAY"
    has_commas = text.str.contains(_TRAILING_COMMA)
    if not records.select((is_array | has_commas).any()).item():
        return records.drop("kind")
    strict = pl.when(has_commas).then(text.str.replace_all(_DROPPED_COMMA, "$1$2")).otherwise(text)
    in_object = pl.concat_str(pl.lit(f'{{"{array_key}":'), strict, pl.lit("}"))
    return records.select(
        "_file", "_line", pl.when(is_array).then(in_object).otherwise(strict).alias("text"), text.alias(RECORD)
    )


def _find_kinds(connection: duckdb.DuckDBPyConnection, records: pl.DataFrame) -> pl.DataFrame:
    """Add a column `kind`: OBJECT, ARRAY or another kind of JSON value; null for what is not valid JSON."""
    connection.register("objects", records.select("text").to_arrow(compat_level=pl.CompatLevel.newest()))
    valid = connection.sql("SELECT json_valid(text) AS valid FROM objects").pl()["valid"]
    is_object = valid & records["text"].str.starts_with("{")
    if is_object.all():
        kind = pl.lit("OBJECT")
    else:
        found = connection.sql("SELECT CASE WHEN json_valid(text) THEN json_type(text) END AS kind FROM objects")
        kind = pl.lit(found.pl()["kind"])
    connection.unregister("objects")
    return records.with_columns(kind=kind)


def _make_problems(records: pl.DataFrame, reason: str, detail: pl.Expr) -> pl.DataFrame:
    return records.select(
        file="_file", line="_line", record=shown(pl.col("text")), reason=pl.lit(reason), detail=detail
    )


def _split_off_half_characters(records: pl.DataFrame) -> Frames:
    """Split off records that escape half a surrogate pair, such as `\\ud83d` alone: valid JSON, but not text."""
    text = pl.col("text")
    suspect = records.filter(text.str.contains(r"\\u[dD][89a-fA-F]"))
    if suspect.is_empty():
        return records, no_problems()
    half = text.str.replace_all(_PAIRED, " ").str.extract(f"({_HALF})").alias("half")
    judged = records.with_columns(half)
    bad = judged.filter(pl.col("half").is_not_null())
    detail = pl.format("escaped half of a surrogate pair: {}", "half")
    return judged.filter(pl.col("half").is_null()).drop("half"), _make_problems(bad, "encoding", detail)


def _split_off_deep(records: pl.DataFrame) -> Frames:
    """Split off records with more levels of nesting than DEEPEST_RECORD."""
    text = pl.col("text")
    records = records.with_row_index("row")
    nested = records.filter(text.str.count_matches(r"[\[{]") > DEEPEST_RECORD)
    if nested.is_empty():
        return records.drop("row"), no_problems()
    brackets = nested.select("row", text.str.replace_all(r'"(?:[^"\\]|\\.)*"|[^\[\]{}]', ""))
    for _ in range(DEEPEST_RECORD):  # each pass removes the innermost level
        if brackets.is_empty():
            break
        brackets = brackets.with_columns(text.str.replace_all(r"\[\]|\{\}", "")).filter(text != "")
    deep = pl.col("row").is_in(brackets["row"].implode())
    bad = _make_problems(records.filter(deep), "too_deep", pl.lit(f"more than {DEEPEST_RECORD} levels of nesting"))
    return records.filter(~deep).drop("row"), bad
