"""Copy tensors to the GPU without blocking the CPU."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a copy of `tensor` on `device`. From the CPU to a GPU the copy is only queued, and this returns at once.

    A plain `tensor.to(device)` waits until a GPU has finished all queued work and the copy; that is what a tensor that
    is not on the CPU gets. A tensor that is on `device` already is returned as it is.
    """
    target, from_cpu = torch.device(device), tensor.device.type == "cpu"
    if from_cpu and target.type not in ("cpu", "meta"):  # a meta tensor has no data to copy
        # A copy from pageable memory would make the CPU wait. The pinned tensor may go out of scope during the copy:
        # PyTorch's allocator of pinned memory does not reuse a block before the stream is done with it.
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=from_cpu)
