"""Registries of what a recipe can name (readers, rules, methods, losses, metrics), with suggestions for typos."""

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import TypeVar

from .errors import ConanError, RecipeError

Value = TypeVar("Value")

_LISTED = 50
"""Chosen here: at most this many known names in a message; a classifier may have thousands of labels."""


class Registry(dict[str, Value]):
    """Values of one kind by name, in the order of registration. `kind` is what messages call them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str, value: Value) -> Value:
        """Add a value under a name, and return it.

        Raises:
            ConanError: the name is taken.
        """
        if name in self:
            raise ConanError(f"the {self.kind} {name!r} exists already; register yours under another name")
        self[name] = value
        return value

    def find(self, name: str, place: str) -> Value:
        """Look up a name from a recipe. `place` says where it is, such as `recipe.yaml:12: mine.method`.

        Raises:
            RecipeError: nothing is registered under that name; the message suggests the nearest one.
        """
        check_names(self.kind, [name], self, place)
        return self[name]


def check_names(kind: str, names: Iterable[str], known: Collection[str], place: str) -> None:
    """Check that names from a recipe are known. `place` says where they are, as in `Registry.find`.

    Raises:
        RecipeError: one is unknown; the message suggests the nearest known one.
    """
    for name in names:
        if name not in known:
            raise RecipeError(f"{place}: no {kind} is called {name!r}{did_you_mean(name, known)}")


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr, list_others: bool = True) -> str:
    """Return the end of a message about an unknown name: the nearest known one, or all of them if none is similar.

    Args:
        name: The unknown name.
        known: The known names.
        show: Formats the suggested name; for a key, for example, in backticks.
        list_others: Whether to list the known names if none is similar.
    """
    names = list(known)
    if near := get_close_matches(name, names, 1, cutoff=0.5):
        return f"; did you mean {show(near[0])}?"
    if not list_others:
        return ""
    if not names:
        return "; there is nothing to choose from"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; choose from {', '.join(names[:_LISTED])}{more}"
