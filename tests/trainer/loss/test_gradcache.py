"""GradCache against plain autograd over the same chunks. With process groups and DeepSpeed: see test_cbb.py."""

from typing import Any

import pytest
import torch
from conan_embedding.trainer.loss.cbb import Losses
from conan_embedding.trainer.loss.gradcache import LENGTH_RATIO, cached_backward, chunks_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn


def losses_of(total: Tensor) -> Losses:
    return Losses(total, {}, torch.zeros(0), torch.zeros(0, 0))


def contrast(embeddings: Tensor) -> Losses:
    """A loss that depends on every pair of embeddings."""
    return losses_of(torch.logsumexp(embeddings @ embeddings.T, dim=1).sum())


def model_of(dropout: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)).to(dtype)


def chunks(*sizes: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 5, generator=generator).to(dtype),) for size in sizes]


def gradients(model: nn.Module) -> list[Tensor]:
    return [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_those_of_one_backward_pass(dropout: float) -> None:
    plain, cached, inputs = model_of(dropout), model_of(dropout), chunks(3, 1, 0, 4)
    torch.manual_seed(2)
    expected = contrast(torch.cat([plain(*chunk) for chunk in inputs])).total
    expected.backward()
    drawn_next = torch.rand(1)
    torch.manual_seed(2)
    losses = cached_backward(cached, inputs, contrast, Tensor.backward)
    assert torch.equal(torch.rand(1), drawn_next)
    assert losses.total.item() == expected.item()
    for one, other in zip(gradients(plain), gradients(cached), strict=True):
        assert torch.norm(one - other) <= 1e-12 * torch.norm(one)


def test_no_more_than_one_chunk_is_encoded_with_gradients_at_a_time() -> None:
    model, events = model_of(0.0), []

    def encode(chunk: Tensor) -> Any:
        events.append(f"encode {len(chunk)}{' with gradients' if torch.is_grad_enabled() else ''}")
        return model(chunk)

    def backward(total: Tensor) -> None:
        events.append("backward")
        total.backward()

    cached_backward(encode, chunks(2, 3), contrast, backward)
    first = ["encode 2 with gradients", "backward"]
    assert events == ["encode 2", "encode 3", *first, "encode 3 with gradients", "backward"]


def test_what_the_loss_itself_uses_gets_its_gradient_too() -> None:
    plain, cached, inputs = model_of(0.0), model_of(0.0), chunks(3, 2)
    scales = [nn.Parameter(torch.tensor(0.7, dtype=torch.float64)) for _ in range(2)]

    def loss(embeddings: Tensor, scale: Tensor) -> Losses:
        return contrast(embeddings * scale.exp())

    loss(torch.cat([plain(*chunk) for chunk in inputs]), scales[0]).total.backward()
    cached_backward(cached, inputs, lambda own: loss(own, scales[1]), Tensor.backward, loss_parameters=[scales[1]])
    assert float(scales[1].grad) == pytest.approx(float(scales[0].grad), rel=1e-12)
    for one, other in zip(gradients(plain), gradients(cached), strict=True):
        assert torch.norm(one - other) <= 1e-12 * torch.norm(one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    inputs = chunks(*[1] * 600, dtype=dtype)
    exact, half = model_of(0.0, dtype).double(), model_of(0.0, dtype)

    def loss(embeddings: Tensor) -> Losses:
        return losses_of(embeddings.sum())

    loss(exact(torch.cat([chunk.double() for (chunk,) in inputs]))).total.backward()
    cached_backward(half, inputs, loss, Tensor.backward, half.parameters())
    for one, other in zip(gradients(exact), gradients(half), strict=True):
        assert other.dtype == dtype
        assert torch.norm(one - other.double()) <= 2 * torch.finfo(dtype).eps * torch.norm(one)


def test_a_loss_scale_is_applied_before_gradients_are_rounded() -> None:
    model = model_of(0.0, torch.float16)

    def loss(embeddings: Tensor) -> Losses:
        return losses_of(embeddings.sum() * 1e-9)  # below the smallest number of fp16, 6e-8

    cached_backward(model, chunks(2, dtype=torch.float16), loss, lambda total: (total * 2**20).backward())
    assert gradients(model)[-1].tolist() == pytest.approx([2 * 1e-9 * 2**20] * 3, rel=1e-3)


@given(st.lists(st.integers(1, 600), max_size=60), st.none() | st.integers(2, 2000))
def test_chunks_are_neighbours_of_like_length_within_the_tokens(
    lengths: list[int], gradcache_tokens: int | None
) -> None:
    lengths = sorted(lengths, reverse=True)
    chunks = chunks_of(lengths, gradcache_tokens)
    assert [length for chunk in chunks for length in lengths[chunk]] == lengths
    assert len(chunks) == 1 or all(lengths[chunk] for chunk in chunks)
    for chunk in filter(lengths.__getitem__, chunks):
        own = lengths[chunk]
        assert own[0] <= LENGTH_RATIO * own[-1]
        assert gradcache_tokens is None or len(own) == 1 or len(own) * own[0] <= gradcache_tokens
        following = lengths[chunk.stop : chunk.stop + 1]
        if following:  # and no chunk is smaller than necessary
            full = gradcache_tokens is not None and (len(own) + 1) * own[0] > gradcache_tokens
            assert full or own[0] > LENGTH_RATIO * following[0]


def test_a_chunk_below_mixed_tokens_takes_texts_of_any_length() -> None:
    lengths = [100, 60, 60, 10, 10, 3, 1]
    assert chunks_of(lengths, mixed_tokens=300) == [slice(0, 3), slice(3, 7)]
    assert chunks_of(lengths, gradcache_tokens=200, mixed_tokens=300) == [slice(0, 2), slice(2, 5), slice(5, 7)]
    assert chunks_of(lengths, mixed_tokens=1000) == [slice(0, 7)]
