"""Embeddings of all ranks on every rank, with gradients that come out as if one process had done it all."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..transfer import to_device

Value = TypeVar("Value")


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def all_gather_with_grad(tensor: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of all ranks in rank order, with gradient: [n_rank, …] -> [Σ n_rank, …].

    Ranks may hold different numbers of rows, also none; the other dimensions, the dtype and the device's kind must
    agree. `counts` says how many rows each rank has; without it the ranks ask each other, and wait for the answer.
    Without a process group, or with a world of one, the tensor itself comes back.

    Contract: every rank computes the *same whole loss* from the result, and parameter gradients are averaged
    over ranks afterwards, as DeepSpeed and DDP do. The backward pass therefore keeps this rank's own rows of the
    gradient times the world size: the factor cancels the division of the average, so the update is that of one
    process, nothing travels in the backward pass, and the loss itself needs no factor. Parameters used after the
    gather (a learnt temperature) hold the whole gradient on every rank, and their average is right as it is.
    """
    if world()[1] == 1:
        return tensor
    gathered: Tensor = _AllGather.apply(tensor, counts)  # type: ignore[no-untyped-call]
    return gathered


def broadcast_from_rank0(value: Value) -> Value:
    """The value that rank 0 has, on every rank. Without a process group, or with a world of one, `value` itself."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce_sum(numbers: Sequence[int], device: Any) -> list[int]:
    """The sum of each number over all ranks, on every rank."""
    if world()[1] == 1:
        return list(numbers)
    sums = to_device(torch.tensor(numbers, dtype=torch.int64), device)
    dist.all_reduce(sums)
    found: list[int] = sums.tolist()
    return found


def all_reduce_max(numbers: Sequence[int], device: Any) -> list[int]:
    """The largest of each number over all ranks, on every rank."""
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
