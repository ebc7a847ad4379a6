"""The command line: parses, calls one function, prints. No logic, and nothing heavy is imported before it is needed."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from . import collect_garbage_seldom, display
from .options import (
    BAD_INPUT,
    Address,
    AsJson,
    Corpus,
    Debug,
    Dimensions,
    EngineName,
    EngineOption,
    Overrides,
    Processes,
    RecipeFile,
    Strict,
    Workers,
    cluster_of,
    read_recipe,
    resolve,
    run_and_show,
    with_options,
    work,
)
from .schemas.outcomes import Summary, Trained, TrainingPlan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Curate text pairs, mine hard negatives, train text-embedding models.",
)


def main() -> None:
    """Run a command; an error is one message and an exit code: 2 usage, 3 bad input under --strict, 1 anything else."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    collect_garbage_seldom()
    try:
        app()
    except Exception as error:
        from .schemas.errors import ConanError, RecipeError

        if os.environ.get("CONAN_DEBUG"):
            traceback.print_exc()
        foreseen = isinstance(error, ConanError | OSError)  # the system's errors name the file
        message = str(error) if foreseen else f"{type(error).__name__}: {error} (--debug shows where)"
        display.errors.print(f"error: {message}", style="red", soft_wrap=True)
        sys.exit(2 if isinstance(error, RecipeError) else 1)


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
    resolved = resolve(corpus, recipe, overrides)
    run_and_show("ingest", corpus, resolved, as_json, workers, cluster_of(engine, address), strict)


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
    resolved = resolve(corpus, recipe, overrides)
    if explain is not None:
        from .pipeline.filter.preview import explain as explained

        display.show_explanation(explained(corpus, explain, resolved.filter), as_json)
    elif dry_run:
        from .pipeline.filter.preview import dry_run as tried

        display.show_dry_run(tried(corpus, resolved.filter, sample), as_json)
    else:
        run_and_show("filter", corpus, resolved, as_json, workers, cluster_of(engine, address))


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
    run_and_show("dedup", corpus, resolve(corpus, recipe, overrides), as_json, workers, cluster_of(engine, address))


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
    from .pipeline.corpus.saved_recipe import keep_settings
    from .workflow import run_data_stage

    options = with_options([], {"score.model": model, "score.cutoff": cutoff})
    resolved = resolve(corpus, recipe, overrides + options)
    with work(corpus, cluster=cluster_of(engine, address)) as working:
        summary = run_data_stage("score", corpus, resolved, working)
        keep_settings(corpus, options)
    display.show_outcome(summary, as_json)


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
    run_and_show("convert", corpus, resolve(corpus, recipe, overrides), as_json, workers, cluster_of(engine, address))


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
    overrides = with_options(overrides, {"mine.model": model, "mine.method": method})
    resolved = resolve(corpus, recipe, overrides)
    if show is not None:
        from .pipeline.mine.show_pool import show_pool
        from .workflow import with_model

        display.show_pool(show_pool(corpus, show, with_model(resolved.mine, corpus)), as_json)
    else:
        run_and_show("mine", corpus, resolved, as_json, cluster=cluster_of(engine, address))


