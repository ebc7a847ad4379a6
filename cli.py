"""The command line. A command parses its options, calls one function and prints the outcome; there is no logic here.

Heavy libraries are imported when a command needs them, so that `conan --help` and shell completion are fast.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer

from . import collect_garbage_seldom, display, options
from .options import (
    BAD_INPUT,
    Address,
    AsJson,
    Corpus,
    Debug,
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

Function = TypeVar("Function", bound=Callable[..., Any])

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Curate text pairs, mine hard negatives, train text-embedding models.",
    epilog="Start with `conan demo`. `conan COMMAND --help` shows the options and examples of a command.",
)

WHOLE, DATA, TRAINING, INSPECTION = "Everything at once", "Data stages", "Training", "Inspection"


def command(panel: str, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """Register a command in a panel of `conan --help`; its own help ends with the examples."""
    heading = "Example:" if len(examples) == 1 else "Examples:"
    return app.command(name, rich_help_panel=panel, epilog="\n".join([heading, *examples]))


def main() -> None:
    """Run a command. An error is one message and an exit code: 2 usage, 3 bad input with --strict, 1 anything else."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Saving a model imports DeepSpeed, which would report on standard output, among our JSON, that it found no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    collect_garbage_seldom()
    try:
        app()
    except Exception as error:
        from .schemas.errors import ConanError, RecipeError

        if os.environ.get("CONAN_DEBUG"):
            traceback.print_exc()
        foreseen = isinstance(error, ConanError | OSError)  # errors of the operating system name the file
        message = str(error) if foreseen else f"{type(error).__name__}: {error} (--debug shows where)"
        display.errors.print(f"error: {message}", style="red", soft_wrap=True)
        sys.exit(2 if isinstance(error, RecipeError) else 1)


