"""Collective operations, above all a gather of embeddings whose gradients equal those of a single process."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..transfer import to_device

Value = TypeVar("Value")


def world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def all_gather_with_grad(tensor: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of all ranks in rank order, with gradient: [n_rank, …] -> [Σ n_rank, …].

    Ranks may have different numbers of rows, including 0; the other dimensions, the dtype and the device type must
    agree. `counts` is the number of rows of each rank; if it is omitted, the ranks exchange it first, which makes the
    host wait. Without a process group, or with one rank, the tensor itself is returned.

    Contract: every rank computes the *same complete loss* from the result, and parameter gradients are then averaged
    over ranks, as DeepSpeed and DDP do. The backward pass therefore returns this rank's rows of the gradient, times the
    world size. The factor cancels the division in the average, so the update equals that of one process; the backward
    pass needs no communication and the loss needs no scaling. Parameters used after the gather (a learnt temperature)
    have the full gradient on every rank, so their average is correct as it is.
    """
    if world()[1] == 1:
        return tensor
    gathered: Tensor = _AllGather.apply(tensor, counts)  # type: ignore[no-untyped-call]
    return gathered


def broadcast_from_rank0(value: Value) -> Value:
    """Return rank 0's value on every rank. Without a process group, or with one rank, that is `value` itself.

    A tensor must have the same shape on all ranks; it is sent by its device, which the host does not wait for.
    """
    if world()[1] == 1:
        return value
    if isinstance(value, Tensor):
        received = value.contiguous().clone()
        dist.broadcast(received, src=0)
        return received  # type: ignore[return-value]
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce_sum(numbers: Sequence[int], device: Any) -> list[int]:
    """Sum each number over all ranks; every rank gets the sums."""
    if world()[1] == 1:
        return list(numbers)
    sums = to_device(torch.tensor(numbers, dtype=torch.int64), device)
    dist.all_reduce(sums)
    found: list[int] = sums.tolist()
    return found


def all_reduce_max(numbers: Sequence[int], device: Any) -> list[int]:
    """Take the maximum of each number over all ranks; every rank gets the maxima."""
    if world()[1] == 1:
        return list(numbers)
    largest = to_device(torch.tensor(numbers, dtype=torch.int64), device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    found: list[int] = largest.tolist()
    return found


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: Sequence[int] | None) -> Tensor:
        rank, world_size = world()
        sizes = list(counts) if counts is not None else _ask_for_counts(tensor, world_size)
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(parts, padded)
        ctx.world_size, ctx.start, ctx.stop = world_size, sum(sizes[:rank]), sum(sizes[: rank + 1])
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.start : ctx.stop] * ctx.world_size, None


def _ask_for_counts(tensor: Tensor, world_size: int) -> list[int]:
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(count) for _ in range(world_size)]
    dist.all_gather(counts, count)
    found: list[int] = torch.cat(counts).tolist()
    return found
