"""The loss of several GPUs that exchange no embeddings, computed by one process."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from conan_embedding.trainer.loss.cbb import Batch, Losses
from torch import Tensor

Loss = Callable[[Tensor, Batch, Tensor | None], Losses]


def on_each_gpu(loss: Loss, gpus: int) -> Loss:
    """Make `loss` the mean over `gpus` GPUs, each with its own queries, sentence pairs and denominators.

    This is plain data parallelism, without the gathering of CBB: what the paper calls vanilla. Numbers of queries and
    pairs must be multiples of `gpus`.
    """

    def mean_over_gpus(embeddings: Tensor, batch: Batch, temperature: Tensor | None) -> Losses:
        parts = [loss(embeddings, share, temperature) for share in shares(batch, gpus)]
        return Losses(
            total=torch.stack([part.total for part in parts]).mean(),
            terms={name: torch.stack([part.terms[name] for part in parts]).mean() for name in parts[0].terms},
            positive_scores=torch.cat([part.positive_scores for part in parts]),
            negative_scores=torch.cat([part.negative_scores for part in parts]),
            mean_negatives=float(np.mean([part.mean_negatives for part in parts])),
            single_label=any(part.single_label for part in parts),
        )

    return mean_over_gpus


def shares(batch: Batch, gpus: int) -> list[Batch]:
    """Give each GPU as many of a batch's queries and pairs, in order.

    All shares have the texts and groups of the whole batch: texts that are known to be alike on one GPU are so on all.
    """
    split = {}
    for name in (
        "query_rows",
        "positive_rows",
        "negative_rows",
        "query_only",
        "teacher_scores",
        "left_rows",
        "right_rows",
        "labels",
    ):
        rows = getattr(batch, name)
        if len(rows) % gpus:
            raise ValueError(f"{len(rows)} {name} can't be divided equally among {gpus} GPUs")
        split[name] = rows.tensor_split(gpus)
    return [replace(batch, **{name: parts[gpu] for name, parts in split.items()}) for gpu in range(gpus)]