@command(WHOLE, "conan run recipe.yaml corpora/zh --nproc 8")
def run(
    recipe: options.RecipeArgument,
    corpus: options.OptionalCorpus = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    processes: Processes = 1,
    strict: Strict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run every stage of a recipe. Finished work is skipped, so after an interruption run it again."""
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


@command(WHOLE, "conan demo demo")
def demo(
    folder: options.DemoFolder = Path("demo"),
    debug: Debug = False,
) -> None:
    """Write a small, dirty data set, run every stage on it, and show the results."""
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


@command(
    DATA,
    "conan ingest corpora/zh --recipe recipe.yaml --dry-run",
    "conan ingest corpora/zh --recipe recipe.yaml",
    "conan ingest corpora/zh --workers 8 --strict",
)
def ingest(
    corpus: Corpus,
    dry_run: options.IngestDryRun = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    strict: Strict = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read the recipe's sources into pairs. Bad records are rejected with file, line and reason."""
    resolved = resolve(corpus, recipe, overrides)
    if dry_run:
        from .pipeline.ingest.preview import preview

        display.show_sources(preview(resolved), as_json)
    else:
        run_and_show("ingest", corpus, resolved, as_json, workers, cluster_of(engine, address), strict)


@command(
    DATA,
    "conan filter corpora/zh --dry-run",
    "conan filter corpora/zh --explain 3f1c9a",
    "conan filter corpora/zh --set filter.rules.han_ratio=0.5",
    name="filter",
)
def filter_(
    corpus: Corpus,
    explain: options.Explain = None,
    dry_run: options.FilterDryRun = False,
    sample: options.SampledPairs = 10_000,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Reject pairs that fail a quality rule; mask personal data."""
    resolved = resolve(corpus, recipe, overrides)
    if explain is not None:
        from .pipeline.filter.preview import explain as explained

        display.show_explanation(explained(corpus, explain, resolved.filter), as_json)
    elif dry_run:
        from .pipeline.filter.preview import dry_run as tried

        display.show_dry_run(tried(corpus, resolved.filter, sample), as_json)
    else:
        run_and_show("filter", corpus, resolved, as_json, workers, cluster_of(engine, address))


@command(
    DATA, "conan dedup corpora/zh --set dedup.threshold=0.8", "conan dedup corpora/zh --engine ray --address head:6379"
)
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
    """Reject exact and near-duplicates, and pairs with a text of an evaluation set."""
    run_and_show("dedup", corpus, resolve(corpus, recipe, overrides), as_json, workers, cluster_of(engine, address))


@command(DATA, "conan score corpora/zh --model models/bge-large-zh --cutoff 0.5")
def score(
    corpus: Corpus,
    model: options.Model = None,
    cutoff: options.Cutoff = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score query against positive with an embedding model; reject pairs below the cutoff.

    --model and --cutoff are saved in the corpus's recipe, which `conan run FILE` replaces. A new cutoff encodes nothing
    again.
    """
    from .pipeline.corpus.saved_recipe import keep_settings
    from .workflow import run_data_stage

    kept = with_options([], {"score.model": model, "score.cutoff": cutoff})
    resolved = resolve(corpus, recipe, overrides + kept)
    with work(corpus, cluster=cluster_of(engine, address)) as working:
        summary = run_data_stage("score", corpus, resolved, working)
        keep_settings(corpus, kept)
    display.show_outcome(summary, as_json)


@command(DATA, "conan convert corpora/zh")
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
    """Turn pairs into training records for pre-training, retrieval and sentence similarity."""
    run_and_show("convert", corpus, resolve(corpus, recipe, overrides), as_json, workers, cluster_of(engine, address))


@command(DATA, "conan mine corpora/zh --model pretrain --method topk-percpos", "conan mine corpora/zh --show 1047")
def mine(
    corpus: Corpus,
    model: options.Model = None,
    method: options.Method = None,
    show: options.ShowQuery = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find hard negatives for each query; write them to pools.duckdb."""
    overrides = with_options(overrides, {"mine.model": model, "mine.method": method})
    resolved = resolve(corpus, recipe, overrides)
    if show is not None:
        from .pipeline.mine.show_pool import show_pool
        from .schemas.source_settings import own_prompts
        from .workflow import with_model

        sources = own_prompts(resolved.sources)
        display.show_pool(show_pool(corpus, show, with_model(resolved.mine, corpus), sources), as_json)
    else:
        run_and_show("mine", corpus, resolved, as_json, cluster=cluster_of(engine, address))


@command(
    TRAINING,
    "conan train corpora/zh --stage finetune --nproc 8 --dry-run",
    "conan train corpora/zh --stage finetune --hostfile hosts",
)
def train(
    corpus: Corpus,
    stage: options.TrainingStage = "finetune",
    on: options.TrainOn = None,
    model: options.StartModel = None,
    processes: Processes = 1,
    hostfile: options.Hostfile = None,
    dry_run: options.TrainDryRun = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model with DeepSpeed. An interrupted run continues from its last checkpoint."""
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


@command(
    TRAINING,
    "conan evaluate corpora/zh pretrain finetune --matryoshka-dims 256",
    "conan evaluate BAAI/bge-large-zh-v1.5 --sets own.jsonl",
)
def evaluate(
    corpus: options.CorpusOrModel,
    models: options.Models = [],
    sets: options.Sets = [],
    matryoshka_dims: options.Dimensions = None,
    results: options.ResultsFolder = None,
    cmteb: options.Cmteb = False,
    tasks: options.CmtebTasks = None,
    pooling: options.PoolingOption = None,
    trust_remote_code: options.TrustRemoteCode = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Evaluate models: retrieval (next to BM25), reranking, sentence pairs, classification, clustering."""
    from .workflow import evaluate, evaluate_cmteb

    if cmteb and sets:
        raise typer.BadParameter("not with --cmteb, which has its own sets", param_hint="--sets")
    if tasks and not cmteb:
        raise typer.BadParameter("only with --cmteb", param_hint="--tasks")
    given = overrides + ([f"evaluate.matryoshka_dims=[{matryoshka_dims}]"] if matryoshka_dims else [])
    given = with_options(given, {"evaluate.pooling": pooling, "evaluate.trust_remote_code": trust_remote_code or None})
    if (sets or cmteb) and not (corpus / "recipe.yaml").exists():
        place, models, resolved = None, [str(corpus), *models], read_recipe(recipe or Path(os.devnull), given)
    else:
        place, resolved = corpus, resolve(corpus, recipe, given)
    models = models or list(resolved.evaluate.models)
    if cmteb:
        outcome = evaluate_cmteb(place, resolved, models, tasks.split(",") if tasks else [])
    else:
        with display.progress() as progress:
            outcome = evaluate(place, resolved, models, sets, results, overrides, progress)
    display.show_outcome(outcome, as_json)


@command(TRAINING, "conan export corpora/zh --to models/zh --set export.precision=bf16")
def export(
    corpus: Corpus,
    model: options.ExportedModel = None,
    to: options.ExportFolder = None,
    pooling: options.PoolingOption = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the trained model as a folder that SentenceTransformer(folder) loads."""
    from .workflow import export

    own = {"export.model": model, "export.folder": str(to.resolve()) if to else None, "export.pooling": pooling}
    overrides = with_options(overrides, own)
    resolved = resolve(corpus, recipe, overrides)
    with work(corpus):
        outcome = export(corpus, resolved)
    display.show_outcome(outcome, as_json)


@command(
    INSPECTION,
    'conan sql corpora/zh "SELECT reason, count(*) FROM rejected GROUP BY 1"',
    'conan sql corpora/zh "FROM rejected" --limit 100 --csv',
)
def sql(
    corpus: Corpus,
    query: options.Query,
    limit: options.Limit = None,
    as_json: AsJson = False,
    as_csv: options.AsCsv = False,
    debug: Debug = False,
) -> None:
    """Query a corpus with SQL, and print the result.

    Views: ingest, filter, dedup, score, convert, pretrain, retrieval, sts, passages, rejected, funnel, rules, runs,
    results.
    Negative pools: pools.candidates, pools.queries, pools.passages, pools.positives, pools.windows, pools.replacements,
    pools.runs, pools.short_pools.
    """
    from .pipeline.corpus.catalog import query as ask

    if as_json and as_csv:
        raise typer.BadParameter("not with --json", param_hint="--csv")
    display.show_rows(ask(corpus, query, limit), as_json, as_csv)


@command(INSPECTION, "conan report corpora/zh --to report.html")
def report(
    corpus: Corpus,
    to: options.ReportFile = None,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page: funnel, rejects, training curves, metrics."""
    from .pipeline.report.page import write_report

    typer.echo(f"report: {write_report(corpus, to or corpus / 'report.html')}")


@command(INSPECTION, "conan sample corpora/zh tests/corpus --rows 1000")
def sample(
    corpus: Corpus,
    out: options.NewFolder,
    rows: options.Rows = 1_000,
    seed: options.Seed = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a small sample of a corpus: every stage with its rejects and pools, by source and format."""
    from .pipeline.corpus.lock import locked
    from .pipeline.sample import cut

    with locked(corpus):
        summaries = cut(corpus, out, rows, seed)
    for summary in summaries:
        display.show_outcome(summary, as_json)
