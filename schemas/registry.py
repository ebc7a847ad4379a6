"""Registries: what a recipe may name (readers, rules, methods, losses, metrics), and what it may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

from .errors import ConanError, RecipeError

Value = TypeVar("Value")


class Registry(dict[str, Value]):
    """Things of one kind by the names that recipes give them, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str, value: Value) -> Value:
        """Add a value under a name; returns the value.

        Raises:
            ConanError: the name is taken.
        """
        if name in self:
            raise ConanError(f"a {self.kind} is called {name!r} already; register yours under another name")
        self[name] = value
        return value

    def find(self, name: str, place: str) -> Value:
        """The value of a name that stands at `place`, such as `recipe.yaml:12: mine.method`.

        Raises:
            RecipeError: nothing is registered under that name; the nearest one is suggested.
        """
        if name not in self:
            raise RecipeError(f"{place}: no {self.kind} is called {name!r}{did_you_mean(name, self)}")
        return self[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them where none is near."""
    names = list(known)
    if near := get_close_matches(name, names, 1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(names)}" if names else "; there are none"
