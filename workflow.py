"""From a recipe to an evaluated model: which stages run, in which order and on what. The work itself is in the stages.

This module is at the root because it joins pipeline and trainer: the pipeline does not import the trainer, and the
trainer imports only the parts of the pipeline that tests/test_imports.py lists.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe_names import check_names, check_training_names
from .schemas.errors import RecipeError
from .schemas.outcomes import Exported, JudgingPlan, Outcome, Summary, SynthesisPlan, Trained, TrainingPlan
from .schemas.recipe import Recipe
from .schemas.source_settings import own_prompts
from .schemas.stage_fit import find_misfits

if TYPE_CHECKING:
    from .pipeline.engine.calls import Engine
    from .trainer.job import Job
    from .trainer.launch.hosts import Cluster, Host

DATA_STAGES = ("ingest", "filter", "dedup", "synthesize", "score", "convert", "mine", "judge")
TRAINING_STAGES = ("bootstrap", "pretrain", "finetune")
STAGE_MODELS = ("untrained", *TRAINING_STAGES)
"""Names of models that training stages write into the corpus; a recipe can use them like hub names. `untrained` is the
model with random weights that bootstrap starts from."""


def run_data_stage(name: str, corpus: Path, recipe: Recipe, engine: "Engine") -> "Summary":
    """Run one data stage and rebuild the catalog; upload what has changed in a corpus at a URI, which has none."""
    from .pipeline.corpus import catalog
    from .pipeline.corpus.uris import is_mirror, upload

    # Each stage is imported when it runs: score and mine import torch and FAISS, which takes seconds.
    match name:
        case "ingest":
            from .pipeline.ingest.stage import ingest

            summary = ingest(corpus, recipe, engine)
        case "filter":
            from .pipeline.filter.stage import filter_pairs

            summary = filter_pairs(corpus, recipe.filter, engine)
        case "dedup":
            from .pipeline.dedup.stage import dedup

            summary = dedup(corpus, recipe, engine)
        case "synthesize":
            from .pipeline.corpus.folder import is_interrupted
            from .pipeline.synthesize.stage import synthesize

            before = ("ingest", "filter", "dedup")
            if any(is_interrupted(corpus, each) for each in before):  # by a kill at the end of this stage
                _run_data_stages(before, corpus, recipe, engine)
            summary = synthesize(corpus, _with_round_trips(recipe, corpus), engine)
            _run_data_stages(before, corpus, recipe, engine)  # which skip all but what has been written
        case "score":
            from .pipeline.score.stage import score

            summary = score(corpus, with_model(recipe.score, corpus), engine, own_prompts(recipe.sources))
        case "convert":
            from .pipeline.convert.stage import convert

            summary = convert(corpus, recipe, engine)
        case "mine":
            from .pipeline.mine.stage import mine

            summary = mine(corpus, with_model(recipe.mine, corpus), engine, own_prompts(recipe.sources))
        case "judge":
            from .pipeline.judge.stage import judge

            summary = judge(corpus, _find_judge(corpus, recipe), engine, own_prompts(recipe.sources))
        case _:
            raise ValueError(f"no data stage is called {name!r}; choose from {', '.join(DATA_STAGES)}")
    if not is_mirror(corpus):  # its catalog would need all of its shards
        catalog.rebuild(corpus)
    upload(corpus)
    return summary


def _run_data_stages(names: Sequence[str], corpus: Path, recipe: Recipe, engine: "Engine") -> None:
    for name in names:
        run_data_stage(name, corpus, recipe, engine)


def plan_judging(corpus: Path, recipe: Recipe) -> JudgingPlan:
    """Return what `conan judge` would ask and what it would cost. Raises RecipeError if the recipe has no `judge:`."""
    from .pipeline.judge.stage import plan

    return plan(corpus, _find_judge(corpus, recipe), own_prompts(recipe.sources))


def label_pairs(corpus: Path, recipe: Recipe, number: int, ask: Callable[[dict[str, Any]], str]) -> Summary:
    """Let a person grade undecided pairs; `ask` shows one and returns a key. Raises RecipeError as `plan_judging`."""
    from .pipeline.judge.stage import label_pairs

    return label_pairs(corpus, _find_judge(corpus, recipe), number, ask, own_prompts(recipe.sources))


def plan_synthesis(corpus: Path, recipe: Recipe) -> SynthesisPlan:
    """Return what `conan synthesize` would ask. Raises RecipeError if no source has `synthesize:`."""
    from .pipeline.synthesize.stage import plan

    return plan(corpus, recipe)


def _with_round_trips(recipe: Recipe, corpus: Path) -> Recipe:
    """Return the recipe with the folders of models in place of training stages' names in round trips."""
    sources = []
    for source in recipe.sources:
        if source.synthesize and source.synthesize.round_trip:
            trip = with_model(source.synthesize.round_trip, corpus)
            settings = source.synthesize.model_copy(update={"round_trip": trip})
            source = source.model_copy(update={"synthesize": settings})
        sources.append(source)
    return recipe.model_copy(update={"sources": sources})


