"""The backward pass of a step: one over all chunks, or GradCache, whose activation memory is that of one chunk.

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
"""Chosen here: the longest text of a chunk has at most this many times the tokens of the shortest. MIXED_TOKENS allows
exceptions."""

MIXED_TOKENS = 4_096
"""Chosen here: a chunk that has fewer tokens than this takes the next text whatever its length, within
`gradcache_tokens`. A CPU packs such a chunk without padding (see model/packing.py), if the model can be packed. On a
GPU, an additional pass would cost about as much in kernel launches as the padding costs in computation; that is an
estimate and was not measured."""

Inputs = tuple[Any, ...]


def chunks_of(lengths: Sequence[int], gradcache_tokens: int | None = None, mixed_tokens: int = 0) -> list[slice]:
    """Cut `lengths`, which must be sorted longest first, into consecutive slices, each of texts of similar length.

    With `gradcache_tokens`, a chunk has at most that many tokens, padding included, unless it is a single text. A chunk
    ends before a text that is shorter than its longest text by more than a factor of LENGTH_RATIO,
    unless the chunk still has fewer
    than `mixed_tokens` tokens, padding included. Without texts, there is one empty chunk, because a rank without texts
    still takes part in the forward pass.
    """
    starts = [0]
    for row, length in enumerate(lengths):
        longest, size = lengths[starts[-1]], row - starts[-1] + 1
        full = gradcache_tokens is not None and size > 1 and size * longest > gradcache_tokens
        if full or (longest > LENGTH_RATIO * length and (size - 1) * longest >= mixed_tokens):
            starts.append(row)
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def backward(
    engine: Any,
    chunks: Sequence[Inputs],
    loss: Callable[[Tensor], Losses],
    cached: bool,
    loss_parameters: Sequence[nn.Parameter] = (),
) -> Losses:
    """Compute the gradients of a batch in a DeepSpeed engine, ready for `engine.step()`; return the loss.

    `loss` takes the embeddings of this rank's texts, [texts, D], and must gather those of the other ranks itself.
    `loss_parameters` are the parameters that it uses directly (a learnt temperature). `cached` turns on GradCache.
    With GradCache, gradients are reduced once, after all chunks, so that ranks may have different numbers of chunks;
    under ZeRO 0, `engine.step()` reduces them.
    """
    if cached:
        with engine.coalesce_grad_reduction() if engine.zero_optimization() else nullcontext():
            return cached_backward(engine, chunks, loss, engine.backward, engine.parameters(), loss_parameters)
    losses = loss(torch.cat([engine(*chunk) for chunk in chunks]))
    engine.backward(losses.total)
    return losses


def cached_backward(
    encode: Callable[..., Tensor],
    chunks: Sequence[Inputs],
    loss: Callable[[Tensor], Losses],
    backward: Callable[[Tensor], Any],
    parameters: Iterable[nn.Parameter] = (),
    loss_parameters: Sequence[nn.Parameter] = (),
) -> Losses:
    """GradCache: compute `loss` over all chunks, then encode each chunk again and call `backward` once per chunk.

    Each chunk is encoded again under the random state of its first pass, so that the dropout masks are the same.
    Embeddings and their gradients are kept in float32 or wider, so that gradients are scaled by `backward` before they
    are rounded to fp16. Gradients of half-precision `parameters` are summed over chunks in float32; the
    parameters must have no gradients when this is called. `loss_parameters` are those that `loss` uses directly.
    """
    states, encoded = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            encoded.append(encode(*chunk))
    embeddings = torch.cat(encoded)
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)).requires_grad_()
    losses = loss(embeddings)
    gradient, *loss_parameter_gradients = torch.autograd.grad(
        losses.total, [embeddings, *loss_parameters], materialize_grads=True
    )
    # Parameters of the loss join the first chunk's backward pass, each through a term whose gradient is the one
    # computed above. The term's value is irrelevant.
    loss_parameter_terms = [
        (parameter * gradient_part).sum()
        for parameter, gradient_part in zip(loss_parameters, loss_parameter_gradients, strict=True)
    ]
    gradient_parts = torch.split(gradient, [len(part) for part in encoded])

    half = [parameter for parameter in parameters if parameter.requires_grad and parameter.dtype.itemsize < 4]
    sums: dict[nn.Parameter, Tensor] = {}
    # Half-precision gradients are summed over chunks in float32. After each chunk the half-precision gradient is
    # dropped, so that the next chunk does not add to it. The last chunk's tensor is kept and overwritten with the sum:
    # under ZeRO 3 the weight is empty by then, and a new .grad would have to have its shape.
    for number, (chunk, state, gradient_part) in enumerate(zip(chunks, states, gradient_parts, strict=True)):
        _restore_random_state(state)
        terms = [(encode(*chunk) * gradient_part).sum(), *(loss_parameter_terms if number == 0 else [])]
        backward(torch.stack(terms).sum())
        for parameter in half:
            if parameter.grad is not None:
                sums[parameter] = sums[parameter].add_(parameter.grad) if parameter in sums else parameter.grad.float()
                if number + 1 < len(chunks):
                    parameter.grad = None
    for parameter, total in sums.items():
        if parameter.grad is None:  # the last chunk did not use it, as with a parameter of the loss
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
