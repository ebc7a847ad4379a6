"""Registries: what a recipe may name (readers, rules, methods, losses, metrics), and what it may have meant."""

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import TypeVar

from .errors import ConanError, RecipeError

Value = TypeVar("Value")

_LISTED = 50
"""Chosen here: known names that a message lists at most; a classifier may have thousands of labels."""


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
        """Look up a name that a recipe gives at `place`, such as `recipe.yaml:12: mine.method`.

        Raises:
            RecipeError: nothing is registered under that name; the nearest one is suggested.
        """
        check_names(self.kind, [name], self, place)
        return self[name]


def check_names(kind: str, names: Iterable[str], known: Collection[str], place: str) -> None:
    """Check that the names that a recipe gives at `place` are known.

    Raises:
        RecipeError: one is not; the nearest known one is suggested.
    """
    for name in names:
        if name not in known:
            raise RecipeError(f"{place}: no {kind} is called {name!r}{did_you_mean(name, known)}")


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr, list_others: bool = True) -> str:
    """End a message about an unknown name: suggest the nearest known one, or list them all if none is near.

    Args:
        name: The unknown name.
        known: The names that it may have been meant for.
        show: How the suggested name is written, such as in backticks for a key.
        list_others: Whether the known names are listed at all.
    """
    names = list(known)
    if near := get_close_matches(name, names, 1, cutoff=0.5):
        return f"; did you mean {show(near[0])}?"
    if not list_others:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there are {', '.join(names[:_LISTED]) or 'none'}{more}"
