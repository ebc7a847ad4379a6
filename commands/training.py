"""Commands that train, evaluate and export models."""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import typer

from .. import display, options
from ..options import (
    GATE_FAILED,
    Address,
    AsJson,
    Corpus,
    Debug,
    EngineName,
    EngineOption,
    Overrides,
    Processes,
    RecipeFile,
    cluster_of,
    read_minimums,
    read_recipe,
    resolve,
    with_options,
    work,
)
from ..show_outcome import show_outcome
from .registration import register

app = typer.Typer()
command = partial(register, app, "Training")


@command(
    "conan train corpora/zh --stage finetune --nproc 8 --dry-run",
    "conan train corpora/zh --stage finetune --hostfile hosts",
    "conan train corpora/zh --stage finetune --engine ray --address head:6379",
)
def train(
    corpus: Corpus,
    stage: options.TrainingStage = "finetune",
    on: options.TrainOn = None,
    model: options.StartModel = None,
    processes: Processes = None,
    hostfile: options.Hostfile = None,
    engine: EngineOption = EngineName.LOCAL,
    address: Address = None,
    dry_run: options.TrainDryRun = False,
    recipe: RecipeFile = None,
    overrides: Overrides = [],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model with DeepSpeed. An interrupted run continues from its last checkpoint."""
    from ..schemas.errors import RecipeError
    from ..trainer.launch.hosts import read_hostfile, training_place
    from ..workflow import TRAINING_STAGES, plan, train

    if stage not in TRAINING_STAGES:
        raise RecipeError(f"--stage {stage}: expected one of {', '.join(TRAINING_STAGES)}")
    if stage == "bootstrap" and model:
        raise RecipeError(f"--model {model}: bootstrap starts from random weights; --stage pretrain does from a model")
    if hostfile and engine == EngineName.RAY:
        raise typer.BadParameter("not with --engine ray, which places the processes itself", param_hint="--hostfile")
    on_ray = cluster_of(engine, address)
    where = read_hostfile(hostfile) if hostfile else training_place(on_ray, processes)
    section = "bootstrap.training" if stage == "bootstrap" else stage
    overrides = with_options(overrides, {f"{section}.on": on, f"{section}.model": model})
    resolved = resolve(corpus, recipe, overrides)
    with work(corpus):
        outcome = (plan if dry_run else train)(stage, corpus, resolved, where)
    show_outcome(outcome, as_json)


@command(
    "conan evaluate corpora/zh finetune --matryoshka-dims 256 --quantize int8",
    "conan evaluate BAAI/bge-large-zh-v1.5 --sets own.jsonl",
    "conan evaluate corpora/zh --baseline models/zh --not-worse 0.005",
)
def evaluate(
    corpus: options.CorpusOrModel,
    models: options.Models = [],
    sets: options.Sets = [],
    matryoshka_dims: options.Dimensions = None,
    quantize: options.Quantizations = None,
    results: options.ResultsFolder = None,
    baseline: options.Baseline = None,
    minimums: options.Minimums = [],
    not_worse: options.NotWorse = None,
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
    from ..evaluation import evaluate, evaluate_cmteb
    from ..pipeline.corpus.lock import locked
    from ..pipeline.corpus.uris import is_mirror
    from ..trainer.evaluation.gate import Conditions

    if cmteb and sets:
        raise typer.BadParameter("not with --cmteb, which has its own sets", param_hint="--sets")
    if tasks and not cmteb:
        raise typer.BadParameter("only with --cmteb", param_hint="--tasks")
    if not_worse is not None and baseline is None:
        raise typer.BadParameter("only with --baseline MODEL", param_hint="--not-worse")
    if cmteb and (baseline or minimums):
        raise typer.BadParameter(
            "not with --cmteb, whose tasks give no results per question", param_hint="--baseline, --min"
        )
    given = overrides + ([f"evaluate.matryoshka_dims=[{matryoshka_dims}]"] if matryoshka_dims else [])
    given = with_options(given, {"evaluate.quantize": quantize.split(",") if quantize else None})
    given = with_options(given, {"evaluate.pooling": pooling, "evaluate.trust_remote_code": trust_remote_code or None})
    if (sets or cmteb) and not (corpus / "recipe.yaml").exists():
        place, models, resolved = None, [str(corpus), *models], read_recipe(recipe or Path(os.devnull), given)
    else:
        place, resolved = corpus, resolve(corpus, recipe, given)
    models = models or list(resolved.evaluate.models)
    conditions = Conditions(baseline, read_minimums(minimums), not_worse) if baseline or minimums else None
    if cmteb:
        outcome = evaluate_cmteb(place, resolved, models, tasks.split(",") if tasks else [])
    else:
        # Results are kept in the corpus: at a URI, that is to upload them, under the lock.
        keeping = locked(corpus) if is_mirror(corpus) else nullcontext()
        with keeping, display.progress() as progress:
            outcome = evaluate(place, resolved, models, sets, results, overrides, progress, conditions)
    show_outcome(outcome, as_json)
    if outcome.gate and outcome.gate.failures:
        raise typer.Exit(GATE_FAILED)


@command("conan export corpora/zh --to models/zh --set export.precision=bf16")
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
    from ..workflow import export

    own = {"export.model": model, "export.folder": str(to.resolve()) if to else None, "export.pooling": pooling}
    overrides = with_options(overrides, own)
    resolved = resolve(corpus, recipe, overrides)
    with work(corpus):
        outcome = export(corpus, resolved)
    show_outcome(outcome, as_json)


@command(
    "conan push corpora/zh --to my-team/zh-model --dry-run",
    "conan push corpora/zh --to my-team/zh-pairs --data score",
)
def push(
    corpus: Corpus,
    to: options.Repository,
    data: options.PushedStage = None,
    rejects: options.WithRejects = False,
    public: options.Public = False,
    dry_run: options.PushDryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Send the exported model, or a stage's pairs, to the Hugging Face hub, with a card.

    The token is that of HF_TOKEN or of `hf auth login`.
    """
    from ..pipeline.publish.push import push_data, push_model

    if rejects and data is None:
        raise typer.BadParameter("only with --data", param_hint="--rejects")
    recipe = resolve(corpus, None, [])
    if data is None:
        outcome = push_model(corpus, recipe, to, public=public, dry_run=dry_run)
    else:
        outcome = push_data(corpus, recipe, data, to, with_rejects=rejects, public=public, dry_run=dry_run)
    show_outcome(outcome, as_json)