@app.command()
def train(
    corpus: Corpus,
    stage: Annotated[str, typer.Option(help="bootstrap, pretrain or finetune.")] = "finetune",
    on: Annotated[str | None, typer.Option(help="pretrain: train on this stage's pairs, as dedup.")] = None,
    model: Annotated[str | None, typer.Option(help="Start from: hub name, folder, or a stage of train.")] = None,
    processes: Processes = 1,
    hostfile: Annotated[
        Path | None,
        typer.Option(help="Train on several machines instead: lines of `HOST slots=N`.", exists=True, dir_okay=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, steps, parameters and memory; train nothing.")
    ] = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train with DeepSpeed; a run that was interrupted goes on from its last checkpoint."""
    from .schemas.errors import RecipeError
    from .trainer.launch.hosts import read_hostfile
    from .workflow import TRAINING_STAGES, plan, train

    if stage not in TRAINING_STAGES:
        raise RecipeError(f"--stage {stage}: expected one of {', '.join(TRAINING_STAGES)}")
    if stage == "bootstrap" and model:
        raise RecipeError(f"--model {model}: bootstrap starts from random weights; --stage pretrain does from a model")
    hosts = read_hostfile(hostfile) if hostfile else None
    if hosts:
        processes = sum(host.slots for host in hosts)
    section = "bootstrap.training" if stage == "bootstrap" else stage
    overrides = with_options(overrides, {f"{section}.on": on, f"{section}.model": model})
    resolved = resolve(corpus, recipe, overrides)
    with work(corpus):
        outcome: TrainingPlan | Trained
        if dry_run:
            outcome = plan(stage, corpus, resolved, processes)
        else:
            outcome = train(stage, corpus, resolved, hosts or processes)
    display.show_outcome(outcome, as_json)


@app.command()
def evaluate(
    corpus: Annotated[Path, typer.Argument(help="The corpus folder; with --sets or --cmteb, a model will do.")],
    models: Annotated[
        list[str], typer.Argument(help="Hub names, folders, or stages of train; default: the recipe's.")
    ] = [],
    sets: Annotated[
        list[Path], typer.Option(help="Folders or files of sets, or recipes that name some; default: the corpus's own.")
    ] = [],
    matryoshka_dims: Dimensions = None,
    results: Annotated[
        Path | None, typer.Option(help="Where results by query go; default: evaluation/results, for own sets.")
    ] = None,
    cmteb: Annotated[bool, typer.Option("--cmteb", help="The tasks of C-MTEB instead of sets; needs the network.")] = (
        False
    ),
    tasks: Annotated[str | None, typer.Option(help="--cmteb: only these tasks, as T2Retrieval,STSB.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Metrics of models on evaluation sets: retrieval beside BM25, reranking, sentence pairs, classes, clusters."""
    from .workflow import evaluate, evaluate_cmteb

    if cmteb and sets:
        raise typer.BadParameter("not with --cmteb, which has its own", param_hint="--sets")
    if tasks and not cmteb:
        raise typer.BadParameter("only with --cmteb", param_hint="--tasks")
    given = overrides + ([f"evaluate.matryoshka_dims=[{matryoshka_dims}]"] if matryoshka_dims else [])
    if (sets or cmteb) and not (corpus / "recipe.yaml").exists():
        place, models, resolved = None, [str(corpus), *models], read_recipe(recipe or Path(os.devnull), given)
    else:
        place, resolved = corpus, resolve(corpus, recipe, given)
    models = models or list(resolved.evaluate.models)
    if cmteb:
        outcome = evaluate_cmteb(place, resolved, models, tasks.split(",") if tasks else [])
    else:
        outcome = evaluate(place, resolved, models, sets, results, overrides)
    display.show_outcome(outcome, as_json)


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
    from .workflow import export

    overrides = with_options(overrides, {"export.model": model, "export.folder": str(to.resolve()) if to else None})
    resolved = resolve(corpus, recipe, overrides)
    with work(corpus):
        outcome = export(corpus, resolved)
    display.show_outcome(outcome, as_json)


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
    from .workflow import find_corpus, run

    resolved = read_recipe(recipe, overrides)
    folder = find_corpus(resolved, corpus, recipe)
    bad = False
    with work(folder, workers, cluster_of(engine, address)) as chosen:
        for _, outcome in run(folder, resolved, chosen, processes):
            display.show_outcome(outcome, as_json)
            bad = bad or (isinstance(outcome, Summary) and outcome.bad_input)
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
    from .pipeline.corpus.catalog import query as ask

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
    from .pipeline.corpus.lock import locked
    from .pipeline.sample import cut

    with locked(corpus):
        summaries = cut(corpus, out, rows, seed)
    for summary in summaries:
        display.show_outcome(summary, as_json)


@app.command()
def report(
    corpus: Corpus,
    to: Annotated[Path | None, typer.Option(help="The page to write; default: report.html in the corpus.")] = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page: funnel, rejects, training curves, metrics."""
    from .pipeline.report.page import write_report

    typer.echo(f"report: {write_report(corpus, to or corpus / 'report.html')}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to work; must be new or an earlier demo's.")] = Path("demo"),
    debug: Debug = False,
) -> None:
    """Write a small dirty sample, run everything on it, and show what came out."""
    from .pipeline.demo.prepare import DEMO_QUESTIONS, prepare_demo
    from .workflow import run

    corpus = folder / "corpus"
    resolved, sources = prepare_demo(folder)
    typer.echo(f"Sample sources in {sources}, corpus in {corpus}\n")
    outcomes = []
    with work(corpus, 0) as engine:
        for step, outcome in run(corpus, resolved, engine, 1):
            outcomes.append(outcome)
            display.errors.print(f"{step} done")
    for outcome in outcomes:
        display.show_outcome(outcome, as_json=False)
    for question in DEMO_QUESTIONS:
        typer.echo(f'\n$ conan sql {corpus} "{question}"')
        sql(corpus, question)
