"""Choose the DuckDB type of a column from its values in JSON records, and tell which values do not fit a type."""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import duckdb

from ...schemas.errors import RecipeError
from ..corpus.sql import quote_name

MIXED_SHARE = 1 / 3
"""Chosen here: a column is mixed if more than this share of its values are of another kind than most."""

MOST_FIELDS = 200
"""Chosen here: an inner object with more fields than this is keyed by data, such as ids, and stays JSON."""

LONGEST_INTEGER = 18
"""Digits of the longest integer that BIGINT holds whatever its digits are."""

_INTEGERS = ("tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint")
_MOST_ELEMENTS = 1_000  # of a list that are looked at
_SCALARS = ("text", "integer", "number", "boolean")
_SHOWN = {"text": "texts", "integer": "numbers", "number": "numbers", "boolean": "booleans", "list": "lists"}


@dataclass
class Seen:
    """The values that a sample has in one place: how many of each kind, and where the first of each kind is."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    element: "Seen | None" = None
    fields: "dict[str, Seen]" = field(default_factory=dict)

    def add(self, value: Any, place: str) -> None:
        """Count a value of a JSON document, found in `place`."""
        kind = _find_kind(value)
        self.kinds[kind] += 1
        self.first.setdefault(kind, place)
        if isinstance(value, list):
            self.element = self.element or Seen()
            for each in value[:_MOST_ELEMENTS]:
                self.element.add(each, place)
        elif isinstance(value, dict) and len(self.fields) <= MOST_FIELDS:
            for key, each in value.items():
                self.fields.setdefault(key, Seen()).add(each, place)


class MixedColumnError(RecipeError):
    """A column without a type, because too many of its values are of different kinds."""


def _find_kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer" if abs(value) < 10**LONGEST_INTEGER else "number"
        case float():
            return "number"
        case str():
            return "text"
        case list():
            return "list"
        case _:
            return "object"


def choose_type(
    seen: Seen,
    path: str,
    names: set[str] | None,
    inner: str,
    decimals: str = "DOUBLE",
    others: float = MIXED_SHARE,
) -> str | None:
    """Choose the DuckDB type for values; None if all are null.

    The kind of most values decides: list, object, or scalar. Mixed scalars are VARCHAR, which holds all of them as they
    are written. Fields that the SQL does not name are JSON.

    Args:
        seen: The values.
        path: How the recipe's SQL names them, for the error.
        names: Lower-case names in the SQL; None for every name.
        inner: The type of decimals in lists and objects.
        decimals: The type of numbers that are not integers of at most LONGEST_INTEGER digits.
        others: The largest share of values that are not of the most frequent kind.

    Raises:
        MixedColumnError: more of the values are not of the most frequent kind.
    """
    count = {"list": seen.kinds["list"], "object": seen.kinds["object"], "scalar": sum(seen.kinds[k] for k in _SCALARS)}
    kind = max(count, key=count.__getitem__)
    if not count[kind]:
        return None
    if kind == "list":
        element = choose_type(seen.element, f"{path}[]", names, inner, inner, others) if seen.element else None
        chosen = f"{element or 'VARCHAR'}[]"
    elif kind == "object":
        chosen = _choose_struct(seen, path, names, inner, others)
    else:
        chosen = _choose_scalar(seen.kinds, decimals)
    if sum(count.values()) - count[kind] > others * sum(count.values()):
        raise MixedColumnError(_describe_mixture(seen, path))
    return chosen


def _choose_scalar(kinds: Counter[str], decimals: str) -> str:
    """Choose the type of most scalars; VARCHAR holds all of them if they are mixed."""
    numbers = kinds["integer"] + kinds["number"]
    few = MIXED_SHARE * (numbers + kinds["boolean"] + kinds["text"])
    if kinds["text"] + kinds["boolean"] <= few:
        return decimals if kinds["number"] else "BIGINT"
    return "BOOLEAN" if kinds["text"] + numbers <= few else "VARCHAR"


def _choose_struct(seen: Seen, path: str, names: set[str] | None, inner: str, others: float) -> str:
    """Choose a field for each key; of keys that differ only in case, which fields can't do, for the most frequent."""
    distinct = {key.lower() for key in seen.fields}
    if len(seen.fields) > MOST_FIELDS or (names is None and ("" in distinct or len(distinct) < len(seen.fields))):
        return "JSON"  # keyed by data, or the SQL wants all of it and fields can't hold it
    frequent = sorted(filter(None, seen.fields), key=lambda key: seen.fields[key].kinds.total())
    fields = {key.lower(): key for key in frequent}  # the last one stays
    if not fields:
        return "JSON"
    chosen = {
        key: (choose_type(field, f"{path}.{key}", names, inner, inner, others) or "VARCHAR")
        if names is None or key.lower() in names
        else "JSON"
        for key, field in seen.fields.items()
        if fields.get(key.lower()) == key
    }
    return "STRUCT(" + ", ".join(f"{quote_name(key)} {kind}" for key, kind in chosen.items()) + ")"


