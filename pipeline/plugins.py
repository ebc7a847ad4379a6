"""Plugins: modules named in a recipe that register their own readers, rules, methods, losses or metrics.

The command imports them, and so does every process that works for it: local workers and Ray nodes get their names with
each call (see engine/calls.py), training processes with their job. A plugin is code and is trusted as such.
"""

import importlib
from collections.abc import Iterable

from ..schemas.errors import RecipeError

_loaded: dict[str, None] = {}
"""Names of the plugins imported in this process, in order of import."""


def load_plugins(names: Iterable[str]) -> None:
    """Import modules by name; those already imported stay as they are.

    Raises:
        RecipeError: a module can't be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a plugin's code may raise anything
            raise RecipeError(
                f"plugins: {name} can't be imported ({type(error).__name__}: {error}); install it where this runs, or "
                "add its folder to PYTHONPATH"
            ) from error
        _loaded[name] = None


def loaded_plugins() -> tuple[str, ...]:
    """Return the names of the plugins imported in this process."""
    return tuple(_loaded)
