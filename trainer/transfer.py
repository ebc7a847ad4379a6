"""Copying tensors to the device without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Queue a copy of a tensor from the host to `device` and return at once.

    A plain `tensor.to(device)` waits until a GPU has finished all queued work and the copy.
    """
    place, from_host = torch.device(device), tensor.device.type == "cpu"
    if from_host and place.type not in ("cpu", "meta"):
        tensor = tensor.pin_memory()  # a copy from pageable memory makes the host wait
    return tensor.to(place, non_blocking=from_host)
