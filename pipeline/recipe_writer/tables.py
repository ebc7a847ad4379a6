"""Find how a table is written: its delimiter and quotes, and whether its first record is a header."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from .names import UNNAMED, find_role
from .profiles import Column

_LINES = 200  # that are looked at
_AGREEING = 0.95
"""Chosen here: the share of lines that a delimiter must divide into equally many fields."""
_LONGEST_NAME = 20
"""Chosen here: characters of a column's name; a longer first field is data."""
_OWN_DELIMITER = re.compile(r"\s?[!-/:-@\[-`{-~]{3,}\s?")
_SEPARATOR = re.compile(r'"?sep=(.)"?[ \t,;]*')


class NoTableError(Exception):
    """Lines that no delimiter divides."""


def find_table(text: str, ending: str) -> tuple[str, dict[str, Any]]:
    """Return the reader of a table, csv or tsv, and the options it needs.

    Args:
        text: The beginning of the file.
        ending: That of the file's name. Only tabs, and delimiters of several signs, make a table of a file whose name
            does not say that it is one: prose has commas in every line.

    Raises:
        NoTableError: it is no table.
    """
    lines = [line for line in text.split("\n")[:-1][:_LINES] if line.strip()] or [text.strip()]
    if ending == ".csv":
        return _find_quoted(text, lines)
    for delimiter in ("\t", *_find_own_delimiters(lines[0])):
        counts = Counter(line.count(delimiter) for line in lines)
        number, times = counts.most_common(1)[0]
        if number and times >= _AGREEING * len(lines) and (len(lines) > 1 or ending == ".tsv"):
            rows = [line.rstrip("\r").split(delimiter) for line in lines if line.count(delimiter) == number]
            options: dict[str, Any] = {} if delimiter == "\t" else {"delimiter": delimiter, "quote": ""}
            if delimiter == "\t" and (_are_quoted(rows) or _divides_lines(text, number)):
                options, rows = {"quote": '"'}, _read_rows(lines, delimiter)
            return "tsv", options | _find_header(rows)
    quoted = _read_rows(text.splitlines(keepends=True)[:-1][:_LINES] or [text], "\t")
    if ending in (".tsv", ".txt") and len(quoted) > 1 and len(quoted[0]) > 1 and _is_even(quoted):
        return "tsv", {"quote": '"'} | _find_header(quoted)
    raise NoTableError


def _find_quoted(text: str, lines: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the options of a file called .csv: whichever delimiter gives most fields, equally many in each record."""
    named = _SEPARATOR.fullmatch(lines[0].rstrip("\r"))
    body = text.split("\n", 1)[1] if named else text
    whole = body.splitlines(keepends=True)
    whole = whole[: _LINES * 2] if len(whole) > 1 else whole
    found: list[tuple[int, str, list[list[str]]]] = []
    for delimiter in (",", ";", "\t", "|"):
        rows = _read_rows(whole, delimiter)[:_LINES]
        if rows and _is_even(rows):
            found.append((len(rows[0]), delimiter, rows))
    if not found:
        raise NoTableError
    _, delimiter, rows = max(found, key=lambda one: (one[0] > 1, one[1] == ",", one[0]))
    options = {} if delimiter == "," or named else {"delimiter": delimiter}
    return "csv", options | _find_header(rows)


def _read_rows(lines: Iterable[str], delimiter: str) -> list[list[str]]:
    """Read the records of a table up to the first that Python's reader refuses, as for its length."""
    rows: list[list[str]] = []
    with suppress(csv.Error):
        rows.extend(row for row in csv.reader(lines, delimiter=delimiter) if row)
    return rows


def _are_quoted(rows: Sequence[Sequence[str]]) -> bool:
    """Whether quotes stand around fields, as spreadsheets write them, and nowhere else."""
    fields = [field for row in rows for field in row if '"' in field]
    return bool(fields) and all(re.fullmatch(r'"(?:[^"]|"")*"', field) for field in fields)


def _divides_lines(text: str, tabs: int) -> bool:
    """Whether quotes make records of this many tabs out of lines that have another number of them."""
    lines = text.splitlines(keepends=True)[:-1]
    if all(line.count("\t") == tabs for line in lines if line.strip()):
        return False
    return {len(row) for row in _read_rows(lines, "\t")} == {tabs + 1}


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    counts = Counter(map(len, rows))
    return counts[len(rows[0])] >= 0.8 * len(rows)


def _find_own_delimiters(line: str) -> list[str]:
    return list(dict.fromkeys(_OWN_DELIMITER.findall(line)))


def _find_header(rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return no options for a table with a header, else the names for its columns, `column1` and so on."""
    if _is_header(rows[0], rows[1:]):
        return {}
    return {"header": False, "columns": [f"{UNNAMED}{number}" for number, _ in enumerate(rows[0], 1)]}


def _is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a first record names the columns: by words that are names, or unlike what is below it."""
    names = [name.strip(' "\ufeff\r\u3000') for name in first]
    if any(len(name) > _LONGEST_NAME and not name.isascii() for name in names):
        return False
    if any((found := find_role(name)) and found[1] for name in names):
        return True
    columns = [
        Column(("",), [row[place] for row in rows if place < len(row)], len(rows)) for place in range(len(names))
    ]
    if any(Column(("",), [name], 1).kind == "number" for name in names if name):
        return False
    if any(column.kind == "number" for column in columns):
        return True
    if any(name in column.texts for name, column in zip(names, columns, strict=True) if name):
        return False
    below = "".join(text for column in columns for text in column.texts)
    if below and sum(map(str.isascii, below)) < len(below) / 2 and all(name.isascii() for name in names):
        return True  # English names above Chinese texts
    is_short = all(len(name) <= _LONGEST_NAME and not re.search(r"[。\uff1f\uff01?!\uff0c,]", name) for name in names)
    return is_short and any(column.length > 3 * len(name) for name, column in zip(names, columns, strict=True) if name)
