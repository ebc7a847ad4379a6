"""Tensors to the device, without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor from the host to `device`, after all that the device has still to do, and return at once.

    A plain `tensor.to(device)` waits until a GPU has done that, and then for the copy.
    """
    place, from_host = torch.device(device), tensor.device.type == "cpu"
    if from_host and place.type not in ("cpu", "meta"):
        tensor = tensor.pin_memory()  # CUDA copies from other memory while the host waits
    return tensor.to(place, non_blocking=from_host)
