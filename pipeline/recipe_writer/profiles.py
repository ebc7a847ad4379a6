"""Describe the columns of sampled records: what kind of values each has, how long and how different they are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

_URL = re.compile(r"\s*(?:https?://|www\.|/[\w?])\S*\s*")
_DATE = re.compile(
    r"\s*\d{2,4}[-/.年]\d{1,2}[-/.月]\d{1,4}日?(?:[T\s]+\d{1,2}:\d{2}.*)?\s*|\s*\d{1,2}:\d{2}(?::\d{2})?\s*"
)
_ID = re.compile(r"[\w.:#@-]+", re.ASCII)  # also names of users
_NO_WORDS = re.compile(r"[\W\d_]*")
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\s*")
_QUESTION = re.compile(
    r"[?\uff1f]|吗|呢\W*$|怎么|怎样|如何|为什么|为何|什么|哪|多少|是否|是不是|能不能|可不可以|谁|几[个天年点时]"
    r"|^\W*(?:what|how|why|who|when|where|which|can|could|does|do|is|are|should)\b",
    re.IGNORECASE,
)
MOST = 0.8
"""Chosen here: the share of values that makes a column one of links, dates, identifiers or numbers."""
FEW_CLASSES = 200
"""Chosen here: more values than this are no classes. TNEWS has 15, IFLYTEK 119."""

SIMILAR = 2
"""Chosen here: how many times longer, in the median, one of two like sentences may be."""
LONGER = 3
"""Chosen here: how many times longer than its title a text is, in the median."""


@dataclass(frozen=True)
class Column:
    """The sampled values of a column, or of a field of its objects.

    Attributes:
        path: The names that lead to it; more than one for a field of an object.
        values: Those that are not null.
        rows: Sampled records, with and without a value.
    """

    path: tuple[str, ...]
    values: list[Any]
    rows: int

    @property
    def name(self) -> str:
        """The last name of the path."""
        return self.path[-1]

    @cached_property
    def kind(self) -> str:
        """The kind of most values: text, number, texts (a list), objects (a list), or other."""
        kinds = [_kind_of(value) for value in self.values]
        return max(dict.fromkeys(kinds), key=kinds.count, default="other")

    @cached_property
    def texts(self) -> list[str]:
        """The values as texts; of a list, its elements."""
        flat = (each for value in self.values for each in (value if isinstance(value, list) else [value]))
        return [str(each).strip() for each in flat if not isinstance(each, dict | None)]

    @cached_property
    def length(self) -> float:
        """The median length of the texts in characters."""
        return median(map(len, self.texts)) if self.texts else 0

    @cached_property
    def distinct(self) -> int:
        """The number of different texts."""
        return len(set(self.texts))

    @property
    def variety(self) -> float:
        """The share of distinct texts."""
        return self.distinct / max(1, len(self.texts))

    def share(self, pattern: re.Pattern[str], whole: bool = True) -> float:
        """Return the share of texts that match a pattern."""
        test = pattern.fullmatch if whole else pattern.search
        return sum(map(bool, map(test, self.texts))) / max(1, len(self.texts))

    @cached_property
    def is_prose(self) -> bool:
        """Whether the values are texts to embed: no links, dates, identifiers, constants or nothing at all."""
        return (
            self.kind == "text"
            and any(self.texts)
            and (self.distinct > 1 or self.rows == 1)
            and all(self.share(pattern) < MOST for pattern in (_URL, _DATE, _ID, _NO_WORDS))
        )

    @cached_property
    def asks(self) -> bool:
        """Whether at least half of the values are questions."""
        return self.share(_QUESTION, whole=False) >= 0.5

    @cached_property
    def has_classes(self) -> bool:
        """Whether few values come again and again."""
        return (
            self.kind in ("text", "number")
            and 1 < self.distinct <= FEW_CLASSES
            and len(self.texts) >= 3 * self.distinct
            and self.length <= 20
        )

    @cached_property
    def numbers(self) -> list[float]:
        """The values as numbers, if all are some."""
        if self.kind != "number" or not all(map(_NUMBER.fullmatch, self.texts)):
            return []
        return [float(text) for text in self.texts]


def _kind_of(value: Any) -> str:
    if isinstance(value, list):
        inner = {_kind_of(each) for each in value[:5]}
        return "texts" if inner <= {"text", "number"} and inner else "objects" if inner == {"object"} else "other"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, bool | int | float):
        return "number"
    if not isinstance(value, str):
        return "other"
    return "number" if _NUMBER.fullmatch(value) else "text"


def profile(records: Sequence[Mapping[str, Any]], above: tuple[str, ...] = ()) -> list[Column]:
    """Describe the columns of records and, after each column of objects, the fields of these."""
    columns: list[Column] = []
    for name in dict.fromkeys(key for record in records for key in record):
        values = [record[name] for record in records if record.get(name) is not None]
        inner = [value for value in values if isinstance(value, dict)]
        if inner and len(inner) == len(values):
            columns += profile(inner, (*above, name))
        else:
            columns.append(Column((*above, name), values, len(records)))
    return columns


def looks_like_score(column: Column) -> bool:
    """Whether numbers may be similarities, and not an index that rises from row to row."""
    numbers = column.numbers
    return (
        min(numbers) >= 0
        and max(numbers) <= 5
        and column.distinct > 1
        and (column.has_classes or column.distinct < len(numbers))
    )


def are_alike(one: Column, other: Column) -> bool:
    """Whether the texts of two columns are about as long."""
    return max(one.length, other.length) < SIMILAR * max(1, min(one.length, other.length))


def answers_within(content: Column, answer: Column) -> bool:
    """Whether answers are much shorter than the texts that they are about, like SQuAD's spans."""
    return answer.length < content.length / LONGER
