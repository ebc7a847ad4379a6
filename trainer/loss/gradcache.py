"""The gradients of one step: all texts at once, or chunk by chunk in memory that does not grow with their number.

GradCache (Gao et al. 2021, arXiv 2101.06983) encodes everything without gradients, takes the gradient of the loss with
respect to the embeddings, and encodes each chunk once more to carry its part of that gradient into the parameters.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .cbb import Losses

LENGTH_RATIO = 1.5
"""Chosen here: texts are run together while the longest has at most this many times the tokens of the shortest."""

LEAST_TOKENS = 4_096
"""Chosen here: up to here texts of any length are run together. A CPU packs them (see model/packing.py); on a GPU, not
measured, to start the kernels of a pass takes about as long as such products do."""

Inputs = tuple[Any, ...]


def chunks_of(lengths: Sequence[int], gradcache_tokens: int | None = None, least_tokens: int = 0) -> list[slice]:
    """Which texts are encoded together: neighbours of like length, as slices of `lengths`, which fall.

    With `gradcache_tokens`, a chunk has at most so many tokens, padding included, or is a single text. Below
    `least_tokens`, the lengths may be unlike. No texts make one empty chunk, as a rank without texts takes part too.
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
    """Leave the gradients of a batch in a DeepSpeed engine, ready for `engine.step()`.

    `loss` takes the embeddings of this rank's texts, [texts, D], and gathers the others' itself; `of_loss` are the
    parameters that it uses (a learnt temperature). With `cached`, one reduction follows all chunks, so that ranks may
    have different numbers of them; under ZeRO 0 the step itself reduces.
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
    """GradCache: `loss` of all chunks, its gradient by as many calls of `backward`, dropout the same both times.

    Embeddings and their gradients are kept in float32 or wider: so a loss scale, which `backward` applies, is there
    before anything is rounded to fp16. Gradients of half-precision `parameters` are summed over chunks in float32;
    they must have none before.
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
    # What the loss itself uses joins the first chunk: its value there is nothing, its gradient the one found.
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
                if number + 1 < len(chunks):  # the last one's stays: ZeRO 3 takes none for weights it has put away
                    parameter.grad = None
    for parameter, total in sums.items():
        if parameter.grad is None:  # one of the loss's own, which the first chunk has
            parameter.grad = total.to(parameter.dtype)
        else:
            parameter.grad.copy_(total)
    return losses


def _random_state() -> tuple[Tensor, Tensor | None]:
    """Of the CPU and of the current accelerator, where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.get_rng_state(), None if device is None else torch.get_device_module(device).get_rng_state()


def _restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(torch.accelerator.current_accelerator()).set_rng_state(state[1])
