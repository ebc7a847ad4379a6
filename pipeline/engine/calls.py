"""The calls that every engine runs (a stage's function with the arguments of one shard), and their outcomes."""

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..plugins import load_plugins, loaded_plugins

ATTEMPTS = 3
"""How often a call is tried if its worker dies (out of memory, a crash in native code)."""


THREAD_VARIABLES = ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Environment variables that set how many threads libraries use; they are read when a library is loaded."""


Call = tuple[str, tuple[Any, ...]]
"""A name (the path of the shard) and the arguments of the function."""
Outcome = tuple[str, str | None]
"""The name of a call and, if it failed, the error."""


Progress = Callable[[str, int, int, int], None]
"""Called with the name of the stage, the shards done, the total of shards, and the rows done."""


def quiet(stage: str, done: int, total: int, rows: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Engine:
    """Where calls run, how many at a time, and how progress is reported.

    - `workers`: calls at a time; 0 means one per core
    - `address`: of a Ray cluster: `auto`, `host:port` or `ray://…`; None means this machine
    - `one_a_device`: each call runs a model, which takes a whole device: one call at a time per GPU, in a process of
      its own, or per machine if there are no GPUs
    """

    workers: int = 0
    progress: Progress = quiet
    address: str | None = None
    one_a_device: bool = False

    @property
    def processes(self) -> int:
        """How many processes run calls on this machine; if it is one, and there is no GPU, that is this process."""
        return max(1, len(devices())) if self.one_a_device else self.workers or cores()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[str]:
    """List the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch  # here, as filter and dedup do not need it

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[:count] if named != [""] else [str(number) for number in range(count)]


def attempt(function: Callable[..., None], *arguments: Any) -> str | None:
    """Run a call; return its error, or None if it succeeded."""
    try:
        function(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust, for example in Polars, is not an Exception
        traced = traceback.format_exc() if os.environ.get("CONAN_DEBUG") else ""
        return f"{type(error).__name__}: {error}\n{traced}".rstrip()
    return None


def pack_call(function: Callable[..., None], arguments: tuple[Any, ...]) -> bytes:
    """Pickle a call for another process. The plugins come first, as the arguments may be objects of theirs."""
    return pickle.dumps((loaded_plugins(), pickle.dumps((function, arguments))))


def attempt_packed(call: bytes, *more: Any) -> str | None:
    """In a worker, run a packed call; return its error, also if the function or a plugin can't be imported.

    `more` arguments follow those of the call.
    """
    return attempt(_run_packed, call, *more)


def _run_packed(call: bytes, *more: Any) -> None:
    plugins, packed = pickle.loads(call)
    load_plugins(plugins)
    function, arguments = pickle.loads(packed)
    function(*arguments, *more)
