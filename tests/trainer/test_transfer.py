import pytest
import torch
from conan_embedding.trainer.transfer import to_device


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu"), torch.device("meta")])
def test_a_tensor_is_moved_with_its_dtype(place: torch.device | str) -> None:
    tensor = torch.arange(3, dtype=torch.int32)
    moved = to_device(tensor, place)
    assert (moved.device, moved.dtype, moved.shape) == (torch.device(place), torch.int32, (3,))
    if moved.device.type == "cpu":
        assert moved is tensor


@pytest.mark.gpu
def test_a_gpu_gets_the_values_and_is_not_waited_for() -> None:
    tensor = torch.arange(1_000)
    to_device(tensor, "cuda")  # the first call pins memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = to_device(tensor, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert moved.tolist() == tensor.tolist()
