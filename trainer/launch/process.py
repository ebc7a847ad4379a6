"""A training process: join the process group, handle signals, end with the parent, and report errors."""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from .hosts import PARENT, STOPPED

asked_to_stop = threading.Event()
"""Set on SIGTERM."""


def join_process_group() -> tuple[int, int]:
    """Join the process group; return rank and world size."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch.distributed"
    )  # meant for DeepSpeed, not for users
    # DeepSpeed's shared-memory op takes a compiler and 40 s to build; gloo works without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return dist.get_rank(), dist.get_world_size()


def run_process(train: Callable[[], bool]) -> int:
    """Run `train`; print an error as one line, with its traceback if CONAN_DEBUG is set.

    Returns the exit code: 0, or 1 for an error, or STOPPED if `train` returned False.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if parent := os.environ.get(PARENT):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent ends its processes
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    try:
        return 0 if train() else STOPPED
    except Exception as error:
        if os.environ.get("CONAN_DEBUG"):
            traceback.print_exc()
        print(f"error in training process {os.environ.get('RANK')}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _end_with(parent: int) -> None:
    """End this process as soon as its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
