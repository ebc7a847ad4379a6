"""The loss of GPUs that exchange nothing, against InfoNCE and CoSENT written out for each GPU in float64."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conan_embedding.trainer.loss.cbb import Batch, Losses, build_batch, cbb_loss
from torch import Tensor

GPUS, QUERIES, NEGATIVES, PAIRS = 2, 3, 2, 4
"""GPUs, and what each one has."""
TEMPERATURE, STS_TEMPERATURE, BETA = 0.1, 0.07, 0.8


def load_script() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "simulated_gpus.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch() -> Batch:
    queries = [f"query {i}" for i in range(GPUS * QUERIES)]
    return build_batch(
        queries,
        [f"positive {i}" for i in range(len(queries))],
        [[f"negative {i} {j}" for j in range(NEGATIVES)] for i in range(len(queries))],
        positive_clusters=[0, 1, 2, 3, 4, 5],
        negative_clusters=[[-1, 1], [-1, -1], [-1, -1], [-1, 0], [-1, -1], [-1, -1]],
        left=[f"left {i}" for i in range(GPUS * PAIRS)],
        right=[f"right {i}" for i in range(GPUS * PAIRS)],
        labels=[0.1, 0.9, 0.5, 0.5, 0.0, 1.0, 0.3, 0.7],
    )


def reference(embeddings: Tensor, batch: Batch) -> Tensor:
    """The mean over GPUs of -log softmax over the GPU's own negatives + β · CoSENT of the GPU's own pairs."""

    def vector(text: str) -> Tensor:
        return embeddings[batch.texts.index(text)]

    def cosine(one: str, other: str) -> Tensor:
        return torch.cosine_similarity(vector(one), vector(other), dim=0)

    total = embeddings.new_zeros(())
    for gpu in range(GPUS):
        own = range(gpu * QUERIES, (gpu + 1) * QUERIES)
        for i in own:
            top = torch.exp(cosine(f"query {i}", f"positive {i}") / TEMPERATURE)
            denominator = top
            for j in own:
                for k in range(NEGATIVES):
                    if (i, j, k) != (1, 0, 1):  # of the cluster of this query's positive
                        denominator = denominator + torch.exp(cosine(f"query {i}", f"negative {j} {k}") / TEMPERATURE)
            total = total - torch.log(top / denominator) / QUERIES
        pairs = range(gpu * PAIRS, (gpu + 1) * PAIRS)
        scores = {i: cosine(f"left {i}", f"right {i}") / STS_TEMPERATURE for i in pairs}
        inner = sum(torch.exp(scores[j] - scores[i]) for i in pairs for j in pairs if batch.labels[i] > batch.labels[j])
        total = total + BETA * torch.log(1 + inner)
    return total / GPUS


def loss(embeddings: Tensor, batch: Batch, temperature: Tensor | None) -> Losses:
    return cbb_loss(embeddings, batch, temperature=TEMPERATURE, beta=BETA, sts_temperature=STS_TEMPERATURE)


def test_each_gpu_has_its_own_denominators() -> None:
    batch, generator = make_batch(), torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(batch.texts), 8, dtype=torch.float64, generator=generator).requires_grad_()
    losses = load_script().on_each_gpu(loss, GPUS)(embeddings, batch, None)
    expected = reference(embeddings, batch)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)
    found, wanted = (torch.autograd.grad(each, embeddings)[0] for each in (losses.total, expected))
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)
    assert losses.mean_negatives == pytest.approx(QUERIES * NEGATIVES - 1 / 6)
    assert losses.negative_scores.shape == (GPUS * QUERIES, NEGATIVES)


def test_what_cannot_be_divided_equally_is_refused() -> None:
    batch = make_batch()
    with pytest.raises(ValueError, match="6 query_rows can't be divided equally among 4 GPUs"):
        load_script().shares(batch, 4)
