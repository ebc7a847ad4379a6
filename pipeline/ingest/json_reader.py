"""JSON of every shape to records: lines, arrays, whole documents; and the structure that all records share."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import duckdb
import polars as pl

from ...schemas.settings import Source
from .files import FileError, FileSplit
from .problems import Frames, fitting, no_problems, problem, shown
from .records import LINE, array_elements, lines
from .text_encodings import LONGEST_DOCUMENT, Block, read_blocks

DEEPEST_RECORD = 100
"""Chosen here: levels of JSON; DuckDB's json_structure ends at 128 and takes its database with it."""

MOST_FIELDS = 200
"""Chosen here: an object of more fields within the records is keyed by data, as by ids, and stays JSON."""

_PAIRED = r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_MESSAGES = '{"messages":%s}'
_NUMBERS = ("UBIGINT", "BIGINT", "HUGEINT", "DOUBLE")


def read_json_lines(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    """Read the lines of a split as objects.

    Raises:
        FileError: see text_encodings.read_blocks.
    """
    yield from _lines(connection, read_blocks(split, source.encoding), split.name)


def read_json(
    split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection, conversations: bool = False
) -> Iterator[Frames]:
    """Read the objects of a file: the elements of its array, its lines, or the document itself.

    Args:
        conversations: an array of messages is one object, `{"messages": […]}`.

    Raises:
        FileError: see text_encodings.read_blocks.
    """
    blocks = read_blocks(split, source.encoding)
    try:
        begin = next(block for block in blocks if block.text.strip())
    except StopIteration:
        yield pl.DataFrame(schema=LINE), problem(split.name, None, None, "broken_json", "nothing in it")
        return
    blocks = chain([begin], blocks)
    is_array = begin.text.lstrip().startswith(b"[")
    if source.options.whole or (conversations and is_array and _is_conversation(begin)):
        yield from _document(connection, blocks, split.name, conversation=not source.options.whole)
    elif is_array:
        for elements, damage in array_elements(blocks, split.name):
            whole, unfit = fitting(elements)
            good, bad = _objects(connection, whole)
            yield good, pl.concat([unfit, bad, _problems(damage, "broken_json", pl.lit("not valid JSON"))])
    elif _is_json(begin.text.lstrip().split(b"\n", 1)[0]):
        yield from _lines(connection, blocks, split.name)
    else:
        yield from _document(connection, blocks, split.name, conversation=False)


def read_chats(split: FileSplit, source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[Frames]:
    """Read the conversations of a file as `read_json` reads objects; a file may be the messages of a single one."""
    return read_json(split, source, connection, conversations=True)


def select_from_records(select: str) -> str:
    """Give a SELECT over `records(_row, _file, _line, record JSON)` what it reads: the records of `frame` as JSON."""
    return f"WITH records AS (SELECT _row, _file, _line, CAST(text AS JSON) AS record FROM frame) {select}"


def select_objects(source: Source, connection: duckdb.DuckDBPyConnection, frames: Iterable[pl.DataFrame]) -> str:
    """Select the keys of all objects in these frames as columns, or each object as JSON in `data` if they are whole."""
    columns = ", record AS data"
    if not source.options.whole:
        structure = structure_of(connection, frames)
        quoted = structure.replace("'", "''")
        columns = f", unnest(from_json(record, '{quoted}'))" if structure != "{}" else ""
    return select_from_records(f"SELECT _row, _file, _line{columns} FROM records")


def structure_of(connection: duckdb.DuckDBPyConnection, records: Iterable[pl.DataFrame]) -> str:
    """The structure that DuckDB's from_json needs to hold every record, as JSON."""
    structure: dict[str, Any] = {}
    for frame in records:
        connection.register("texts", frame.to_arrow())
        ((found,),) = connection.execute("SELECT json_group_structure(CAST(text AS JSON)) FROM texts").fetchall()
        connection.unregister("texts")
        if found and found != '"JSON"':  # objects without any key
            structure = _nameable(merged(structure, json.loads(found)))
    return json.dumps(structure)


def merged(one: Any, other: Any) -> Any:
    """The structure that holds both, as DuckDB's json_group_structure merges.

    An object that is empty wherever it stands in one of them is JSON there, and then in both.
    """
    if one == other or other == "NULL":
        return one
    if one == "NULL":
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merged(one.get(key, "NULL"), other.get(key, "NULL")) for key in one | other}
    if isinstance(one, list) and isinstance(other, list):
        return [merged(one[0], other[0])]
    if one in _NUMBERS and other in _NUMBERS:
        return "DOUBLE" if "DOUBLE" in (one, other) else "HUGEINT"
    return "JSON"


def _nameable(structure: dict[str, Any]) -> dict[str, Any]:
    """The keys of an object that can be columns: DuckDB knows no empty name, and none in both upper and lower case.

    Objects further in that have such keys, or more than MOST_FIELDS, stay JSON.
    """

    def inner(kind: Any) -> Any:
        if isinstance(kind, list):
            return [inner(kind[0])]
        if isinstance(kind, dict):
            columns = _nameable(kind) if len(kind) <= MOST_FIELDS else {}
            return columns if len(columns) == len(kind) else "JSON"
        return kind

    columns: dict[str, Any] = {}
    taken = {""}
    for key, kind in structure.items():
        if key.lower() not in taken:
            columns[key] = inner(kind)
            taken.add(key.lower())
    return columns


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_conversation(begin: Block) -> bool:
    """Whether an array is one conversation: its elements are messages themselves."""
    text = begin.text.decode().lstrip()[1:].lstrip()
    try:
        first, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "role" in first


def _lines(connection: duckdb.DuckDBPyConnection, blocks: Iterable[Block], file: str) -> Iterator[Frames]:
    for frame in lines(blocks, file):
        whole, unfit = fitting(frame)
        good, bad = _objects(connection, whole)
        yield good, pl.concat([unfit, bad])


def _document(
    connection: duckdb.DuckDBPyConnection, blocks: Iterator[Block], file: str, conversation: bool
) -> Iterator[Frames]:
    """A file as one record; where it is none, its lines."""
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
        good, bad = _objects(connection, one)
        if good.height or (bad["reason"] != "broken_json").any():
            yield good, bad
            return
    whole = 0
    found = [no_problems()]
    for good, bad in _lines(connection, chain(held, blocks), file):
        whole += good.height
        if not whole:  # as long as no line is a record, it is the document that is broken
            found.append(bad)
            continue
        yield good, pl.concat([*found, bad])
        found = [no_problems()]
    if not whole and size <= LONGEST_DOCUMENT:
        reason = _json_error(text)
        broken = problem(file, reason.lineno, None, "broken_json", str(reason))
        yield pl.DataFrame(schema=LINE), broken.with_columns(record=shown(pl.lit(text)))
    elif not whole:
        yield pl.DataFrame(schema=LINE), pl.concat(found)
    if damage:
        raise damage


def _json_error(text: str) -> json.JSONDecodeError:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return json.JSONDecodeError("nested too deep", "", 0)
    return json.JSONDecodeError("not valid JSON", "", 0)


def _objects(connection: duckdb.DuckDBPyConnection, records: pl.DataFrame) -> Frames:
    """Split off what is not a JSON object, and what DuckDB can't hold as one."""
    good, half = _without_half_characters(records)
    connection.register("objects", good.to_arrow())
    judged = connection.sql("SELECT *, CASE WHEN json_valid(text) THEN json_type(text) END AS kind FROM objects").pl()
    connection.unregister("objects")
    is_object = (pl.col("kind") == "OBJECT").fill_null(False)
    detail = (
        pl.when(pl.col("kind").is_null())
        .then(pl.lit("not valid JSON"))
        .otherwise(pl.format("expected an object, found {}", pl.col("kind")))
    )
    bad = _problems(judged.filter(~is_object), "broken_json", detail)
    shallow, deep = _without_deep(judged.filter(is_object).drop("kind"))
    return shallow, pl.concat([half, bad, deep])


def _problems(records: pl.DataFrame, reason: str, detail: pl.Expr) -> pl.DataFrame:
    return records.select(
        file="_file", line="_line", record=shown(pl.col("text")), reason=pl.lit(reason), detail=detail
    )


def _without_half_characters(records: pl.DataFrame) -> Frames:
    """Split off records that escape half a character, such as `\\ud83d` alone: JSON, but no text."""
    text = pl.col("text")
    suspect = records.filter(text.str.contains(r"\\u[dD][89a-fA-F]"))
    if suspect.is_empty():
        return records, no_problems()
    half = text.str.replace_all(_PAIRED, " ").str.extract(f"({_HALF})").alias("half")
    judged = records.with_columns(half)
    bad = judged.filter(pl.col("half").is_not_null())
    detail = pl.format("half a character is escaped: {}", "half")
    return judged.filter(pl.col("half").is_null()).drop("half"), _problems(bad, "encoding", detail)


def _without_deep(records: pl.DataFrame) -> Frames:
    """Split off records of more levels than DEEPEST_RECORD."""
    text = pl.col("text")
    records = records.with_row_index("row")
    nested = records.filter(text.str.count_matches(r"[\[{]") > DEEPEST_RECORD)
    if nested.is_empty():
        return records.drop("row"), no_problems()
    brackets = nested.select("row", text.str.replace_all(r'"(?:[^"\\]|\\.)*"|[^\[\]{}]', ""))
    for _ in range(DEEPEST_RECORD):  # each pass takes the innermost levels away
        brackets = brackets.with_columns(text.str.replace_all(r"\[\]|\{\}", "")).filter(text != "")
    deep = pl.col("row").is_in(brackets["row"].implode())
    bad = _problems(records.filter(deep), "too_deep", pl.lit(f"more than {DEEPEST_RECORD} levels"))
    return records.filter(~deep).drop("row"), bad
