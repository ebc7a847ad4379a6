"""Shared by benchmarks: model shapes, operations of matrix products, the matrix rate, memory, processor time."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

TINY = {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 256}
SMALL = {"layers": 4, "hidden": 312, "heads": 12, "intermediate": 1200}
LARGE = {"layers": 24, "hidden": 1024, "heads": 16, "intermediate": 4096}
"""BERT-large's shape."""
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
PRECISION: Literal["bf16", "fp32"] = (
    "bf16" if DEVICE.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
)
"""The precision of real runs: bf16 halves the time, but a CPU without instructions takes 38 times as long in it."""


def forward_operations(shape: dict[str, int], lengths: Iterable[int]) -> int:
    """Count the operations of an encoder's matrix products for texts of these lengths, without padding.

    In a layer of width H with an intermediate width of 4 H, each token of a text of length L takes 24 H² + 4 L H.
    """
    width, inner = shape["hidden"], shape["intermediate"]
    return shape["layers"] * sum(8 * n * width**2 + 4 * n * width * inner + 4 * n**2 * width for n in lengths)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 8_192, times: int = 20) -> float:
    """Measure the operations per second of a large matrix product."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    wait_for_device()
    started = time.perf_counter()
    for _ in range(times):
        left @ right
    wait_for_device()
    return times * 2 * size**3 / (time.perf_counter() - started)


def wait_for_device() -> None:
    """Wait until the GPU, if there is one, has finished all queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def memory(when: Literal["now", "peak"]) -> float:
    """Return current or peak memory in MB: of PyTorch's allocator on a GPU, else of the process."""
    if DEVICE.type != "cpu":
        size = torch.accelerator.memory_allocated if when == "now" else torch.accelerator.max_memory_allocated
        return size() / 1e6
    name = "VmRSS" if when == "now" else "VmHWM"
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024 / 1e6


@contextmanager
def processor_time(took: dict[str, Any], name: str) -> Iterator[None]:
    """Put the seconds of one processor that the block takes into `took`, those of child processes included."""
    before = os.times()
    yield
    took[name] = round(sum(os.times()[:4]) - sum(before[:4]))
