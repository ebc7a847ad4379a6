"""Read the folders that Hugging Face `datasets` writes: list their Arrow files in order, and read their rows."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from .files import FileError, FileSplit, SourceFile, open_file, stat_file
from .listing import Listing, list_files
from .parquet_reader import arrow_to_frame
from .problems import Frames, make_distinct, no_problems

_BATCH_ROWS = 2_000
_BATCH_BYTES = 16 << 20
_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Ends a complete stream (Arrow's columnar format, section "IPC Streaming Format"); a file ends with _FILE_MAGIC."""


def list_dataset_files(globs: Sequence[str], exclude: Sequence[str]) -> Listing:
    """List the Arrow files that match the globs, and the Arrow files of dataset folders that match."""
    listing = list_files(globs, exclude, folders=True)
    arrows = {arrow.path: arrow for file in listing.files for arrow in _arrow_files(file)}
    return replace(listing, files=list(arrows.values()))


def _arrow_files(file: SourceFile) -> list[SourceFile]:
    if file.path.endswith(".arrow"):
        return [file]
    try:
        return [stat_file(path) for path in list_arrow_files(file.path)]
    except FileError:
        return [file]  # the reader reports the error


def list_arrow_files(folder: str) -> list[str]:
    """List the Arrow files of a folder written by `save_to_disk`, in the order of its splits and shards.

    Args:
        folder: Path or fsspec URI of a Dataset, of a DatasetDict, or a single file, which is returned as it is.

    Raises:
        FileError: `folder` is something else, or its rows are selected through an indices mapping.
    """
    filesystem, path = fsspec.core.url_to_fs(folder)
    if filesystem.isfile(path):
        return [folder]
    folder = folder.rstrip("/")
    if (splits := _read_json(filesystem, f"{path}/{_SPLITS}")) is not None:
        names = [_check_inside(folder, name) for name in _get_list(splits, "splits", folder)]
        return [file for name in names for file in list_arrow_files(f"{folder}/{name}")]
    if (state := _read_json(filesystem, f"{path}/{_STATE}")) is None:
        expected = f"{_STATE} (of Dataset.save_to_disk) or {_SPLITS} (of DatasetDict.save_to_disk)"
        raise FileError("unreadable", f"expected {expected} in {folder}, or name .arrow files themselves")
    if any(key.startswith("_indices") and value for key, value in state.items()):
        raise FileError("unreadable", f"{folder} has an indices mapping: call flatten_indices() and save it again")
    shards = _get_list(state, "_data_files", folder)
    named = [shard.get("filename") if isinstance(shard, dict) else shard for shard in shards]
    return [f"{folder}/{_check_inside(folder, name)}" for name in named]


def read_dataset(split: FileSplit) -> Iterator[Frames]:
    """Read the rows of an Arrow file that `datasets` wrote.

    Raises:
        FileError: see files.open_file and read_arrow.
    """
    with open_file(split.path) as file:
        for table in read_arrow(file, split.name):
            yield arrow_to_frame(table), no_problems()


def read_arrow(stream: IO[bytes], name: str) -> Iterator[pa.Table]:
    """Read an Arrow file as tables of at most 2,000 rows and about 16 MB.

    Each table has two more columns: `_file` (`name`) and `_line` (row number, from 1). Columns keep their stored
    values. For each integer column of class labels whose name is unique, a column `<column>_name` is added with the
    names of the classes. The name is null for a label outside the list of names, such as -1, which means unlabelled.

    Args:
        stream: Arrow's streaming or file format; seekable. Only one record batch at a time is held in memory.
        name: The value of `_file`.

    Raises:
        FileError: `truncated` or `unreadable`. Rows before the fault are yielded first.
    """
    line = 1
    try:
        start = len(_FILE_MAGIC) + 2 if stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0
        stream.seek(start)  # the file format wraps a stream: a magic number padded to 8 bytes, the stream, a footer
        reader = pa.ipc.open_stream(stream)
        classes = _find_classes(reader.schema)
        for batch in reader:
            batch.validate(full=True)  # Arrow follows offsets without checking where they point
            table_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
            for start_row in range(0, batch.num_rows, table_rows):
                table = pa.Table.from_batches([batch.slice(start_row, table_rows)])
                yield _add_file_and_line(_name_classes(table, classes), name, line)
                line += table.num_rows
        stream.seek(-len(_END_OF_STREAM), 2)
        end = stream.read(len(_END_OF_STREAM))
    except (OSError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        reason = "unreadable" if stream.read(1) else "truncated"  # a parser that stopped at the end ran out of data
        raise FileError(reason, f"{type(error).__name__}: {error}", line) from error
    if end != _END_OF_STREAM and not end.endswith(_FILE_MAGIC):
        raise FileError("truncated", "the file has no end-of-stream marker", line)


def _read_json(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """Read a JSON object from a file; None if there is no such file."""
    if not filesystem.isfile(path):
        return None
    try:
        found = json.loads(filesystem.cat_file(path))
    except ValueError as error:
        raise FileError("unreadable", f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise FileError("unreadable", f"{path} is not a JSON object")
    return found


def _get_list(record: dict[str, Any], key: str, folder: str) -> list[Any]:
    found = record.get(key)
    if not isinstance(found, list):
        raise FileError("unreadable", f"expected {key!r} to be a list in the JSON of {folder}")
    return found


def _check_inside(folder: str, name: object) -> str:
    """Check that a name is directly in the folder: downloaded JSON could name any file on this machine."""
    if not isinstance(name, str) or name in ("", "..") or PurePosixPath(name).name != name:
        raise FileError("unreadable", f"the JSON of {folder} names {name!r}; expected a file or folder in it")
    return name


def _find_classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Find the class names of each label column, in the metadata that `datasets` adds to the schema of each file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _name_classes(table: pa.Table, classes: dict[str, list[str]]) -> pa.Table:
    """Add `<column>_name` for each label column, as described in `read_arrow`."""
    for column, names in classes.items():
        if table.column_names.count(column) == 1 and pa.types.is_integer(table[column].type):
            labels = table[column]
            known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
            labels = pc.if_else(known, labels, pa.scalar(None, labels.type))
            table = table.append_column(f"{column}_name", pc.take(pa.array(names, pa.string()), labels))
    return table


def _add_file_and_line(table: pa.Table, name: str, line: int) -> pa.Table:
    """Add the columns `_file` (`name`) and `_line` (from `line`), and make the other column names distinct."""
    rows = table.num_rows
    table = table.rename_columns(make_distinct(table.column_names))
    table = table.append_column("_file", pa.repeat(pa.scalar(name, pa.string()), rows))
    return table.append_column("_line", pa.array(range(line, line + rows), pa.int64()))