def _find_judge(corpus: Path, recipe: Recipe) -> Any:
    if recipe.judge is None:
        raise RecipeError("the recipe has no `judge:`; add the section, if only with defaults: `judge: {}`")
    return with_model(recipe.judge, corpus)


def find_trained_model(corpus: Path, name: str) -> str:
    """Return the folder of a training stage's model; any other name is returned as it is.

    Raises:
        CorpusError: the stage has not been trained.
    """
    from .pipeline.corpus.uris import fetch

    if name not in STAGE_MODELS:
        return name
    folder = corpus / "train" / name / "model"
    fetch(corpus, f"train/{name}/model")
    if not is_trained(corpus, name):
        from .schemas.errors import CorpusError

        stage = "bootstrap" if name == "untrained" else name
        raise CorpusError(f"no model in {folder}; run `conan train {corpus} --stage {stage}` first")
    return str(folder)


def is_trained(corpus: Path, name: str) -> bool:
    """Whether a training stage has written its model into the corpus."""
    return (corpus / "train" / name / "model").is_dir()


def with_model(settings: Any, corpus: Path) -> Any:
    """Return the settings with the folder of the model in place of a training stage's name."""
    return settings.model_copy(update={"model": find_trained_model(corpus, settings.model)})


def train(stage: str, corpus: Path, recipe: Recipe, where: "int | Sequence[Host] | Cluster") -> Trained:
    """Run a training stage (bootstrap, pretrain or finetune) in processes of this machine, on hosts or on a cluster.

    Raises:
        RecipeError: the recipe does not have the stage.
        CorpusError: the stage's inputs don't exist yet.
        TrainingError: a training process failed.
    """
    from .pipeline.corpus.uris import refuse_elsewhere, upload
    from .pipeline.engine.local import close_workers
    from .trainer.launch.launcher import run_job

    if isinstance(where, Sequence):
        refuse_elsewhere(corpus, "--hostfile")
    job = training_job(stage, corpus, recipe)
    close_workers()  # training needs the whole machine
    trained = run_job(job, where)
    upload(corpus)
    return Trained(stage, trained, str(job.model_folder), last_step(corpus, stage))


def plan(stage: str, corpus: Path, recipe: Recipe, where: "int | Sequence[Host] | Cluster") -> TrainingPlan:
    """Return the size of a training run (see TrainingPlan) without training.

    Raises RecipeError and CorpusError as `train` does. For bootstrap, this writes the untrained model, as
    `training_job` does.
    """
    from .trainer.dry_run import plan_training
    from .trainer.launch.launcher import count_processes

    return plan_training(training_job(stage, corpus, recipe), count_processes(where))


