"""Distillation: against the losses of sentence-transformers, and what queries without scores add."""

from functools import partial
from typing import Any

import pytest
import torch
from conan_embedding.trainer.loss.cbb import build_batch
from conan_embedding.trainer.loss.distillation import DISTILLATION_LOSSES, distillation_loss
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

NO = float("nan")
QUERIES, POSITIVES, NEGATIVES = ["q", "r"], ["p", "s"], [["k", "l"], ["m", "n"]]
SCORES = [[4.0, 1.0, -2.0], [0.5, 1.5, 0.0]]
TEMPERATURES: dict[str, Any] = {"temperature": 0.1, "teacher_temperature": 2.0}


def embed(batch: Any) -> Tensor:
    return torch.randn(len(batch.texts), 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_and_gradient(name: str, scores: list[list[float]]) -> tuple[float, Tensor]:
    batch = build_batch(QUERIES, POSITIVES, NEGATIVES, teacher_scores=scores)
    embeddings = embed(batch).requires_grad_()
    loss = distillation_loss(embeddings, batch, loss=DISTILLATION_LOSSES[name], **TEMPERATURES)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    return loss.item(), gradient


@pytest.mark.parametrize("name", ["kl", "margin_mse"])
def test_the_losses_are_those_of_sentence_transformers(name: str) -> None:
    student = partial(lambda a, b: pairwise_cos_sim(a, b) / 0.1)
    peers = {
        "kl": DistillKLDivLoss(None, student, teacher_temperature=2.0),
        "margin_mse": MarginMSELoss(None, student),
    }
    labels = torch.tensor(SCORES, dtype=torch.float64) / (1 if name == "kl" else 2.0)
    batch = build_batch(QUERIES, POSITIVES, NEGATIVES, teacher_scores=SCORES)
    embeddings = embed(batch).requires_grad_()
    rows = [batch.query_rows, batch.positive_rows, *batch.negative_rows.T]
    expected = peers[name].compute_loss_from_embeddings([embeddings[each] for each in rows], labels)
    (gradient,) = torch.autograd.grad(expected, embeddings)
    loss, found = loss_and_gradient(name, SCORES)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(found, gradient, rtol=1e-10)


@pytest.mark.parametrize("name", ["kl", "margin_mse"])
def test_a_query_without_scores_adds_nothing(name: str) -> None:
    """Neither does one without a score for its positive, or for all of its negatives."""
    both, gradient = loss_and_gradient(name, SCORES)
    parts = []
    for missing in ([NO, NO, NO], [NO, 1.0, 2.0], [1.0, NO, NO]):
        first, of_first = loss_and_gradient(name, [SCORES[0], missing])
        second, of_second = loss_and_gradient(name, [missing, SCORES[1]])
        assert first + second == pytest.approx(both) and min(first, second) > 0
        assert torch.allclose(of_first + of_second, gradient)
        assert of_first.abs().sum(dim=1).count_nonzero() == 4  # the query, its positive and its two negatives
        parts.append(first)
    assert parts == [parts[0]] * 3
    nothing, of_nothing = loss_and_gradient(name, [[NO] * 3] * 2)
    assert nothing == 0 and not of_nothing.any()


def test_the_student_is_right_where_it_differs_by_a_constant() -> None:
    """Both losses are 0 if all logits of a query are the judge's plus a number."""
    batch = build_batch(["q"], ["p"], [["k"]])
    embeddings = embed(batch)
    cosines = torch.cosine_similarity(embeddings[batch.query_rows], embeddings[[1, 2]])
    scores = [(cosines * 2.0 / 0.1 + 7).tolist()]
    batch = build_batch(["q"], ["p"], [["k"]], teacher_scores=scores)
    for loss in DISTILLATION_LOSSES.values():
        assert distillation_loss(embeddings, batch, loss=loss, **TEMPERATURES).item() == pytest.approx(0, abs=1e-10)


def test_a_learnt_temperature_learns_from_it() -> None:
    batch = build_batch(QUERIES, POSITIVES, NEGATIVES, teacher_scores=SCORES)
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    for loss in DISTILLATION_LOSSES.values():
        term = partial(distillation_loss, embed(batch), batch, loss=loss, teacher_temperature=2.0)
        assert torch.autograd.gradcheck(lambda value, term=term: term(temperature=value), temperature)
