"""Validation during training: evaluate, log, and keep the best model so far."""

import json
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...pipeline.corpus.atomic import write_text
from ...schemas.errors import CorpusError
from ...schemas.registry import did_you_mean
from ..job import Job
from ..loss.collectives import broadcast_from_rank0
from ..model.embedding_model import EmbeddingModel, encoder_of
from ..model.export import export
from ..optimizer import full_precision
from ..run_log import Log
from .evaluate import evaluate
from .evaluation_sets import EvaluationSet, find_own_sets, part, read_sets
from .metrics import HEADLINE

BEST = "best.json"
"""A file in the folder of the best model: its step, its mean headline metric, and the sets that this is the mean of."""

Metrics = dict[str, dict[str, float]]
"""Values by set and metric."""


def validation_sets(job: Job) -> list[EvaluationSet]:
    """Return the sets that a job validates on: a fixed sample of the queries of each, with all of its passages.

    Raises:
        CorpusError: a set is neither an evaluation set of the corpus nor a file, or it can't be read.
    """
    wanted = job.settings.validation
    if not wanted.every:
        return []
    files = [Path(name) for name in wanted.sets if Path(name).exists()]
    names = [name for name in wanted.sets if not Path(name).exists()]
    own = read_sets(find_own_sets(job.corpus), prompts=job.set_prompts) if names or not files else []
    if unknown := sorted(set(names) - {one.name for one in own}):
        raise CorpusError(
            f"validation.sets: {unknown[0]} is neither a file nor a set of {job.corpus}"
            f"{did_you_mean(unknown[0], [one.name for one in own])}"
        )
    chosen = [one for one in own if one.name in names or not wanted.sets]
    return [
        _fewer(one, wanted.queries) for one in [*chosen, *(read_sets(files, prompts=job.set_prompts) if files else [])]
    ]


def _fewer(one: EvaluationSet, queries: int) -> EvaluationSet:
    return one if one.frame.height <= queries else part(one, one.frame.sample(queries, seed=0))


def validate(
    model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, sets: list[EvaluationSet]
) -> tuple[Metrics, float]:
    """Evaluate a model that is being trained; return its metrics, and the mean of the sets' headline metrics."""
    encoder = encoder_of(model, tokenizer)
    model.eval()
    with torch.no_grad():
        metrics = {one.name: evaluate(encoder, one) for one in sets}
    model.train()
    return metrics, float(np.mean([metrics[one.name][HEADLINE[one.task]] for one in sets]))


def best_so_far(job: Job, step: int) -> float:
    """Return the mean headline metric of the best model before a step; -inf if none was saved for the current sets."""
    file = job.best_folder / BEST
    best = json.loads(file.read_text("utf-8")) if file.exists() else None
    return float(best["mean"]) if best and best["step"] < step and best["sets"] == _named(job) else -np.inf


def _named(job: Job) -> dict[str, Any]:
    return job.settings.validation.model_dump(mode="json", include={"sets", "queries"})


def keep_best(job: Job, step: int, mean: float, model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save a model with float32 weights as the best of the run, replacing the previous one."""
    export(model, tokenizer, job.best_folder)
    write_text(job.best_folder / BEST, json.dumps({"step": step, "mean": mean, "sets": _named(job)}))


def validate_and_keep_best(
    job: Job,
    step: int,
    model: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: list[EvaluationSet],
    log: Log,
) -> None:
    """Log the model's metrics on the sets, and save it if it is the best so far. Every rank must call this."""
    with deepspeed.zero.GatheredParameters([] if model.head is None else list(model.head.parameters())):  # ZeRO 3
        metrics, mean = validate(model, tokenizer, sets)
    best = broadcast_from_rank0(mean > best_so_far(job, step))
    if best:
        with full_precision(model):
            if log.writes:
                keep_best(job, step, mean, model, tokenizer)
    log.write(event="validation", step=step, mean=mean, best=best, metrics=metrics)
