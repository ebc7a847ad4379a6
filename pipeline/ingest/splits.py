"""What one task of ingest reads: small files packed together, large ones cut where a record ends."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ...schemas.settings import Source
from .files import FileError, FileSplit, SourceFile, file_at, is_packed, list_files, open_file, read_chunks
from .hf_reader import list_arrow_files
from .text_encodings import find_encoding

PART_BYTES = 64 << 20
"""Chosen here: bytes of source files (as they lie on disk) that make one shard."""


def source_files(source: Source, globs: Sequence[str]) -> list[SourceFile]:
    """The files of a source; of a folder that the `datasets` library wrote, its Arrow files."""
    if source.read != "hf":
        return list_files(globs, source.exclude)
    found = [arrow for file in list_files(globs, source.exclude, folders=True) for arrow in _arrow_files(file)]
    return list({file.path: file for file in found}.values())


def _arrow_files(file: SourceFile) -> list[SourceFile]:
    if file.path.endswith(".arrow"):
        return [file]
    try:
        return [file_at(path) for path in list_arrow_files(file.path)]
    except FileError:
        return [file]  # reading it tells why


def plan_splits(source: Source, files: Sequence[SourceFile]) -> Iterator[list[FileSplit]]:
    """Stretches of about PART_BYTES in the order of the files."""
    part: list[FileSplit] = []
    size = 0
    for file in files:
        if file.size > PART_BYTES and len(cuts := _cut(source, file)) > 1:
            if part:
                yield part
            yield from ([cut] for cut in cuts)
            part, size = [], 0
            continue
        if part and size + file.size > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(FileSplit(file.path))
        size += file.size
    if part:
        yield part


def _cut(source: Source, file: SourceFile) -> list[FileSplit]:
    """The splits of a large file: one, where only its beginning tells how to read on."""
    quoted = source.options.quote or (source.read == "csv" and source.options.quote is None)
    try:
        if source.read == "parquet":
            return _row_groups(file.path)
        if source.read in ("jsonl", "text", "tsv", "csv") and not quoted and not is_packed(file.path):
            return _whole_lines(file.path, source.encoding)
    except (FileError, pa.ArrowException):
        pass  # reading it tells why
    return [FileSplit(file.path)]


def _row_groups(path: str) -> list[FileSplit]:
    with open_file(path) as file:
        metadata = pq.read_metadata(file)
    found: list[FileSplit] = []
    start, size, line, first_line = 0, 0, 1, 1
    for group in range(metadata.num_row_groups):
        found_there = metadata.row_group(group)
        size += sum(found_there.column(column).total_compressed_size for column in range(found_there.num_columns))
        line += found_there.num_rows
        if size >= PART_BYTES or group + 1 == metadata.num_row_groups:
            found.append(FileSplit(path, start, group + 1, first_line))
            start, size, first_line = group + 1, 0, line
    return found


def _whole_lines(path: str, declared: str | None) -> list[FileSplit]:
    """Cut after the first line that ends beyond each PART_BYTES; a pass over the file, so lines keep their numbers.

    In every encoding of Chinese but UTF-16 and UTF-32 the byte of a line feed is part of no other character.
    """
    encoding = find_encoding(read_chunks(FileSplit(path)), declared)
    if encoding.startswith(("utf-16", "utf-32")):
        return [FileSplit(path)]
    found: list[FileSplit] = []
    start, line, first_line, offset = 0, 1, 1, 0
    for chunk in read_chunks(FileSplit(path)):
        counted = 0
        while (end := chunk.find(b"\n", max(0, start + PART_BYTES - offset)) + 1) and end > counted:
            line += chunk.count(b"\n", counted, end)
            found.append(FileSplit(path, start, offset + end, first_line, encoding))
            start, first_line, counted = offset + end, line, end
        line += chunk.count(b"\n", counted)
        offset += len(chunk)
    if start < offset:
        found.append(FileSplit(path, start, None, first_line, encoding))
    return found
