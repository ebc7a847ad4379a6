"""Plugins: modules that a recipe names, which register readers, rules, methods, losses or metrics of their own.

They are imported in the command, and in every process that works for it: local workers and Ray nodes get their names
with each call (see engine/calls.py), training processes with their job. A plugin is code and is trusted as such.
"""

import importlib
from collections.abc import Iterable

from ..schemas.errors import RecipeError

_loaded: dict[str, None] = {}
"""Names of the plugins of this process, in the order in which they were imported."""


def load_plugins(names: Iterable[str]) -> None:
    """Import modules by their names; one that is imported already stays as it is.

    Raises:
        RecipeError: a module can't be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a stranger's module raises
            raise RecipeError(
                f"plugins: {name} can't be imported ({type(error).__name__}: {error}); install it where this runs, or "
                "add its folder to PYTHONPATH"
            ) from error
        _loaded[name] = None


def loaded_plugins() -> tuple[str, ...]:
    """The names of the plugins that this process has imported."""
    return tuple(_loaded)
