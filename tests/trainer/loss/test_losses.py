"""Losses against loops over Python floats, written from the paper's equations."""

import math
from collections.abc import Sequence

import pytest
import torch
from conan_embedding.trainer.loss.losses import cosent, cosine_matrix, info_nce, matryoshka
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left)) / math.sqrt(sum(b * b for b in right))


def literal_cosent(scores: Sequence[float], labels: Sequence[float], temperature: float) -> float:
    """Compute eq. 2 pair by pair."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if labels[i] > labels[j]]
    return math.log(1 + sum(math.exp((scores[j] - scores[i]) / temperature) for i, j in pairs))


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_info_nce_is_the_formula_with_masked_passages_left_out() -> None:
    queries, passages = vectors(3, 5), vectors(7, 5, seed=1)
    positive = [4, 0, 4]
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    expected = 0.0
    for i, query in enumerate(queries.tolist()):
        scores = [math.exp(cosine(query, passage) / 0.1) for passage in passages.tolist()]
        others = sum(scores[j] for j in range(7) if j != positive[i] and not mask[i, j])
        expected -= math.log(scores[positive[i]] / (scores[positive[i]] + others)) / 3
    loss = info_nce(queries, passages, torch.tensor(positive), 0.1, mask)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda q, p: info_nce(q, p, torch.tensor(positive), 0.1, mask), (queries, passages))


def test_info_nce_ignores_the_length_of_vectors() -> None:
    queries, passages, index = vectors(3, 5), vectors(4, 5, seed=1), torch.tensor([0, 1, 2])
    scaled = info_nce(queries * 7, passages * 0.01, index, 0.05)
    assert scaled.item() == pytest.approx(info_nce(queries, passages, index, 0.05).item(), rel=1e-9)


def test_info_nce_with_everything_masked_still_has_its_positive() -> None:
    loss = info_nce(vectors(2, 3), vectors(2, 3), torch.tensor([0, 1]), 0.05, torch.ones(2, 2, dtype=torch.bool))
    assert loss.item() == 0


def test_info_nce_without_queries_is_zero_with_gradients() -> None:
    embeddings = vectors(4, 3)
    nothing = torch.zeros(0, dtype=torch.long)
    for passages in (embeddings[nothing], embeddings):
        loss = info_nce(embeddings[nothing], passages, nothing, 0.05)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert loss.item() == 0
        assert torch.equal(gradient, torch.zeros_like(embeddings))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_embeddings_are_compared_in_float32(autocast: bool) -> None:
    queries = vectors(3, 64).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = cosine_matrix(queries, queries)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.diagonal(), torch.ones(3), atol=1e-6)


@max_examples(200)
@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from([0.0, 0.2, 0.5, 0.50001, 1.0, 5.0])), max_size=12))
def test_cosent_is_the_double_sum(pairs: list[tuple[float, float]]) -> None:
    scores = torch.tensor([score for score, _ in pairs], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([label for _, label in pairs], dtype=torch.float64)
    loss = cosent(scores, labels, 0.05)
    assert loss.item() == pytest.approx(literal_cosent(scores.tolist(), labels.tolist(), 0.05), rel=1e-9, abs=1e-12)
    loss.backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_cosent_gradients_with_ties() -> None:
    labels = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.5, 0.0])
    assert torch.autograd.gradcheck(lambda scores: cosent(scores, labels, 0.3), vectors(6))


@pytest.mark.parametrize("labels", [[], [0.7], [0.3, 0.3, 0.3]], ids=["none", "one", "one class"])
def test_cosent_without_order_is_zero_with_zero_gradients(labels: list[float]) -> None:
    scores = vectors(len(labels))
    loss = cosent(scores, torch.tensor(labels), 0.05)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(scores))


def test_cosent_does_not_overflow_at_small_temperatures() -> None:
    scores = torch.tensor([-1.0, 1.0], requires_grad=True)
    loss = cosent(scores, torch.tensor([1.0, 0.0]), 0.001)
    loss.backward()
    assert loss.item() == pytest.approx(2000)
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([-1000, 1000])


def test_matryoshka_is_the_mean_over_cut_vectors() -> None:
    queries, passages, index = vectors(3, 8), vectors(5, 8, seed=1), torch.tensor([1, 0, 3])

    def loss(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return info_nce(left, right, index, 0.1)

    expected = sum(loss(queries[:, :dim], passages[:, :dim]).item() for dim in (2, 4, 8)) / 3
    assert matryoshka(loss, [2, 4, 8])(queries, passages).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(matryoshka(loss, [2, 8]), (queries, passages))


@pytest.mark.parametrize("dims", [[], [0, 4], [4, 9]])
def test_matryoshka_refuses_dims_that_do_not_exist(dims: list[int]) -> None:
    with pytest.raises(ValueError, match="dims"):
        matryoshka(torch.sum, dims)(vectors(2, 8))
