"""How a command is registered in a panel of `conan --help`."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer

Function = TypeVar("Function", bound=Callable[..., Any])


def register(app: typer.Typer, panel: str, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """Register a command in a panel of `conan --help`; its own help ends with the examples."""
    heading = "Example:" if len(examples) == 1 else "Examples:"
    return app.command(name, rich_help_panel=panel, epilog="\n".join([heading, *examples]))
