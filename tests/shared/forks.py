"""Processes forked from a server that has imported everything, so that each starts in hundredths of a second.

No thread pool has been started in the server, so a fork of it is as good as a new process. Each worker of pytest-xdist
has a server of its own, which takes ten seconds to start: tests that use it are of few groups.
"""

import importlib.util
import inspect
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
PLACES = [str(HERE), str(HERE.with_name("crash")), os.environ.get("PYTHONPATH", "")]  # preloaded.py, sitecustomize.py
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, PLACES)),
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "CONAN_DEBUG": "",
}


def start(
    function: Callable[..., Any],
    *arguments: Any,
    output: Path | None = None,
    errors: Path | None = None,
    environment: Mapping[str, str] | None = None,
    group: int = 0,
) -> ForkServerProcess:
    """Start a process that calls a function of any file; the function returns its exit code.

    Its output is appended to the files `output` and `errors`, or all to `output`. The process leads a new process
    group unless one is given.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    called = inspect.getfile(function), function.__name__
    streams = output, errors or output
    process = context.Process(target=_call, args=(called, arguments, streams, dict(environment or {}), group))
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)  # the first process starts the server, which keeps them
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def exit_codes(processes: list[ForkServerProcess]) -> list[int | None]:
    """Wait for all of them."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def call(
    function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call a function in a new process and wait for its end, as subprocess.run does with a program."""
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(function, *arguments, output=streams[0], errors=streams[1], environment=environment)
        (code,) = exit_codes([process])
        assert code is not None
        return subprocess.CompletedProcess(arguments, code, *(stream.read_text("utf-8") for stream in streams))


def _call(
    called: tuple[str, str],
    arguments: Any,
    streams: tuple[Path | None, Path | None],
    environment: dict[str, str],
    group: int,
) -> None:
    os.setpgid(0, group)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    for number, file in enumerate(streams, 1):
        if file is not None:
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    forkserver._forkserver.ensure_running = lambda: None  # this process is a fork of the server
    file, name = called
    sys.exit(getattr(load_file(file), name)(*arguments))


def load_file(file: str) -> ModuleType:
    """Import a file as a module, whatever name pytest gave it."""
    name = Path(file).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def conan(*arguments: object) -> None:
    """Run a command, whose workers and training processes are forks too."""
    from conan_embedding.cli import main
    from conan_embedding.pipeline.engine import local
    from conan_embedding.trainer.launch import hosts

    hosts.start = Rank
    local.multiprocessing = SimpleNamespace(
        get_context=lambda _: SimpleNamespace(Pipe=multiprocessing.Pipe, Process=Worker),
        parent_process=multiprocessing.parent_process,
    )
    sys.argv = ["conan", *map(str, arguments)]
    main()


def program(file: Path, *arguments: object) -> None:
    """Run a Python file."""
    sys.argv = [str(file), *map(str, arguments)]
    sys.path.insert(0, str(file.parent))
    runpy.run_path(str(file), run_name="__main__")


@contextmanager
def started(
    arguments: list[str], output: Path, environment: Mapping[str, str] | None = None
) -> Iterator[ForkServerProcess]:
    """Run a `conan` command that is killed at the end of the block; only its own output is in `output`."""
    output.unlink(missing_ok=True)
    process = start(conan, *arguments, output=output, environment=environment)
    try:
        yield process
    finally:
        kill_group(process)


def run(arguments: list[str], output: Path, environment: Mapping[str, str] | None = None) -> int | None:
    """Run a `conan` command to its end and return its exit code."""
    with started(arguments, output, environment) as process:
        return exit_codes([process])[0]


def kill_group(process: ForkServerProcess) -> None:
    """Send SIGKILL to a process and all of its group."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet, or has ended
        process.kill()
    process.join()


def train(file: str) -> None:
    """Run as a rank of the job described in a file."""
    from conan_embedding.trainer.train import run

    code = run(Path(file))
    sys.stderr.flush()
    os._exit(code)  # as a training process ends


def serve(pipe: Connection) -> None:
    """Be a worker of the driver at the other end of a pipe."""
    from conan_embedding.pipeline.engine import local

    local._serve(pipe)


class Worker:
    """Stands in for the process that engine.local spawns, with a fork."""

    def __init__(self, target: object, args: tuple[Connection], daemon: bool) -> None:
        self.arguments = args

    def start(self) -> None:
        output, errors = (Path(f"/proc/{os.getpid()}/fd/{number}") for number in (1, 2))
        self.process = start(
            serve, *self.arguments, output=output, errors=errors, environment=os.environ, group=os.getpgrp()
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)


class Rank:
    """Stands in for the process of a rank that trainer.launch.hosts.start or torchrun starts, with a fork."""

    stdin = None

    def __init__(self, _: str, command: list[str], environment: Mapping[str, str]) -> None:
        own = {**os.environ, **environment}
        ours = Path(f"/proc/{os.getpid()}/fd/2")
        self.process = start(train, command[-1], output=ours, environment=own, group=os.getpgrp())
        self.kill, self.pid = self.process.kill, self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.process.pid is not None and self.poll() is None:
            os.kill(self.process.pid, number)
