"""Evaluation on C-MTEB with mteb: the 35 tasks of the Conan-embedding paper (arXiv 2408.15710)."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ...pipeline.corpus.folder import fingerprint
from ...pipeline.encoder.encoder import Encoder, Vectors, encode
from ...pipeline.encoder.finite import check_finite
from ...pipeline.encoder.prompts import is_instruction
from ...pipeline.encoder.quantization import cut
from ...schemas.errors import ConanError, MissingExtraError
from ...schemas.registry import did_you_mean
from ...schemas.settings import PromptSettings

BENCHMARK = "MTEB(cmn, v1)"
"""mteb's own C-MTEB, which has 31 of the 35 tasks."""

CHINESE_PART = {
    "AmazonReviewsClassification": "zh",
    "MassiveIntentClassification": "zh-CN",
    "MassiveScenarioClassification": "zh-CN",
    "STS22": "zh",
}
"""The other four tasks, which are multilingual, with their Chinese subset; its test split counts."""

TASKS = {
    "Classification": (
        "AmazonReviewsClassification", "IFlyTek", "JDReview", "MassiveIntentClassification",
        "MassiveScenarioClassification", "MultilingualSentiment", "OnlineShopping", "TNews", "Waimai",
    ),
    "Clustering": ("CLSClusteringP2P", "CLSClusteringS2S", "ThuNewsClusteringP2P", "ThuNewsClusteringS2S"),
    "PairClassification": ("Cmnli", "Ocnli"),
    "Reranking": ("CMedQAv1-reranking", "CMedQAv2-reranking", "MMarcoReranking", "T2Reranking"),
    "Retrieval": (
        "CmedqaRetrieval", "CovidRetrieval", "DuRetrieval", "EcomRetrieval", "MedicalRetrieval", "MMarcoRetrieval",
        "T2Retrieval", "VideoRetrieval",
    ),
    "STS": ("AFQMC", "ATEC", "BQ", "LCQMC", "PAWSX", "QBQTC", "STS22", "STSB"),
}  # fmt: skip
"""Tasks by type, both by their names in mteb."""

_PATIENCE = 10
"""Chosen here: seconds to wait for the hub."""


NO_PROMPTS = PromptSettings()


class BenchmarkError(ConanError):
    """C-MTEB can't run; the message says why and what to do."""


def check(names: Sequence[str]) -> list[str]:
    """Return the tasks to run: `names`, or all 35 if it is empty.

    Takes seconds, so that errors are reported before a model is loaded.

    Raises:
        BenchmarkError: a name is not a task's, or the hub can't be reached.
        MissingExtraError: mteb is not installed.
    """
    every = [name for kind in TASKS.values() for name in kind]
    if unknown := [name for name in names if name not in every]:
        raise BenchmarkError(f"C-MTEB has no task {unknown[0]!r}{did_you_mean(unknown[0], every)}")
    if importlib.util.find_spec("mteb") is None:
        raise MissingExtraError("C-MTEB", "eval")
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE):
                return list(names) or every
        except HTTPError:  # it answers
            return list(names) or every
        except OSError as error:
            reason = str(error)
    raise BenchmarkError(
        f"C-MTEB's data sets come from {constants.ENDPOINT}, which can't be reached ({reason}); "
        "set HF_ENDPOINT to a mirror, or use --sets to evaluate on your own files"
    )


