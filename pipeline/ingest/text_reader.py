"""Read plain text as one row per line, or a Markdown document as one row of title and body."""

from collections.abc import Iterator

import polars as pl

from ...schemas.settings import Source
from .files import FileSplit, is_packed, read_chunks
from .problems import RECORD, Frames, fitting, no_problems, problem
from .records import LINE, lines
from .text_encodings import find_encoding, read_blocks, read_text

MARKDOWN = r"""
SELECT _row, _file, _line, text,
       coalesce(nullif(trim(regexp_extract(front, '(?m)^title\s*:\s*(.*)$', 1), ' "'''), ''), heading) AS query,
       trim(CASE WHEN heading IS NULL OR front ~ '(?m)^title\s*:' THEN body
                 ELSE substr(body, position(marked IN body) + length(marked)) END) AS positive,
       CAST([] AS VARCHAR[]) AS negatives,
       {'title': heading} AS meta
FROM (
    SELECT *, nullif(trim(coalesce(nullif(regexp_extract(marked, '^\s*#{1,6}[ \t]+(.*?)[# \t]*$', 1), ''),
                                   regexp_extract(marked, '^\s*(.+)\n', 1)), ' #*' || chr(10)), '') AS heading
    FROM (
        SELECT *, regexp_extract(body, '(?m)(^#{1,6}[ \t]+[^\n]+$|^[^\s][^\n]*\n(=+|-{3,})[ \t]*$)') AS marked
        FROM (
            SELECT *, regexp_extract(text, '(?s)^---\n(.*?)\n---[ \t]*\n', 1) AS front,
                   regexp_replace(text, '(?s)^---\n.*?\n---[ \t]*\n', '') AS body
            FROM frame)))
"""
"""Selects from `frame` the title (of the front matter, else the first heading) and the text that follows it."""


def read_lines(split: FileSplit, encoding: str | None = None) -> Iterator[Frames]:
    """Read the lines of a split that are not blank into `line`, with their numbers in `line_number`.

    Raises:
        FileError: see text_encodings.read_blocks.
    """
    for frame in lines(read_blocks(split, encoding), split.name):
        good, bad = fitting(frame)
        yield good.rename({"text": "line"}).with_columns(pl.col("line").alias(RECORD), line_number="_line"), bad


def read_document(split: FileSplit, encoding: str | None = None) -> Iterator[Frames]:
    """Read a file as one record, even if it is empty, so that its missing title is reported.

    Raises:
        FileError: see text_encodings.read_text.
    """
    text, cut = read_text(split.path, encoding)
    whole = pl.DataFrame({"_file": [split.name], "_line": [1], "text": [text]}, LINE)
    cuts = problem(split.name, None, None, "truncated", cut) if cut else no_problems()
    if not text.strip():
        yield whole, cuts
    else:
        good, bad = fitting(whole)
        yield good, pl.concat([bad, cuts])


def split_lines(path: str, source: Source, size: int) -> list[FileSplit]:
    """Split a file between lines into parts of `size` bytes or slightly more, counting lines.

    Compressed files stay whole, and those in UTF-16 and UTF-32: only there can the byte of a line feed be part of
    another character, among all encodings of Chinese.

    Raises:
        FileError: see files.read_chunks and text_encodings.find_encoding.
    """
    whole = FileSplit(path)
    if is_packed(path):
        return [whole]
    encoding = find_encoding(read_chunks(whole), source.encoding)
    if encoding.startswith(("utf-16", "utf-32")):
        return [whole]
    splits: list[FileSplit] = []
    start, line, first_line, offset = 0, 1, 1, 0
    for chunk in read_chunks(whole):
        counted = 0
        while (end := chunk.find(b"\n", max(0, start + size - offset)) + 1) and end > counted:
            line += chunk.count(b"\n", counted, end)
            splits.append(FileSplit(path, start, offset + end, first_line, encoding))
            start, first_line, counted = offset + end, line, end
        line += chunk.count(b"\n", counted)
        offset += len(chunk)
    if start < offset:
        splits.append(FileSplit(path, start, None, first_line, encoding))
    return splits
