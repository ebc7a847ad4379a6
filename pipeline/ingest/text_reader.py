"""Texts: a row for each line of a file, or a Markdown document as one row of title and body."""

from collections.abc import Iterator

import polars as pl

from .files import FileSplit
from .problems import Frames, fitting, no_problems, problem
from .records import LINE, lines
from .text_encodings import read_blocks, read_text

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
            FROM texts)))
"""
"""Rows of the table `texts`: the front matter's title or else the first heading, and what follows it."""


def read_lines(split: FileSplit, encoding: str | None = None) -> Iterator[Frames]:
    """Read the lines of a split that hold something: `line`, and its number as `line_number`.

    Raises:
        FileError: see text_encodings.read_blocks.
    """
    for frame in lines(read_blocks(split, encoding), split.name):
        good, bad = fitting(frame)
        yield good.rename({"text": "line"}).with_columns(line_number="_line"), bad


def read_document(split: FileSplit, encoding: str | None = None) -> Frames:
    """Read a file as one record; an empty one too, so that the missing title is told.

    Raises:
        FileError: see text_encodings.read_text.
    """
    text, cut = read_text(split.path, encoding)
    whole = pl.DataFrame({"_file": [split.name], "_line": [1], "text": [text]}, LINE)
    cuts = problem(split.name, None, None, "truncated", cut) if cut else no_problems()
    if not text.strip():
        return whole, cuts
    good, bad = fitting(whole)
    return good, pl.concat([bad, cuts])
