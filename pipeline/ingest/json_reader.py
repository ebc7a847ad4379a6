"""Read JSON records from lines, arrays and whole documents, and find the structure they share."""

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
"""Chosen here: levels of nesting; beyond 128, DuckDB's json_structure fails and invalidates the database."""

MOST_FIELDS = 200
"""Chosen here: an inner object with more fields than this is keyed by data, such as ids, and stays JSON."""

_PAIRED = r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_MESSAGES = '{"messages":%s}'
_NUMBERS = ("UBIGINT", "BIGINT", "HUGEINT", "DOUBLE")


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
    """Prepend to a SELECT the table it reads, `records(_row, _file, _line, record JSON)`, made from `frame`."""
    return f"WITH records AS (SELECT _row, _file, _line, CAST(text AS JSON) AS record FROM frame) {select}"


def select_objects(source: Source, connection: duckdb.DuckDBPyConnection, frames: Iterable[pl.DataFrame]) -> str:
    """Return SQL for a column per key of the objects in these frames, or for one column `data` with option `whole`."""
    columns = ", record AS data"
    if not source.options.whole:
        structure = find_structure(connection, frames)
        quoted = structure.replace("'", "''")
        columns = f", unnest(from_json(record, '{quoted}'))" if structure != "{}" else ""
    return select_from_records(f"SELECT _row, _file, _line{columns} FROM records")


def find_structure(connection: duckdb.DuckDBPyConnection, records: Iterable[pl.DataFrame]) -> str:
    """Find the structure, in JSON, with which DuckDB's from_json can represent every record."""
    structure: dict[str, Any] = {}
    for frame in records:
        connection.register("texts", frame.to_arrow())
        ((found,),) = connection.execute("SELECT json_group_structure(CAST(text AS JSON)) FROM texts").fetchall()
        connection.unregister("texts")
        if found and found != '"JSON"':  # the structure of objects without keys
            structure = _keep_nameable(merge_structures(structure, json.loads(found)))
    return json.dumps(structure)


def merge_structures(one: Any, other: Any) -> Any:
    """Merge two structures as DuckDB's json_group_structure does.

    Objects that never have a key in one of them have the type JSON there, and therefore in the result.
    """
    if one == other or other == "NULL":
        return one
    if one == "NULL":
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merge_structures(one.get(key, "NULL"), other.get(key, "NULL")) for key in one | other}
    if isinstance(one, list) and isinstance(other, list):
        return [merge_structures(one[0], other[0])]
    if one in _NUMBERS and other in _NUMBERS:
        return "DOUBLE" if "DOUBLE" in (one, other) else "HUGEINT"
    return "JSON"


def _keep_nameable(structure: dict[str, Any]) -> dict[str, Any]:
    """Keep the keys that can name columns: not empty, and only the first of several that differ only in case.

    An inner object with a key that can't, or with more than MOST_FIELDS keys, stays JSON.
    """

    def inner(kind: Any) -> Any:
        if isinstance(kind, list):
            return [inner(kind[0])]
        if isinstance(kind, dict):
            columns = _keep_nameable(kind) if len(kind) <= MOST_FIELDS else {}
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
        brackets = brackets.with_columns(text.str.replace_all(r"\[\]|\{\}", "")).filter(text != "")
    deep = pl.col("row").is_in(brackets["row"].implode())
    bad = _make_problems(records.filter(deep), "too_deep", pl.lit(f"more than {DEEPEST_RECORD} levels of nesting"))
    return records.filter(~deep).drop("row"), bad