def cmteb(
    encoder: Encoder,
    names: Sequence[str],
    width: int,
    given: PromptSettings = NO_PROMPTS,
    named: Mapping[str, str] = {},
) -> list[dict[str, Any]]:
    """Evaluate a model on tasks of C-MTEB, with vectors truncated to `width`; return rows of set, metric, value.

    `given` are the recipe's prompts, `named` those of the model's folder; see `ForMteb.find_prompt`.

    A row is a task's main score. There is also a row with the mean of each type of which all tasks were run, and with
    the mean of all 35. mteb caches scores by a hash of the weights and settings, so an interrupted run continues with
    the next task.
    """
    import mteb

    ours = {task.metadata.name: task for task in mteb.get_benchmark(BENCHMARK).tasks}
    tasks = [
        mteb.get_task(name, hf_subsets=[CHINESE_PART[name]], eval_splits=["test"])
        if name in CHINESE_PART
        else ours[name]
        for name in names
    ]
    scores = score(ForMteb(encoder, width, given, named), tasks)
    rows = [
        {"set": task.metadata.name, "metric": task.metadata.main_score, "value": scores[task.metadata.name]}
        for task in tasks
    ]
    means = {kind: [scores[name] for name in every if name in scores] for kind, every in TASKS.items()}
    for kind, found in means.items():
        if len(found) == len(TASKS[kind]):
            rows.append({"set": f"mean of {len(found)}", "metric": kind, "value": float(np.mean(found))})
    if len(scores) == sum(map(len, TASKS.values())):
        rows.append({"set": f"mean of {len(scores)}", "metric": "C-MTEB", "value": float(np.mean([*scores.values()]))})
    return rows


def score(model: "ForMteb", tasks: Sequence[Any]) -> dict[str, float]:
    """Return a model's main score on each of these mteb tasks: the mean over its splits and subsets."""
    import mteb

    found = mteb.evaluate(model, tasks, cache=mteb.ResultCache())
    return {task.task_name: float(task.get_score()) for task in found.task_results}


class ForMteb:
    """An Encoder with the interface that mteb needs: `mteb.models.EncoderProtocol`."""

    def __init__(
        self,
        encoder: Encoder,
        width: int,
        given: PromptSettings = NO_PROMPTS,
        named: Mapping[str, str] = {},
    ) -> None:
        from mteb.models import ModelMeta

        self.encoder, self.width, self.given, self.named = encoder, width, given, dict(named)
        prompts = asdict(encoder.prompts), given.model_dump(), self.named
        decides = (encoder.fingerprint, prompts, encoder.max_length, encoder.pooling, width)
        metadata = {"name": "conan-embedding/local", "revision": fingerprint(*decides), "embed_dim": width}
        self.mteb_model_meta = ModelMeta.create_empty(metadata)

    def encode(self, inputs: Any, *, task_metadata: Any = None, prompt_type: Any = None, **_: Any) -> Vectors:
        """Encode the texts in mteb's batches, each after its prompt."""
        texts = [text for batch in inputs for text in batch["text"]]
        vectors = encode(self.encoder, texts, self.find_prompt(task_metadata, prompt_type))
        check_finite("C-MTEB", vectors.__getitem__, pl.Series(texts, dtype=pl.String), "texts")
        return cut(vectors, self.width)

    def find_prompt(self, task: Any, prompt_type: Any) -> str:
        """Return what goes before the texts of a task: `task` has mteb's TaskMetadata, `prompt_type` the side or None.

        The first of: the recipe's prompt of that side; the prompt that the folder names after the task or its type, by
        mteb's rule; mteb's instruction of the task, if the model's own prompt for queries is an instruction; the
        model's own prompt of that side. Passages get no instruction (mteb's `InstructSentenceTransformerModel` for
        Qwen3-Embedding and e5-instruct).
        """
        side = {"query": "query", "document": "passage"}.get(getattr(prompt_type, "value", ""), "sentence")
        own = self.encoder.prompts
        if task is None or getattr(self.given, side) is not None:
            return str(getattr(own, side))
        from mteb.abstasks.abstask import get_abstask_prompt
        from mteb.models.abs_encoder import get_prompt_name

        name = get_prompt_name(self.named, task, prompt_type)
        if name not in (None, "query", "document"):  # sides have their own names, see prompts.NAMES
            return self.named[name]
        if side != "passage" and is_instruction(own.query):
            instruction = task.prompt.get("query") if isinstance(task.prompt, dict) else task.prompt
            return f"Instruct: {instruction or get_abstask_prompt(task.name)}{own.after_instruction}"
        return str(getattr(own, side))

    def similarity(self, left: Any, right: Any) -> Tensor:
        """Return the cosine of every pair, [n, m]."""
        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left: Any, right: Any) -> Tensor:
        """Return the cosine of row i and row i, [n]."""
        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(dim=1)