def _describe_mixture(seen: Seen, path: str) -> str:
    found = {kind: count for kind, count in seen.kinds.most_common() if kind != "null"}
    listed = ", ".join(
        f"{count} {_SHOWN.get(kind, 'objects')} (first in {seen.first[kind]})" for kind, count in found.items()
    )
    return f"the column {path} is mixed: {listed}"


def describe_type(seen: Seen, path: str) -> str:
    """Describe the type of values for people: that of most, or what they are a mixture of."""
    try:
        kind = choose_type(seen, path, None, "DOUBLE")
    except MixedColumnError as error:
        return str(error)
    return str(parse_type(kind)) if kind else "null"


@lru_cache
def parse_type(name: str) -> duckdb.sqltypes.DuckDBPyType:
    """Parse the name of a DuckDB type. Raises duckdb.Error if there is no such type."""
    return duckdb.sqltype(name)


def fits(value: Any, kind: duckdb.sqltypes.DuckDBPyType) -> bool:
    """Whether a value of a JSON document has the type, as far as lists, objects and scalars go."""
    if value is None or str(kind) == "JSON":
        return True
    if kind.id == "list":
        return isinstance(value, list) and all(fits(each, _child_types(kind)["child"]) for each in value)
    if kind.id == "struct":
        return isinstance(value, dict) and all(
            fits(value.get(name), inner) for name, inner in _child_types(kind).items()
        )
    if kind.id == "map":
        return isinstance(value, dict)
    if isinstance(value, list | dict):
        return False
    if kind.id == "boolean":
        return isinstance(value, bool)
    if kind.id in _INTEGERS:
        return isinstance(value, int) and not isinstance(value, bool)
    return True


def _child_types(kind: duckdb.sqltypes.DuckDBPyType) -> dict[str, duckdb.sqltypes.DuckDBPyType]:
    return dict(kind.children)  # type: ignore[arg-type]


def family(kind: str) -> str:
    """Return what a type is made of: `list`, `struct`, `map` or `scalar`."""
    found = str(parse_type(kind).id)
    return found if found in ("struct", "map") else "list" if found in ("list", "array") else "scalar"


def merge_types(kinds: Counter[str], path: str) -> str | None:
    """Choose one type for a column whose type differs between files; None if it can stay as it is in each.

    Args:
        kinds: The DuckDB types that the column has, with the number of rows that have each.
        path: How the recipe's SQL names the column, for the error.

    Raises:
        MixedColumnError: more than MIXED_SHARE of the rows are not of the most frequent family of types.
    """
    families: Counter[str] = Counter()
    for kind, rows in kinds.items():
        families[family(kind)] += rows
    (most, rows), *_ = families.most_common()
    of_most = {kind for kind in kinds if family(kind) == most}
    if kinds.total() - rows > MIXED_SHARE * kinds.total():
        listed = ", ".join(f"{count} rows of {kind}" for kind, count in kinds.most_common())
        raise MixedColumnError(f"the column {path} is mixed: {listed}")
    if len(of_most) == 1:
        return of_most.pop()
    if most != "scalar":
        return None
    numbers = {kind for kind in of_most if parse_type(kind).id in (*_INTEGERS, "float", "double", "decimal")}
    return "DOUBLE" if numbers == of_most else "VARCHAR"
