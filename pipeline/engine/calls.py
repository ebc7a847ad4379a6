"""Calls that any engine runs: the function of a stage with the arguments of one shard, and what came of it."""

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..plugins import load_plugins, loaded_plugins

ATTEMPTS = 3
"""How often a shard is tried whose worker dies (out of memory, a crash in native code)."""


THREAD_VARIABLES = ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""What libraries read when they are loaded, to know how many threads to use."""


Call = tuple[str, tuple[Any, ...]]
Outcome = tuple[str, str | None]


Progress = Callable[[str, int, int, int], None]
"""Called with the stage's name, shards done, shards in all, rows done."""


def quiet(stage: str, done: int, total: int, rows: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Engine:
    """Where tasks are run, how many at a time, and who is told.

    `workers`: tasks at a time; 0 is one for each core. `address`: a Ray cluster's, as `auto`, `host:port` or `ray://…`;
    None is this machine. `one_a_device`: a task runs a model, which takes a whole device, so that there is one at a
    time on each GPU, in a process of its own; on each machine where there is none.
    """

    workers: int = 0
    progress: Progress = quiet
    address: str | None = None
    one_a_device: bool = False

    @property
    def processes(self) -> int:
        """Processes in use on this machine; with one, and none of a GPU, this process does the work."""
        return max(1, len(devices())) if self.one_a_device else self.workers or cores()


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[str]:
    """The GPUs this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    import torch  # which filter and dedup do without

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if named != [""] else [str(number) for number in range(count)]


def attempt(function: Callable[..., None], *arguments: Any) -> str | None:
    try:
        function(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust, of Polars say, is no Exception
        traced = traceback.format_exc() if os.environ.get("CONAN_DEBUG") else ""
        return f"{type(error).__name__}: {error}\n{traced}".rstrip()
    return None


def pack_call(function: Callable[..., None], arguments: tuple[Any, ...]) -> bytes:
    """A call for another process, with the plugins that it needs: they come first, as arguments may be of theirs."""
    return pickle.dumps((loaded_plugins(), pickle.dumps((function, arguments))))


def attempt_packed(call: bytes) -> str | None:
    """In a worker: run a packed call; what went wrong, if only that the function or a plugin is not there."""
    return attempt(_run_packed, call)


def _run_packed(call: bytes) -> None:
    plugins, packed = pickle.loads(call)
    load_plugins(plugins)
    function, arguments = pickle.loads(packed)
    function(*arguments)
