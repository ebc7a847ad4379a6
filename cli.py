"""The command line: parses, calls one function, prints. No logic, and nothing heavy is imported before it is needed."""

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display

if TYPE_CHECKING:
    from .pipeline.engine import Engine, Summary
    from .schemas.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Curate text pairs, mine hard negatives, train text-embedding models.",
)
BAD_INPUT = 3


class EngineName(StrEnum):
    """Where data stages run."""

    LOCAL = "local"
    RAY = "ray"


def _debug(wanted: bool) -> bool:
    """Workers read it from the environment, too."""
    if wanted:
        os.environ["CONAN_DEBUG"] = "1"
    return wanted


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


def main() -> None:
    """Run a command; an error is one message and an exit code: 2 usage, 3 bad input under --strict, 1 anything else."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except Exception as error:
        from .schemas.recipe import RecipeError

        if os.environ.get("CONAN_DEBUG"):
            traceback.print_exc()
        foreseen = isinstance(error, OSError) or type(error).__module__ != "builtins"
        message = str(error) if foreseen else f"{type(error).__name__}: {error} (--debug shows where)"
        display.errors.print(f"error: {message}", style="red", soft_wrap=True)
        sys.exit(2 if isinstance(error, RecipeError) else 1)


def _recipe(corpus: Path, file: Path | None, overrides: list[str]) -> "Recipe":
    from .pipeline.corpus import load_recipe
    from .schemas.recipe import load

    return load(file, overrides) if file else load_recipe(corpus, overrides)


def _cluster(engine: EngineName, address: str | None) -> str | None:
    """The Ray cluster to work on; None is this machine."""
    if engine == EngineName.RAY:
        return address or "auto"
    if address is not None:
        raise typer.BadParameter("only with --engine ray", param_hint="--address")
    return None


@contextmanager
def _work(corpus: Path, workers: int = 1, cluster: str | None = None) -> Iterator["Engine"]:
    """The corpus held, and an engine that shows its progress."""
    from .pipeline.corpus import locked
    from .pipeline.engine import Engine, close_workers

    with locked(corpus), display.progress() as show:
        try:
            yield Engine(workers, show, cluster)
        finally:
            close_workers()


def _bad_input(summary: "Summary") -> bool:
    return summary.stage == "ingest" and bool(summary.rejected or summary.notes.get("empty sources"))


def _data_stage(
    name: str,
    corpus: Path,
    recipe: "Recipe",
    as_json: bool,
    workers: int = 1,
    cluster: str | None = None,
    strict: bool = False,
) -> None:
    from .run import data_stage

    with _work(corpus, workers, cluster) as engine:
        summary = data_stage(name, corpus, recipe, engine)
    display.show_result(name, summary, as_json)
    if strict and _bad_input(summary):
        raise typer.Exit(BAD_INPUT)


def _with(overrides: list[str], options: dict[str, Any]) -> list[str]:
    """Options of a command as overrides of the recipe; quoted, so that no text is taken for another YAML value."""
    return overrides + [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]


@app.command()
def ingest(
    corpus: Corpus,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    strict: Strict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read the recipe's sources into pairs; what is no pair is rejected with file, line and reason."""
    resolved = _recipe(corpus, recipe, overrides)
    _data_stage("ingest", corpus, resolved, as_json, workers, _cluster(engine, address), strict)


