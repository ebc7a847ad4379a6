"""A training process: joins the others, listens for signals, ends with its parent, and says what went wrong."""

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
"""Set by SIGTERM."""


def join_process_group() -> tuple[int, int]:
    """Join the process group; returns rank and world size."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's to heed
    # Compiling DeepSpeed's shared-memory op takes 40 s and a compiler; gloo does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return dist.get_rank(), dist.get_world_size()


def run_process(train: Callable[[], bool]) -> int:
    """Run `train`; an error is one line, and its traceback too where CONAN_DEBUG is set.

    Returns the exit code: 0, 1 for an error, STOPPED where `train` returned False.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if parent := os.environ.get(PARENT):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends its processes
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
    """End this process as soon as the one that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
