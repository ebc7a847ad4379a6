"""The command line: the commands of every panel, and how an error ends one.

A command parses its options, calls one function and prints the outcome; there is no logic in it. Heavy libraries are
imported when a command needs them, so that `conan --help` and shell completion are fast.
"""

import logging
import os
import sys
import traceback
from typing import Annotated

import typer

from . import __version__, collect_garbage_seldom, display
from .commands import data, inspection, training, whole

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Start with `conan demo`. `conan COMMAND --help` shows the options and examples of a command.",
)
for panel in (whole, data, training, inspection):
    app.add_typer(panel.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"conan {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Curate text pairs, mine hard negatives, train text-embedding models."""


def main() -> None:
    """Run a command. An error is one message and an exit code: 2 usage, 3 bad input with --strict,
    4 a model that fails, 1 anything else."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Saving a model imports DeepSpeed, which would report on standard output, among our JSON, that it found no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    collect_garbage_seldom()
    try:
        app()
    except Exception as error:
        from .pipeline.corpus.uris import name_uris
        from .schemas.errors import ConanError, RecipeError

        if os.environ.get("CONAN_DEBUG"):
            traceback.print_exc()
        foreseen = isinstance(error, ConanError | OSError)  # errors of the operating system name the file
        message = name_uris(str(error) if foreseen else f"{type(error).__name__}: {error} (--debug shows where)")
        display.errors.print(f"error: {message}", style="red", soft_wrap=True)
        sys.exit(2 if isinstance(error, RecipeError) else 1)