@app.command("filter")
def filter_(
    corpus: Corpus,
    explain: Annotated[
        str | None, typer.Option(metavar="PAIR_ID", help="Print every rule's value for one pair; write nothing.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each rule would drop of a sample; write nothing.")
    ] = False,
    sample: Annotated[int, typer.Option(help="Pairs that --dry-run judges.", min=1)] = 10_000,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Drop pairs that break a rule; mask personal data."""
    resolved = _recipe(corpus, recipe, overrides)
    if explain is not None:
        from .pipeline.preview import explain as explained

        display.show_explanation(explained(corpus, explain, resolved.filter), as_json)
    elif dry_run:
        from .pipeline.preview import dry_run as tried

        display.show_dry_run(tried(corpus, resolved.filter, sample), as_json)
    else:
        _data_stage("filter", corpus, resolved, as_json, workers, _cluster(engine, address))


@app.command()
def dedup(
    corpus: Corpus,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Drop exact and near-duplicates, and pairs that evaluation sets contain."""
    _data_stage("dedup", corpus, _recipe(corpus, recipe, overrides), as_json, workers, _cluster(engine, address))


@app.command()
def score(
    corpus: Corpus,
    model: Annotated[str | None, typer.Option(help="Hub name, folder, or bootstrap.")] = None,
    cutoff: Annotated[float | None, typer.Option(help="Pre-training pairs scored below it are rejected.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score query against positive with an embedding model; drop what is below the cutoff.

    The corpus keeps --model and --cutoff in its recipe.
    """
    from .pipeline.corpus import keep_settings
    from .run import data_stage

    options = _with([], {"score.model": model, "score.cutoff": cutoff})
    resolved = _recipe(corpus, recipe, overrides + options)
    with _work(corpus, cluster=_cluster(engine, address)) as working:
        summary = data_stage("score", corpus, resolved, working)
        keep_settings(corpus, options)
    display.show_result("score", summary, as_json)


@app.command()
def convert(
    corpus: Corpus,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn pairs into training records: pretrain, retrieval, sts."""
    _data_stage("convert", corpus, _recipe(corpus, recipe, overrides), as_json, workers, _cluster(engine, address))


@app.command()
def mine(
    corpus: Corpus,
    model: Annotated[str | None, typer.Option(help="Hub name, folder, or bootstrap, pretrain, finetune.")] = None,
    method: Annotated[
        str | None, typer.Option(help="topk, topk-shifted, topk-abs, topk-marginpos, topk-percpos.")
    ] = None,
    show: Annotated[
        str | None,
        typer.Option(metavar="QUERY_ID_OR_TEXT", help="Print one query's pool and what was dropped; write nothing."),
    ] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find candidates for hard negatives; write pools.duckdb."""
    overrides = _with(overrides, {"mine.model": model, "mine.method": method})
    resolved = _recipe(corpus, recipe, overrides)
    if show is not None:
        from .pipeline.inspect_pools import show_pool
        from .run import with_model

        display.show_pool(show_pool(corpus, show, with_model(resolved.mine, corpus)), as_json)
    else:
        _data_stage("mine", corpus, resolved, as_json, cluster=_cluster(engine, address))


@app.command()
def train(
    corpus: Corpus,
    stage: Annotated[str, typer.Option(help="bootstrap, pretrain or finetune.")] = "finetune",
    on: Annotated[str | None, typer.Option(help="pretrain: train on this stage's pairs, as dedup.")] = None,
    model: Annotated[str | None, typer.Option(help="Start from: hub name, folder, or a stage of train.")] = None,
    processes: Processes = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, steps, parameters and memory; train nothing.")
    ] = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train with DeepSpeed; a run that was interrupted goes on from its last checkpoint."""
    from .run import STAGES, plan, train
    from .schemas.recipe import RecipeError

    if stage not in STAGES:
        raise RecipeError(f"--stage {stage}: expected one of {', '.join(STAGES)}")
    section = "bootstrap.training" if stage == "bootstrap" else stage
    overrides = _with(overrides, {f"{section}.on": on, f"{section}.model": model})
    resolved = _recipe(corpus, recipe, overrides)
    with _work(corpus):
        figures = (plan if dry_run else train)(stage, corpus, resolved, processes)
    if dry_run:
        display.show_plan(figures, as_json)
    else:
        display.show_result(stage, figures, as_json)


@app.command()
def evaluate(
    corpus: Corpus,
    models: Annotated[
        list[str], typer.Argument(help="Hub names, folders, or stages of train; default: the recipe's.")
    ] = [],
    sets: Annotated[list[Path], typer.Option(help="Folders or files of sets; default: the corpus's own.")] = [],
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """nDCG@10, Recall@10 and Spearman of models on evaluation sets."""
    from .run import evaluate

    resolved = _recipe(corpus, recipe, overrides)
    display.show_result("evaluate", evaluate(corpus, resolved, models or list(resolved.evaluate.models), sets), as_json)


@app.command()
def export(
    corpus: Corpus,
    model: Annotated[str | None, typer.Option(help="A stage of train.")] = None,
    to: Annotated[Path | None, typer.Option(help="The folder to write; default: model, inside the corpus.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the trained model as a folder that SentenceTransformer(folder) loads."""
    from .run import export

    overrides = _with(overrides, {"export.model": model, "export.folder": str(to.resolve()) if to else None})
    resolved = _recipe(corpus, recipe, overrides)
    with _work(corpus):
        folder = export(corpus, resolved)
    display.show_result("export", folder, as_json)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).")],
    corpus: Annotated[Path | None, typer.Argument(help="The corpus folder; default: the recipe's `corpus:`.")] = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    processes: Processes = 1,
    strict: Strict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run every stage of a recipe. What is done already is skipped; after a kill, run it again."""
    from .run import place, run
    from .schemas.recipe import load

    resolved = load(recipe, overrides)
    folder = place(resolved, corpus, recipe)
    bad = False
    with _work(folder, workers, _cluster(engine, address)) as chosen:
        for step, result in run(folder, resolved, chosen, processes):
            display.show_result(step, result, as_json)
            bad = bad or (step == "ingest" and _bad_input(result))
    if strict and bad:
        raise typer.Exit(BAD_INPUT)


@app.command()
def sql(
    corpus: Corpus,
    query: Annotated[str, typer.Argument(help="SQL over the corpus's views; its negative pools are pools.…")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask the corpus in SQL: views ingest … convert, rejected, funnel, rules, runs; pools.candidates …"""
    from .pipeline.catalog import query as ask

    display.show_rows(ask(corpus, query), as_json)


@app.command()
def sample(
    corpus: Corpus,
    out: Annotated[Path, typer.Argument(help="The folder to write; must be new.")],
    rows: Annotated[int, typer.Option(help="Pairs to take.", min=1)] = 1_000,
    seed: Annotated[int, typer.Option(help="Another seed, another sample.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Cut a small corpus out of a big one: every stage, its rejects and the pools, by source and format."""
    from .pipeline.corpus import locked
    from .pipeline.cut import cut

    with locked(corpus):
        summaries = cut(corpus, out, rows, seed)
    for summary in summaries:
        display.show_result(summary.stage, summary, as_json)


@app.command()
def report(
    corpus: Corpus,
    to: Annotated[Path | None, typer.Option(help="The page to write; default: report.html in the corpus.")] = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page: funnel, rejects, training curves, figures."""
    from .pipeline.report import write_report

    typer.echo(f"report: {write_report(corpus, to or corpus / 'report.html')}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to work; must be new or an earlier demo's.")] = Path("demo"),
    debug: Debug = False,
) -> None:
    """Write a small dirty sample, run everything on it, and show what came out."""
    from .run import DEMO_QUESTIONS, demo, run

    corpus = folder / "corpus"
    resolved, sources = demo(folder)
    typer.echo(f"Sample sources in {sources}, corpus in {corpus}\n")
    results = []
    with _work(corpus, 0) as engine:
        for step, result in run(corpus, resolved, engine, 1):
            results.append((step, result))
            display.errors.print(f"{step} done")
    for step, result in results:
        display.show_result(step, result, as_json=False)
    for question in DEMO_QUESTIONS:
        typer.echo(f'\n$ conan sql {corpus} "{question}"')
        sql(corpus, question)
