"""Commands that run everything at once."""

from functools import partial
from pathlib import Path

import typer

from .. import display, options
from ..options import (
    BAD_INPUT,
    Address,
    AsJson,
    Debug,
    EngineName,
    EngineOption,
    Overrides,
    Processes,
    Strict,
    Workers,
    cluster_of,
    find_corpus,
    read_recipe,
    work,
)
from ..schemas.outcomes import Summary
from ..show_outcome import show_outcome
from .inspection import sql
from .registration import register

app = typer.Typer()
command = partial(register, app, "Everything at once")


@command("conan init raw", "conan init hf://datasets/ORG/NAME -o recipes/name.yaml")
def init(
    place: options.Place,
    recipe: options.NewRecipe = Path("recipe.yaml"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at a folder of raw files and write a recipe for it, with a comment on each guess."""
    from ..pipeline.recipe_writer.draft import draft_recipe

    display.show_draft(draft_recipe(place, recipe), as_json)


@command("conan run recipe.yaml corpora/zh --nproc 8")
def run(
    recipe: options.RecipeArgument,
    corpus: options.OptionalCorpus = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    processes: Processes = None,
    strict: Strict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run every stage of a recipe. Finished work is skipped, so after an interruption run it again."""
    from ..workflow import run

    resolved = read_recipe(recipe, overrides)
    folder = find_corpus(resolved, corpus, recipe)
    bad = False
    with work(folder, workers, cluster_of(engine, address)) as chosen:
        for _, outcome in run(folder, resolved, chosen, processes):
            show_outcome(outcome, as_json)
            bad = bad or (isinstance(outcome, Summary) and outcome.bad_input)
    if strict and bad:
        raise typer.Exit(BAD_INPUT)


@command("conan check recipe.yaml", "conan check recipe.yaml corpora/zh --json")
def check(
    recipe: options.RecipeArgument,
    corpus: options.OptionalCorpus = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find what is wrong with a recipe, its files, models and extras; write and download nothing.

    The exit code is 1 if there is an error.
    """
    from ..check import check_recipe

    findings = check_recipe(recipe, overrides, corpus)
    display.show_findings(findings, as_json)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@command("conan demo demo")
def demo(
    folder: options.DemoFolder = Path("demo"),
    debug: Debug = False,
) -> None:
    """Write a small, dirty data set, run every stage on it, and show the results."""
    from ..pipeline.demo.language_model import serve
    from ..pipeline.demo.prepare import DEMO_QUESTIONS, conclude, prepare_demo
    from ..workflow import run

    corpus = folder / "corpus"
    outcomes = []
    with serve() as server:
        resolved, sources = prepare_demo(folder, server)
        typer.echo(f"Sample sources in {sources}, corpus in {corpus}\n")
        with work(corpus, 0) as engine:
            for step, outcome in run(corpus, resolved, engine, 1):
                outcomes.append(outcome)
                display.errors.print(f"{step} done")
    for outcome in outcomes:
        show_outcome(outcome, as_json=False)
    for question in DEMO_QUESTIONS:
        typer.echo(f'\n$ conan sql {corpus} "{question}"')
        sql(corpus, question)
    typer.echo(f"\n{conclude(corpus, outcomes)}")
