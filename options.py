"""What commands share: types of options, and what these become (a recipe, an engine, a stage that is run and shown)."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display

if TYPE_CHECKING:
    from .pipeline.engine.calls import Engine
    from .schemas.recipe import Recipe

BAD_INPUT = 3
"""The exit code under --strict where input was bad."""


class EngineName(StrEnum):
    """Where data stages run."""

    LOCAL = "local"
    RAY = "ray"


def _debug(wanted: bool) -> bool:
    """Workers read it from the environment, too."""
    if wanted:
        os.environ["CONAN_DEBUG"] = "1"
    return wanted


def _numbers(text: str | None) -> str | None:
    if text is not None and not all(part.strip().isdecimal() for part in text.split(",")):
        raise typer.BadParameter("expected whole numbers, as 256,512")
    return text


Corpus = Annotated[Path, typer.Argument(help="The corpus folder.")]
Overrides = Annotated[list[str], typer.Option("--set", help="Override the recipe: key.key=value. May be repeated.")]
Workers = Annotated[int, typer.Option(help="Processes at a time; 0 is one for each core.", min=0)]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="Processes of this machine, or a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="The Ray cluster: HOST:PORT; default: the one this machine is in.")]
Processes = Annotated[int, typer.Option("--nproc", help="Training processes on this machine, one a device.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Strict = Annotated[bool, typer.Option(help="Exit with 3 if any input was bad.")]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.", callback=_debug)]
RecipeFile = Annotated[Path | None, typer.Option(help="A recipe (YAML); default: the one kept in the corpus.")]
Dimensions = Annotated[
    str | None, typer.Option(help="Widths to cut vectors to besides their own, as 256,512.", callback=_numbers)
]


def read_recipe(file: Path, overrides: list[str]) -> "Recipe":
    """The recipe of a command, its plugins imported.

    Raises RecipeError on a mistake in it or in an override, and where a plugin can't be imported.
    """
    from .pipeline.plugins import load_plugins
    from .schemas.recipe import load

    recipe = load(file, overrides)
    load_plugins(recipe.plugins)
    return recipe


def resolve(corpus: Path, file: Path | None, overrides: list[str]) -> "Recipe":
    """The recipe of a command on a corpus: the file, or else the one that the corpus keeps.

    Raises RecipeError as `read_recipe` does, and where there is neither file nor corpus.
    """
    from .pipeline.corpus.saved_recipe import find_recipe

    return read_recipe(file or find_recipe(corpus), overrides)


def with_options(overrides: list[str], options: dict[str, Any]) -> list[str]:
    """Options of a command as overrides of the recipe; quoted, so that no text is taken for another YAML value."""
    return overrides + [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]


def cluster_of(engine: EngineName, address: str | None) -> str | None:
    """The Ray cluster to work on; None is this machine. An address without --engine ray is a usage error."""
    if engine == EngineName.RAY:
        return address or "auto"
    if address is not None:
        raise typer.BadParameter("only with --engine ray", param_hint="--address")
    return None


@contextmanager
def work(corpus: Path, workers: int = 1, cluster: str | None = None) -> Iterator["Engine"]:
    """The corpus held, and an engine that shows its progress."""
    from .pipeline.corpus.lock import locked
    from .pipeline.engine.calls import Engine
    from .pipeline.engine.local import close_workers

    with locked(corpus), display.progress() as show:
        try:
            yield Engine(workers, show, cluster)
        finally:
            close_workers()


def run_and_show(
    name: str,
    corpus: Path,
    recipe: "Recipe",
    as_json: bool,
    workers: int = 1,
    cluster: str | None = None,
    strict: bool = False,
) -> None:
    """Run a data stage and show its summary; exits with BAD_INPUT if `strict` and any input was bad."""
    from .workflow import run_data_stage

    with work(corpus, workers, cluster) as engine:
        summary = run_data_stage(name, corpus, recipe, engine)
    display.show_outcome(summary, as_json)
    if strict and summary.bad_input:
        raise typer.Exit(BAD_INPUT)