def training_job(stage: str, corpus: Path, recipe: Recipe) -> "Job":
    """Build the job of a training stage: its model, settings and shards.

    For bootstrap this also writes the untrained model into the corpus. Raises RecipeError and CorpusError as `train`
    does.
    """
    from .pipeline.corpus.folder import shards
    from .pipeline.corpus.pools import check_judging, decided_fingerprint
    from .pipeline.corpus.uris import fetch
    from .schemas.errors import CorpusError
    from .trainer.job import make_job

    fetch(corpus, f"train/{stage}")
    if stage == "bootstrap":
        if recipe.bootstrap is None:
            raise RecipeError("the recipe has no `bootstrap:`")
        settings: Any = recipe.bootstrap.training.model_copy(update={"model": "untrained"})
        _write_untrained(corpus, recipe)
    else:
        settings = getattr(recipe, stage)
        if settings is None:
            raise RecipeError(f"the recipe has no `{stage}:`; add the section, if only with defaults: `{stage}: {{}}`")
    check_training_names(recipe, (stage, "training") if stage == "bootstrap" else (stage,), settings)
    if stage == "finetune":
        inputs = {kind: shards(corpus, f"convert/{kind}") for kind in settings.queries}
        inputs["sts"] = _sentence_shards(corpus)
        if (pools := decided_fingerprint(corpus)) is None:
            raise CorpusError(f"{corpus}: no negative pools; run `conan mine {corpus}` first")
        check_judging(corpus, with_model(recipe.judge, corpus).decisive if recipe.judge else None)
        if settings.distill:
            from .trainer.data.teacher_scores import fingerprint_scores

            pools += fingerprint_scores(corpus, settings.distill.judge)
    else:
        folder = "convert/pretrain" if settings.on == "convert" else settings.on
        inputs, pools = {"pairs": shards(corpus, folder)}, None
    query_only = [source.name for source in recipe.sources if source.query_only_negatives and stage == "finetune"]
    return make_job(
        corpus,
        stage,
        find_trained_model(corpus, settings.model),
        settings,
        inputs,
        pools,
        source_prompts=own_prompts(recipe.sources),
        set_prompts=recipe.set_prompts,
        query_only_sources=query_only,
    )


def _sentence_shards(corpus: Path) -> list[Path]:
    """List the shards of convert/sts, none if the folder is empty because there are no sentence pairs."""
    from .pipeline.corpus.folder import shards

    folder = corpus / "convert" / "sts"
    if folder.is_dir() and not any(path.is_file() for path in folder.iterdir()):
        return []
    return shards(corpus, "convert/sts")


def _write_untrained(corpus: Path, recipe: Recipe) -> None:
    """Write the model that bootstrapping starts from: a small BERT with random weights, and a linear layer on top."""
    from .pipeline.corpus.folder import shards
    from .pipeline.corpus.uris import fetch
    from .trainer.model.bootstrap import make_untrained

    assert recipe.bootstrap is not None
    fetch(corpus, "train/untrained")
    make_untrained(
        corpus / "train" / "untrained" / "model", recipe.bootstrap, shards(corpus, recipe.bootstrap.training.on)
    )


def last_step(corpus: Path, stage: str) -> dict[str, Any]:
    """Return the log entry of the last step: the last entry with a loss among the log's final 20 lines.

    Entries of other events (validation, end) have no loss; only a few of them follow the last step. The result is empty
    if there is no log or no such entry.
    """
    log = corpus / "train" / stage / "log.jsonl"
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    steps = [entry for line in lines[-20:] if (entry := json.loads(line)).get("loss") is not None]
    return steps[-1] if steps else {}


def export(corpus: Path, recipe: Recipe) -> Exported:
    """Write a model as a SentenceTransformer folder with a model card.

    The model keeps the pooling and prompts of its folder (for a model trained here, those of its training) unless the
    recipe has others.
    """
    from .pipeline.corpus.uris import fetch
    from .trainer.model.calibration import find_ranges, sample_passages
    from .trainer.model.embedding_model import load
    from .trainer.model.export import export as write
    from .trainer.model.model_card import model_card, read_stages
    from .trainer.model.tei import tei_warnings

    settings = recipe.export
    fetch(corpus, settings.folder)
    target = corpus / settings.folder  # an absolute folder is not moved into the corpus
    source = find_trained_model(corpus, settings.model)  # a folder or a hub name
    model, tokenizer = load(source, pooling=settings.pooling, prompts=settings.prompts)
    if settings.model in STAGE_MODELS:
        stages, base = read_stages(corpus, settings.model)
    else:
        stages, base = [], source
    widths = {model.dimension, *(width for stage in stages[-1:] for width in stage.settings["matryoshka_dims"])}
    passages = sample_passages(corpus, settings.calibration)
    ranges = find_ranges(model, tokenizer, passages, sorted(widths))
    card = model_card(
        target.name,
        base=base,
        stages=stages,
        sources=recipe.sources,
        metrics=_metrics_of(corpus, settings.model),
        dimension=model.dimension,
        max_length=model.max_length or tokenizer.model_max_length,
        prompts=model.prompts,
        precision=settings.precision,
        onnx=settings.onnx,
        calibrated=len(passages),
        command=["conan", *sys.argv[1:]],
    )
    write(model, tokenizer, target, precision=settings.precision, onnx=settings.onnx, card=card, ranges=ranges)
    warnings = tei_warnings(target)
    if settings.calibration and not ranges:
        warnings.append("no int8 ranges: the corpus has no training records (convert/) to take passages from")
    return Exported(str(target), warnings)


