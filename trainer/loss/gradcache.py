"""The backward pass of a step: all texts at once, or with GradCache, in memory independent of the number of texts.

GradCache (Gao et al. 2021, arXiv 2101.06983) encodes all chunks without gradients, computes the gradient of the loss
with respect to the embeddings, then encodes each chunk again and backpropagates its part of that gradient into the
parameters.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .cbb import Losses

LENGTH_RATIO = 1.5
"""Chosen here: in one chunk, the longest text has at most this many times the tokens of the shortest."""

LEAST_TOKENS = 4_096
"""Chosen here: a chunk of up to this many tokens may mix any lengths. A CPU packs it without padding (see
model/packing.py); on a GPU, launching the kernels of another pass takes about as long as computing the padding (an
estimate, not measured)."""

Inputs = tuple[Any, ...]


def chunks_of(lengths: Sequence[int], gradcache_tokens: int | None = None, least_tokens: int = 0) -> list[slice]:
    """Split texts into chunks of similar length that are encoded together, as slices of `lengths`, longest first.

    With `gradcache_tokens`, a chunk has at most that many tokens, padding included, unless it is a single text. In
    chunks of up to `least_tokens` tokens, lengths may differ by more than LENGTH_RATIO. Without texts, there is one
    empty chunk, because a rank without texts still takes part in the forward pass.
    """
    starts = [0]
    for row, length in enumerate(lengths):
        longest, size = lengths[starts[-1]], row - starts[-1] + 1
        full = gradcache_tokens is not None and size > 1 and size * longest > gradcache_tokens
        if full or (longest > LENGTH_RATIO * length and (size - 1) * longest >= least_tokens):
            starts.append(row)
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def backward(
    engine: Any,
    chunks: Sequence[Inputs],
    loss: Callable[[Tensor], Losses],
    cached: bool,
    of_loss: Sequence[nn.Parameter] = (),
) -> Losses:
    """Compute the gradients of a batch in a DeepSpeed engine, ready for `engine.step()`; return the loss.

    `loss` takes the embeddings of this rank's texts, [texts, D], and gathers those of the other ranks itself; `of_loss`
    are the parameters that it uses directly (a learnt temperature). `cached` turns on GradCache. Gradients are then
    reduced once, after all chunks, so that ranks may have different numbers of chunks; under ZeRO 0 `engine.step()`
    reduces.
    """
    if cached:
        with engine.coalesce_grad_reduction() if engine.zero_optimization() else nullcontext():
            return cached_backward(engine, chunks, loss, engine.backward, engine.parameters(), of_loss)
    losses = loss(torch.cat([engine(*chunk) for chunk in chunks]))
    engine.backward(losses.total)
    return losses


def cached_backward(
    encode: Callable[..., Tensor],
    chunks: Sequence[Inputs],
    loss: Callable[[Tensor], Losses],
    backward: Callable[[Tensor], Any],
    parameters: Iterable[nn.Parameter] = (),
    of_loss: Sequence[nn.Parameter] = (),
) -> Losses:
    """GradCache: compute `loss` over all chunks, then call `backward` once per chunk, with the same dropout masks.

    Embeddings and their gradients are kept in float32 or wider, so that the loss scale, which `backward` applies, comes
    before any rounding to fp16. Gradients of half-precision `parameters` are summed over chunks in float32; the
    parameters must have no gradients when this is called.
    """
    states, encoded = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            encoded.append(encode(*chunk))
    own = torch.cat(encoded)
    own = own.to(torch.promote_types(own.dtype, torch.float32)).requires_grad_()
    losses = loss(own)
    gradient, *direct = torch.autograd.grad(losses.total, [own, *of_loss], materialize_grads=True)
    # Parameters of the loss join the first chunk's backward pass through a term whose gradient is the one found here.
    # The term's value is irrelevant.
    beside = [(each * part).sum() for each, part in zip(of_loss, direct, strict=True)]
    parts = torch.split(gradient, [len(each) for each in encoded])

    half = [each for each in parameters if each.requires_grad and each.dtype.itemsize < 4]
    sums: dict[nn.Parameter, Tensor] = {}
    for number, (chunk, state, part) in enumerate(zip(chunks, states, parts, strict=True)):
        _restore_random_state(state)
        backward(torch.stack([(encode(*chunk) * part).sum(), *(beside if number == 0 else [])]).sum())
        for parameter in half:
            if parameter.grad is not None:
                sums[parameter] = sums[parameter].add_(parameter.grad) if parameter in sums else parameter.grad.float()
                if number + 1 < len(chunks):  # keep the last: ZeRO 3 accepts no new .grad for a weight it has released
                    parameter.grad = None
    for parameter, total in sums.items():
        if parameter.grad is None:  # a parameter of the loss, which only the first chunk used
            parameter.grad = total.to(parameter.dtype)
        else:
            parameter.grad.copy_(total)
    return losses


def _random_state() -> tuple[Tensor, Tensor | None]:
    """Return the random state of the CPU and, if there is one, of the current accelerator."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.get_rng_state(), None if device is None else torch.get_device_module(device).get_rng_state()


def _restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(torch.accelerator.current_accelerator()).set_rng_state(state[1])
