"""Find columns by the roles that their names have, and write the SQL for a column."""

from collections.abc import Iterator, Sequence
from functools import cache

import duckdb

from ..corpus.sql import quote_name
from .names import find_role
from .profiles import Column


def role_of(column: Column) -> str | None:
    found = find_role(column.name)
    return found[0] if found else None


def _candidates(columns: Sequence[Column], role: str) -> Iterator[Column]:
    """Yield the columns whose names have a role: the outer ones first, and of these those whose whole names do."""
    named = [(column, found[1]) for column in columns if (found := find_role(column.name)) and found[0] == role]
    yield from (column for column, _ in sorted(named, key=lambda one: (len(one[0].path), not one[1])))


def find_all(columns: Sequence[Column], role: str) -> list[Column]:
    return [column for column in _candidates(columns, role) if column.is_prose]


def find_one(columns: Sequence[Column], role: str, lists: bool = False) -> Column | None:
    """Find the column of texts with a role; of several contents, the one with the longest texts."""
    named = list(_candidates(columns, role))
    found = [column for column in named if column.is_prose or (lists and column.kind == "texts")]
    if not found and role == "answer":  # `42` may be an answer; so may `B`
        found = [column for column in named if column.kind in ("text", "number") and column.distinct > 1]
    if role == "content":
        return max(found, key=lambda column: column.length, default=None)
    return found[0] if found else None


def find_label(columns: Sequence[Column], classes: bool = True) -> Column | None:
    found = [
        column for column in _candidates(columns, "label") if column.kind in ("text", "number") and column.distinct > 1
    ]
    names = {column.name: column for column in columns}
    for column in found:
        if classes and (named := names.get(f"{column.name}_name")) and named.values:
            return named
        if column.kind == "number" or column.length <= 20:
            return column
    return None


@cache
def _reserved() -> frozenset[str]:
    words = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    return frozenset(word for (word,) in duckdb.connect().execute(words).fetchall())


def sql_of(column: Column) -> str:
    """Return the SQL for a column: its name, or the path to a field."""
    return ".".join(
        name if name.isidentifier() and name.lower() not in _reserved() else quote_name(name) for name in column.path
    )
