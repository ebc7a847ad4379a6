"""Evaluation while training, and the best model so far."""

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
from .evaluation_sets import EvaluationSet, part, read_sets

HEADLINE = {"retrieval": "ndcg@10", "sts": "spearman", "classification": "accuracy"}
"""Of the metrics of a set, the one that counts: those of C-MTEB (arXiv 2309.07597, §3)."""

BEST = "best.json"
"""In the folder of the best model: its step, its mean headline, and what of which sets that is of."""

Metrics = dict[str, dict[str, float]]
"""By set and metric."""


def validation_sets(job: Job) -> list[EvaluationSet]:
    """What the job validates on: of each set so many queries, the same every time, among all of its passages.

    Raises:
        CorpusError: a set that is neither an evaluation set of the corpus nor a file, or one that can't be read.
    """
    wanted, folder = job.settings.validation, job.corpus / "evaluation"
    if not wanted.every:
        return []
    files = [Path(name) for name in wanted.sets if Path(name).exists()]
    names = [name for name in wanted.sets if not Path(name).exists()]
    own = read_sets([folder]) if names or not files else []
    if unknown := sorted(set(names) - {one.name for one in own}):
        raise CorpusError(
            f"validation.sets: {unknown[0]} is neither a file nor a set of {folder}"
            f"{did_you_mean(unknown[0], [one.name for one in own])}"
        )
    chosen = [one for one in own if one.name in names or not wanted.sets]
    return [_fewer(one, wanted.queries) for one in [*chosen, *(read_sets(files) if files else [])]]


def _fewer(one: EvaluationSet, queries: int) -> EvaluationSet:
    return one if one.frame.height <= queries else part(one, one.frame.sample(queries, seed=0))


def validate(
    model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, sets: list[EvaluationSet]
) -> tuple[Metrics, float]:
    """The metrics of a model that is being trained, and the mean of each set's headline."""
    encoder = encoder_of(model, tokenizer)
    model.eval()
    with torch.no_grad():
        metrics = {one.name: evaluate(encoder, one) for one in sets}
    model.train()
    return metrics, float(np.mean([metrics[one.name][HEADLINE[one.task]] for one in sets]))


def best_so_far(job: Job, step: int) -> float:
    """The mean headline of the best model before a step, on the sets as they are now; minus infinity without one."""
    file = job.best_folder / BEST
    best = json.loads(file.read_text("utf-8")) if file.exists() else None
    return float(best["mean"]) if best and best["step"] < step and best["sets"] == _named(job) else -np.inf


def _named(job: Job) -> dict[str, Any]:
    return job.settings.validation.model_dump(mode="json", include={"sets", "queries"})


def keep_best(job: Job, step: int, mean: float, model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep a model with float32 weights as the best of the run, in place of the one before."""
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
    """Log the model's metrics on the sets; if it beats every model before, keep it. All ranks do the same."""
    with deepspeed.zero.GatheredParameters([] if model.head is None else list(model.head.parameters())):  # ZeRO 3
        metrics, mean = validate(model, tokenizer, sets)
    best = broadcast_from_rank0(mean > best_so_far(job, step))
    if best:
        with full_precision(model):
            if log.writes:
                keep_best(job, step, mean, model, tokenizer)
    log.write(event="validation", step=step, mean=mean, best=best, metrics=metrics)
