"""Commands of Conan in processes of their own, forked from a server that has imported everything.

No thread pool has been started in the server, so a fork of it is as good as a new process.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "CONAN_DEBUG": "",
}


@contextmanager
def started(
    arguments: list[str], output: Path, environment: dict[str, str] | None = None
) -> Iterator[ForkServerProcess]:
    """A command in a process group of its own, which does not outlive the block."""
    process = _forked(_command, arguments, str(output), environment or {})
    try:
        yield process
    finally:
        kill_group(process)


def run(arguments: list[str], output: Path, environment: dict[str, str] | None = None) -> int:
    """A command from start to end; its exit code."""
    with started(arguments, output, environment) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def write_inputs(folder: Path) -> None:
    """The sample in `folder/sources`, and in `folder/model` an encoder of one layer that has learnt nothing."""
    process = _forked(_write_inputs, folder)
    process.join()
    assert process.exitcode == 0


def kill_group(process: ForkServerProcess) -> None:
    """SIGKILL to a command and its workers."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet, or has ended
        process.kill()
    process.join()


def _forked(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    process = context.Process(target=target, args=arguments)
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)  # the first process starts the server, which keeps them
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def _command(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["conan", *arguments]
    from conan_embedding.cli import main

    main()


def _write_inputs(folder: Path) -> None:
    import pyarrow as pa
    from conan_embedding.pipeline.demo.generate import write_sample
    from conan_embedding.trainer.model.bootstrap import tiny_bert

    write_sample(folder / "sources", rows=300)
    texts = pa.chunked_array([[chr(point) for point in range(0x4E00, 0x5200)]])
    tiny_bert(folder / "model", texts=texts, layers=1, hidden=32, heads=2, intermediate=64, max_length=64)
