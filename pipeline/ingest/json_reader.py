"""Read JSON records from lines, arrays and whole documents, and select columns from them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import duckdb
import polars as pl

from ...schemas.settings import Source
from ..corpus.sql import quote, quote_name
from .files import FileError, FileSplit
from .problems import Frames, fitting, no_problems, problem, shown
from .records import LINE, array_elements, lines
from .text_encodings import LONGEST_DOCUMENT, Block, read_blocks

DEEPEST_RECORD = 100
"""Chosen here: levels of nesting; beyond 128, DuckDB's json_structure fails and invalidates the database."""

_PAIRED = r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_MESSAGES = '{"messages":%s}'


def read_json_lines(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    """Read each line of a split as an object.

    Raises:
        FileError: see text_encodings.read_blocks.
    """
    yield from _read_lines(connection, read_blocks(split, source.encoding), split.name)


def read_json(
    split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection, conversations: bool = False
) -> Iterator[Frames]:
    """Read the objects of a file: the elements of its array, its lines, or the document itself.

    Args:
        conversations: Whether to read an array of messages as one object, `{"messages": […]}`.

    Raises:
        FileError: see text_encodings.read_blocks.
    """
    blocks = read_blocks(split, source.encoding)
    try:
        begin = next(block for block in blocks if block.text.strip())
    except StopIteration:
        yield pl.DataFrame(schema=LINE), problem(split.name, None, None, "broken_json", "the file is empty")
        return
    blocks = chain([begin], blocks)
    is_array = begin.text.lstrip().startswith(b"[")
    if source.options.whole or (conversations and is_array and _is_conversation(begin)):
        yield from _read_document(connection, blocks, split.name, conversation=not source.options.whole)
    elif is_array:
        for elements, damage in array_elements(blocks, split.name):
            whole, unfit = fitting(elements)
            good, bad = _check_objects(connection, whole)
            yield good, pl.concat([unfit, bad, _make_problems(damage, "broken_json", pl.lit("not valid JSON"))])
    elif _is_json(begin.text.lstrip().split(b"\n", 1)[0]):
        yield from _read_lines(connection, blocks, split.name)
    else:
        yield from _read_document(connection, blocks, split.name, conversation=False)


def read_chats(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    """Read conversations as `read_json` reads objects; a file may also be the messages of a single conversation."""
    return read_json(split, source, connection, conversations=True)


def select_from_records(select: str) -> str:
    """Give a SELECT the table it reads, `records(_row, _file, _line, record JSON)`, made from `frame`.

    Numbers that DuckDB would round are texts in `record`; see scanners.quote_numbers.
    """
    return f"WITH records AS (SELECT _row, _file, _line, CAST(quoted AS JSON) AS record FROM frame) FROM ({select})"


def select_objects(source: Source) -> str:
    """Return SQL for the columns in `source.columns`, or for one column `data` with option `whole`.

    Decimals are texts in columns of type DOUBLE. Keys that differ only in case give one column; where a record has
    several of them, the first one in `source.columns` counts.
    """
    if source.options.whole:
        return "SELECT _row, _file, _line, CAST(text AS JSON) AS data FROM frame"
    spelled: dict[str, list[str]] = {}
    for key in source.columns:
        spelled.setdefault(key.lower(), []).append(key)
    firsts = {
        keys[0]: "VARCHAR" if source.columns[keys[0]] == "DOUBLE" else source.columns[keys[0]]
        for keys in spelled.values()
    }
    structs = "".join(
        f", from_json({record}, {quote(json.dumps(structure))}) AS {name}"
        for name, record, structure in (
            ("typed", "record", {key: kind for key, kind in firsts.items() if kind != "JSON"}),
            ("untyped", "document", {key: kind for key, kind in firsts.items() if kind == "JSON"}),
        )
        if structure
    )
    columns = "".join(f", {_select_key(keys, firsts[keys[0]])} AS {quote_name(keys[0])}" for keys in spelled.values())
    return f"""SELECT _row, _file, _line{columns} FROM (SELECT *{structs} FROM (
        SELECT _row, _file, _line, CAST(quoted AS JSON) AS record, CAST(text AS JSON) AS document FROM frame))"""


def _select_key(keys: Sequence[str], kind: str) -> str:
    """Return SQL for the value of the first of these keys that a record has."""
    struct, record = ("untyped", "document") if kind == "JSON" else ("typed", "record")
    others = (f"from_json({record}, {quote(json.dumps({key: kind}))}).{quote_name(key)}" for key in keys[1:])
    return f"coalesce({', '.join([f'{struct}.{quote_name(keys[0])}', *others])})"


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_conversation(begin: Block) -> bool:
    """Whether an array is a single conversation, that is, whether its first element is a message."""
    text = begin.text.decode().lstrip()[1:].lstrip()
    try:
        first, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "role" in first


def _read_lines(connection: duckdb.DuckDBPyConnection, blocks: Iterable[Block], file: str) -> Iterator[Frames]:
    for frame in lines(blocks, file):
        whole, unfit = fitting(frame)
        good, bad = _check_objects(connection, whole)
        yield good, pl.concat([unfit, bad])


def _read_document(
    connection: duckdb.DuckDBPyConnection, blocks: Iterator[Block], file: str, conversation: bool
) -> Iterator[Frames]:
    """Read a file as one record or, if it is not valid as one, as lines."""
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
        one = pl.DataFrame({"_file": [file], "_line": [1], "text": [_MESSAGES % text if conversation else text]}, LINE)
        good, bad = _check_objects(connection, one)
        if good.height or (bad["reason"] != "broken_json").any():
            yield good, bad
            return
    whole = 0
    found = [no_problems()]
    for good, bad in _read_lines(connection, chain(held, blocks), file):
        whole += good.height
        if not whole:  # unless some line is a record, one broken document is reported
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


def _check_objects(connection: duckdb.DuckDBPyConnection, records: pl.DataFrame) -> Frames:
    """Split records into JSON objects and problems: not an object, or an object that DuckDB can't represent."""
    good, half = _split_off_half_characters(records)
    connection.register("objects", good.to_arrow())
    judged = connection.sql("SELECT *, CASE WHEN json_valid(text) THEN json_type(text) END AS kind FROM objects").pl()
    connection.unregister("objects")
    is_object = (pl.col("kind") == "OBJECT").fill_null(False)
    detail = (
        pl.when(pl.col("kind").is_null())
        .then(pl.lit("not valid JSON"))
        .otherwise(pl.format("expected an object, found {}", pl.col("kind")))
    )
    bad = _make_problems(judged.filter(~is_object), "broken_json", detail)
    shallow, deep = _split_off_deep(judged.filter(is_object).drop("kind"))
    return shallow, pl.concat([half, bad, deep])


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