def _metrics_of(corpus: Path, name: str) -> list[dict[str, Any]]:
    """Read a model's metrics on the corpus's own sets, in all widths and precisions; empty if older than the model."""
    from .evaluation import model_of

    file, done = corpus / "evaluation" / "metrics.json", corpus / "train" / name / "done"
    if not file.exists() or (done.exists() and file.stat().st_mtime < done.stat().st_mtime):
        return []
    rows = json.loads(file.read_text("utf-8"))
    return [row for row in rows if model_of(row) == name]


def steps(recipe: Recipe) -> list[str]:
    """List the stages that a recipe asks for, in the order in which they run."""
    order = ["ingest", "filter", "dedup"]
    order += ["synthesize"] if any(source.synthesize for source in recipe.sources) else []
    order += ["bootstrap"] if recipe.bootstrap else []
    order += ["score", "convert"]
    order += ["pretrain"] if recipe.pretrain else []
    order += ["mine"] if recipe.finetune else []
    order += ["judge"] if recipe.finetune and recipe.judge else []
    order += ["finetune"] if recipe.finetune else []
    order += ["evaluate"] if recipe.evaluation or recipe.holdout else []
    return order + (["export"] if recipe.finetune else [])  # last, because the model card shows the metrics


def run(corpus: Path, recipe: Recipe, engine: "Engine", processes: int | None) -> Iterator[tuple[str, Outcome]]:
    """Run all stages in order and yield the name and outcome of each. Stages skip what is already done.

    Training has `processes`; by default one or, where the engine is a cluster, one per GPU.

    Raises:
        RecipeError: the recipe names something that is not registered, or a stage needs what none makes; raised before
            the first stage.
    """
    from .evaluation import evaluate
    from .pipeline.corpus.judgements import list_parts
    from .trainer.launch.hosts import training_place

    check_names(recipe)
    for location, problem in find_misfits(
        recipe, steps(recipe), STAGE_MODELS, partial(is_trained, corpus), is_judged=bool(list_parts(corpus))
    ):
        raise RecipeError(f"{recipe.locate(*location)}: {problem}")
    for step in steps(recipe):
        if step == "mine":
            _check_width(corpus, recipe)
        if step in DATA_STAGES:
            yield step, run_data_stage(step, corpus, recipe, engine)
        elif step == "export":
            yield step, export(corpus, recipe)
        elif step == "evaluate":
            yield step, evaluate(corpus, recipe, list(recipe.evaluate.models), [], progress=engine.progress)
        else:
            yield step, train(step, corpus, recipe, training_place(engine.address, processes))


def _check_width(corpus: Path, recipe: Recipe) -> None:
    """Raise TrainingError before mining if `finetune.matryoshka_dims` does not fit its model, as training would."""
    from .pipeline.encoder.model_folder import find_model
    from .pipeline.encoder.model_shape import read_shape
    from .schemas.settings import EncoderSettings
    from .trainer.job import check_dimensions

    if recipe.finetune and recipe.finetune.matryoshka_dims:
        model = find_trained_model(corpus, recipe.finetune.model)
        width = read_shape(find_model(model), EncoderSettings(model=model)).width
        check_dimensions("finetune", model, recipe.finetune.matryoshka_dims, width)
