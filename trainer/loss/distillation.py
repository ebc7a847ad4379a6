"""Distillation: losses by which a query's cosines learn from a judge's scores of its positive and its own negatives.

Student and teacher are logits: cosines divided by the temperature of InfoNCE, and scores divided by one of their own.

Shapes: N queries of the batch, n of them with scores, C = 1 + K columns: the positive, then the negatives.
"""
# ruff: noqa: N803, N806 (the letters after _ are shapes: student_nC is [n, C])

from collections.abc import Callable

import torch
from torch import Tensor

from ...schemas.registry import Registry
from ..transfer import to_device
from .cbb import Batch
from .losses import cosine_pairs

DistillationLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns the loss of each query, [n], from the logits of student and teacher and the mask of known scores, [n, C]."""

DISTILLATION_LOSSES: Registry[DistillationLoss] = Registry("distillation loss")

UNKNOWN = -1e9
"""Chosen here: the logit of a passage without a score. Its probability is 0, and differences of it are finite."""


def kl_divergence(student_nC: Tensor, teacher_nC: Tensor, known_nC: Tensor) -> Tensor:
    """KL divergence of the student's softmax over a query's passages from the teacher's: [n].

    Its gradient is that of FlagEmbedding's `kl_div`, and of sentence-transformers' DistillKLDivLoss without its factor
    `student_temperature`².
    """
    student_nC, teacher_nC = student_nC.log_softmax(dim=1), teacher_nC.log_softmax(dim=1)
    return (teacher_nC.exp() * (teacher_nC - student_nC)).sum(dim=1)


def margin_mse(student_nC: Tensor, teacher_nC: Tensor, known_nC: Tensor) -> Tensor:
    """Mean squared error of the margins between the positive and each negative (MarginMSE, arXiv 2010.02666): [n]."""
    student_nK, teacher_nK = (logits[:, :1] - logits[:, 1:] for logits in (student_nC, teacher_nC))
    errors_nK = (student_nK - teacher_nK).square().masked_fill(~known_nC[:, 1:], 0)
    return errors_nK.sum(dim=1) / known_nC[:, 1:].sum(dim=1)


DISTILLATION_LOSSES.register("kl", kl_divergence)
DISTILLATION_LOSSES.register("margin_mse", margin_mse)


def distillation_loss(
    embeddings_Td: Tensor,
    batch: Batch,
    *,
    loss: DistillationLoss,
    temperature: float | Tensor,
    teacher_temperature: float,
) -> Tensor:
    """Sum `loss` over the queries with scores, divided by the number of all queries: a term of `cbb_loss`.

    A query adds nothing unless its positive and at least one of its negatives have a score (`teacher_scores` of the
    batch). Its negatives without one are left out.
    """
    known_NC = ~batch.teacher_scores.isnan()
    scored_N = known_NC[:, 0] & known_NC[:, 1:].any(dim=1)
    known_nC = known_NC[scored_N]
    query_rows_n = batch.query_rows[scored_N]
    passage_rows_nC = torch.cat([batch.positive_rows[:, None], batch.negative_rows], dim=1)[scored_N]

    query, column = known_nC.nonzero(as_tuple=True)
    device = embeddings_Td.device
    cosines = cosine_pairs(
        embeddings_Td[to_device(query_rows_n[query], device)],
        embeddings_Td[to_device(passage_rows_nC[query, column], device)],
    )
    places = (to_device(query, device), to_device(column, device))
    student_nC = cosines.new_full(known_nC.shape, UNKNOWN).index_put(places, cosines / temperature)
    teacher_nC = batch.teacher_scores[scored_N].to(cosines.dtype) / teacher_temperature
    teacher_nC = to_device(teacher_nC.masked_fill(~known_nC, UNKNOWN), device)
    losses_n = loss(student_nC, teacher_nC, to_device(known_nC, device))
    return losses_n.sum() / max(len(batch.query_rows), 1)
