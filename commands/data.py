"""Commands of the data stages."""

from functools import partial

import typer

from .. import display, options
from ..options import (
    Address,
    AsJson,
    Corpus,
    Debug,
    EngineName,
    EngineOption,
    Overrides,
    RecipeFile,
    Strict,
    Workers,
    cluster_of,
    resolve,
    run_and_show,
    with_options,
    work,
)
from ..show_outcome import show_outcome
from .registration import register

app = typer.Typer()
command = partial(register, app, "Data stages")


@command(
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
        from ..pipeline.ingest.preview import preview

        display.show_sources(preview(resolved), as_json)
    else:
        run_and_show("ingest", corpus, resolved, as_json, workers, cluster_of(engine, address), strict)


@command(
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
        from ..pipeline.filter.preview import explain as explained

        display.show_explanation(explained(corpus, explain, resolved.filter), as_json)
    elif dry_run:
        from ..pipeline.filter.preview import dry_run as tried

        display.show_dry_run(tried(corpus, resolved.filter, sample), as_json)
    else:
        run_and_show("filter", corpus, resolved, as_json, workers, cluster_of(engine, address))


@command("conan dedup corpora/zh --set dedup.threshold=0.8", "conan dedup corpora/zh --engine ray --address head:6379")
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


@command("conan synthesize corpora/zh --dry-run", "conan synthesize corpora/zh --recipe recipe.yaml")
def synthesize(
    corpus: Corpus,
    dry_run: options.SynthesizeDryRun = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    workers: Workers = 0,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Let a language model write queries for passages; take the pairs through ingest, filter and dedup.

    Requests are sent from this machine, and none is paid for twice; --engine says where the other work runs.
    """
    resolved = resolve(corpus, recipe, overrides)
    if dry_run:
        from ..workflow import plan_synthesis

        with work(corpus):
            outcome = plan_synthesis(corpus, resolved)
        show_outcome(outcome, as_json)
        return
    run_and_show("synthesize", corpus, resolved, as_json, workers, cluster_of(engine, address))


@command("conan score corpora/zh --model models/bge-large-zh --cutoff 0.5")
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
    from ..pipeline.corpus.saved_recipe import keep_settings
    from ..workflow import run_data_stage

    kept = with_options([], {"score.model": model, "score.cutoff": cutoff})
    resolved = resolve(corpus, recipe, overrides + kept)
    with work(corpus, cluster=cluster_of(engine, address)) as working:
        summary = run_data_stage("score", corpus, resolved, working)
        keep_settings(corpus, kept)
    show_outcome(summary, as_json)


@command("conan convert corpora/zh")
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


@command("conan mine corpora/zh --model pretrain --method topk-percpos", "conan mine corpora/zh --show 1047")
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
        from ..pipeline.mine.show_pool import show_pool
        from ..schemas.source_settings import own_prompts
        from ..workflow import with_model

        sources = own_prompts(resolved.sources)
        display.show_pool(show_pool(corpus, show, with_model(resolved.mine, corpus), sources), as_json)
    else:
        run_and_show("mine", corpus, resolved, as_json, cluster=cluster_of(engine, address))


@command(
    "conan judge corpora/zh --model BAAI/bge-reranker-large",
    "conan judge corpora/zh --dry-run",
    "conan judge corpora/zh --label 50",
)
def judge(
    corpus: Corpus,
    model: options.Model = None,
    dry_run: options.JudgeDryRun = False,
    label: options.Labels = None,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask a teacher about the pools' positives and candidates; keep its scores. No pair is judged twice."""
    if model is not None:
        overrides = [*overrides, "judge.scores=null"]  # the recipe's file would take the place of the model
    resolved = resolve(corpus, recipe, with_options(overrides, {"judge.model": model}))
    if label is not None:
        from ..workflow import label_pairs

        with work(corpus):
            summary = label_pairs(corpus, resolved, label, display.ask_grade)
        show_outcome(summary, as_json)
        return
    if dry_run:
        from ..workflow import plan_judging

        with work(corpus):
            outcome = plan_judging(corpus, resolved)
        show_outcome(outcome, as_json)
        return
    run_and_show("judge", corpus, resolved, as_json, cluster=cluster_of(engine, address))
