"""Copy tensors to the GPU without blocking the CPU."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return `tensor` on `device`, copied if necessary. From the CPU to a GPU, this does not wait for the GPU.

    Other copies are a plain `tensor.to(device)`; from a GPU to the CPU, that waits for the work queued on the GPU.
    """
    target, from_cpu = torch.device(device), tensor.device.type == "cpu"
    if from_cpu and target.type not in ("cpu", "meta"):  # a meta tensor has no data to copy
        # A copy from pageable memory would make the CPU wait. The pinned tensor may go out of scope during the copy:
        # PyTorch's pinned-memory allocator does not reuse a block before the stream is done with it.
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=from_cpu)
