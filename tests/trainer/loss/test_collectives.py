"""all_gather_with_grad in real process groups."""

from pathlib import Path

import forks
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conan_embedding.trainer.loss.collectives import all_gather_with_grad, all_reduce_sum, broadcast_from_rank0

COUNTS = [[2, 2], [3, 1], [0, 2], [4, 0], [0, 0]]  # rows on each of two ranks


def rows(case: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * case + rank)
    return torch.randn(COUNTS[case][rank], 3, generator=generator, dtype=torch.float64)


def weights(case: int) -> torch.Tensor:
    return torch.arange(1, 1 + 3 * sum(COUNTS[case]), dtype=torch.float64).reshape(-1, 3)


def be_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outcome = []
    for case in range(len(COUNTS)):
        own = rows(case, rank).requires_grad_()
        gathered = all_gather_with_grad(own)
        (gathered * weights(case)).sum().backward()
        outcome.append((gathered.detach(), own.grad))
    outcome.append((all_gather_with_grad(torch.full((rank + 1, 2), rank, dtype=torch.bfloat16)), None))
    outcome.append((broadcast_from_rank0(np.arange(3) + 10 * rank).tolist(), None))
    outcome.append((all_reduce_sum([rank == 1, 3 + 2**40 * rank], "cpu"), None))
    torch.save(outcome, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.xdist_group("training")
def test_gathers_uneven_rows_in_rank_order_with_gradients(tmp_path: Path) -> None:
    ranks = [forks.start(be_rank, rank, tmp_path) for rank in range(2)]
    assert forks.exit_codes(ranks) == [0, 0]
    for rank in range(2):
        *outcome, (half, _), (decided, _), (sums, _) = torch.load(tmp_path / f"{rank}.pt")
        for case, (gathered, gradient) in enumerate(outcome):
            assert torch.equal(gathered, torch.cat([rows(case, 0), rows(case, 1)]))
            first = 0 if rank == 0 else COUNTS[case][0]
            own = weights(case)[first : first + COUNTS[case][rank]]
            assert torch.equal(gradient, 2 * own)  # the average over two ranks cancels the factor
        assert decided == [0, 1, 2]
        assert sums == [1, 6 + 2**40]
        assert half.dtype == torch.bfloat16
        assert half.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_without_a_process_group_is_the_identity() -> None:
    tensor = torch.randn(2, 3, requires_grad=True)
    assert all_gather_with_grad(tensor) is tensor
    assert broadcast_from_rank0(tensor) is tensor
    assert all_reduce_sum([True, 5], "cpu") == [1, 5]


def test_in_a_world_of_one_is_the_identity(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        tensor = torch.randn(2, 3, requires_grad=True)
        assert all_gather_with_grad(tensor) is tensor
    finally:
        dist.destroy_process_group()
