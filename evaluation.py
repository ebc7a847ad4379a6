"""Evaluate models on the sets of a corpus, on others, and on C-MTEB, and judge them by a baseline.

This module is at the root because it reads the corpus for the trainer, as workflow.py does.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .schemas.errors import RecipeError
from .schemas.outcomes import Evaluated
from .schemas.recipe import Recipe
from .workflow import find_trained_model

if TYPE_CHECKING:
    from .pipeline.encoder.encoder import Encoder
    from .pipeline.engine.calls import Progress
    from .trainer.evaluation.evaluate import Judgement
    from .trainer.evaluation.gate import Conditions


def evaluate(
    corpus: Path | None,
    recipe: Recipe,
    models: list[str],
    sets: list[Path],
    results: Path | None = None,
    overrides: Sequence[str] = (),
    progress: "Progress" = lambda *_: None,
    conditions: "Conditions | None" = None,
) -> Evaluated:
    """Evaluate models on evaluation sets, and BM25 on the retrieval sets among them.

    `sets` are files, folders and recipes; `overrides` apply to these recipes. If `sets` is empty, the corpus's own sets
    are used and their metrics are kept in the corpus. A set has the prompts that the recipe gives the set of its name.
    Results per query go to the folder `results`; for the corpus's own sets it defaults to a folder in the corpus.
    `progress` is called with the number of sets done, counted over all models except BM25.
    `conditions` are what the models are judged by.

    Raises:
        RecipeError: the conditions can't be judged with these models and sets.
    """
    from .pipeline.corpus.catalog import RESULTS
    from .pipeline.corpus.uris import fetch
    from .pipeline.encoder.encoder import dimension
    from .pipeline.encoder.model_folder import ModelError
    from .trainer.evaluation.bm25 import BM25
    from .trainer.evaluation.evaluate import drop_results, judge, judge_bm25, widths, write_results
    from .trainer.evaluation.evaluation_sets import find_own_sets, hash_set, read_sets
    from .trainer.evaluation.gate import check_conditions, judge_models

    corpus_of_sets = corpus if not sets else None  # the corpus whose own sets are used
    places = sets or find_own_sets(corpus or Path())
    evaluation_sets = read_sets(places, overrides, recipe.set_prompts)
    retrieval_sets = [one for one in evaluation_sets if one.task == "retrieval"]
    if recipe.evaluate.quantize and not retrieval_sets:
        raise RecipeError(
            "evaluate.quantize: only retrieval sets are searched with quantised vectors, but none is among "
            f"{', '.join(one.name for one in evaluation_sets)}; leave it out, or add a retrieval set"
        )
    results_folder = results or (corpus_of_sets / RESULTS if corpus_of_sets else None)
    names = models
    if conditions:
        check_conditions(conditions, models, evaluation_sets)
        names = [*([conditions.baseline] if conditions.baseline else []), *models]
    model_folders = _find_models(corpus, names)
    sets_done, all_sets = 0, len(evaluation_sets) * len(set(names) - {BM25})
    progress("evaluate: sets", sets_done, all_sets, 0)
    rows = []
    judged: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for name in dict.fromkeys([*names, *([BM25] if retrieval_sets else [])]):
        if name == BM25:
            full_width, judgements = None, [judge_bm25(one) for one in retrieval_sets]
        else:
            encoder = _load_encoder(model_folders[name], recipe)
            wanted = widths(encoder, recipe.evaluate.matryoshka_dims)
            full_width, judgements = dimension(encoder), []
            for one in evaluation_sets:
                try:
                    judgements += judge(encoder, one, wanted, recipe.evaluate.quantize)
                except ModelError as error:
                    raise ModelError(f"{name}: {error}") from error
                sets_done += 1
                progress("evaluate: sets", sets_done, all_sets, 0)
        for judgement in judgements:
            variant = "" if judgement.dimension == full_width else f"@{judgement.dimension}"
            variant += f" {judgement.precision}" if judgement.precision in recipe.evaluate.quantize else ""
            if conditions:  # which need none of the passages, by far the largest column
                kept = judgement.results.drop("passages", strict=False)
                judged[name, variant].append(replace(judgement, results=kept))
            columns = {
                "model": name + variant,
                "dimension": judgement.dimension,
                "precision": judgement.precision,
                "bytes_per_vector": judgement.bytes_per_vector,
                "set": judgement.set,
            }
            rows += [{**columns, "metric": metric, "value": value} for metric, value in judgement.metrics.items()]
        if results_folder:
            write_results(results_folder, name, judgements)
    if corpus_of_sets:
        versions = {one.name: hash_set(one) for one in evaluation_sets}
        outdated = _keep_metrics(corpus_of_sets / "evaluation" / "metrics.json", rows, versions)
        if outdated and results_folder == corpus_of_sets / RESULTS:
            fetch(corpus_of_sets, RESULTS)
            for model, their_sets in outdated.items():
                drop_results(results_folder, model, their_sets)
    return Evaluated(rows, judge_models(conditions, models, judged) if conditions else None)


def evaluate_cmteb(corpus: Path | None, recipe: Recipe, models: list[str], tasks: list[str]) -> Evaluated:
    """Evaluate models on tasks of C-MTEB; on all 35 if `tasks` is empty.

    Raises:
        BenchmarkError: mteb is not installed, the hub can't be reached, or a task is not part of C-MTEB.
    """
    from .pipeline.encoder.encoder import dimension
    from .pipeline.encoder.model_folder import find_model
    from .pipeline.encoder.prompts import read_named_prompts
    from .trainer.evaluation.cmteb import check, cmteb
    from .trainer.evaluation.evaluate import widths

    if recipe.evaluate.quantize:
        raise RecipeError("evaluate.quantize: mteb searches float32 vectors; leave it out, or evaluate with --sets")
    tasks = check(tasks)
    rows = []
    for name, model in _find_models(corpus, models).items():
        encoder = _load_encoder(model, recipe)
        named = read_named_prompts(find_model(model, recipe.evaluate.trust_remote_code))
        for width in widths(encoder, recipe.evaluate.matryoshka_dims):
            label = name if width == dimension(encoder) else f"{name}@{width}"
            found = cmteb(encoder, tasks, width, recipe.evaluate.prompts, named)
            rows += [{"model": label, "dimension": width, **row} for row in found]
    return Evaluated(rows)


def _find_models(corpus: Path | None, models: list[str]) -> dict[str, str]:
    """Return the folder or hub name of each model; a training stage without a model is an error.

    Without a corpus, every name is taken as a hub name or folder.
    """
    return {name: find_trained_model(corpus, name) if corpus else name for name in models}


def _load_encoder(model: str, recipe: Recipe) -> "Encoder":
    from .pipeline.encoder.encoder import load_encoder
    from .schemas.settings import EncoderSettings

    return load_encoder(
        EncoderSettings(model=model, **recipe.evaluate.model_dump(exclude={"models", "matryoshka_dims", "quantize"}))
    )


def _keep_metrics(file: Path, rows: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, set[str]]:
    """Save metrics on the corpus's own sets for the report; they replace earlier ones of the same models.

    `versions` are hashes of the sets, by name. Metrics of other models stay if they were measured on the same records.
    Returns the sets on which those of other models did not stay, by model.
    """
    from .pipeline.corpus.atomic import write_text
    from .pipeline.corpus.lock import alone_in

    evaluated = set(map(model_of, rows))
    measured = [{**row, "set_version": versions[row["set"]]} for row in rows]
    with alone_in(file.parent):
        before = json.loads(file.read_text("utf-8")) if file.exists() else []
        kept, outdated = [], defaultdict[str, set[str]](set)
        for row in (row for row in before if model_of(row) not in evaluated):
            if row.get("set_version") == versions.get(row["set"], ""):
                kept.append(row)
            else:
                outdated[model_of(row)].add(row["set"])
        write_text(file, json.dumps([*kept, *measured], indent=1))
    return outdated


def model_of(row: dict[str, Any]) -> str:
    """Return the model's name in a row of metrics, whose label also says how its vectors were cut and stored."""
    return str(row["model"]).removesuffix(f" {row.get('precision')}").removesuffix(f"@{row.get('dimension')}")
