"""The machines of a training run: read the hostfile; start, signal and kill training processes on them.

Processes on this machine are children of this one. On another machine, they are children of a shell under ssh, which
kills them when its input ends, as it does when this process ends. All machines must have the corpus, the models and the
Python environment under the same paths.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ...schemas.errors import ConanError

PARENT = "CONAN_PARENT"
"""The environment variable with the process id of the parent; a training process ends when its parent does."""

STOPPED = 128 + signal.SIGTERM
"""The exit code of a training process that was asked to stop, and did so after saving its step."""

LOST = 256
"""Stands for the exit code, which no process has, of one whose node was lost."""

PASSED_ON = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHON", "CONAN_", "OMP_", "MKL_", "TORCH", "TRITON_", "DS_", "HF_HOME", "HF_HUB_"),
    *("CUDA_", "NCCL_", "ASCEND_", "HCCL_", "GLOO_", "UCX_"),
)
"""Chosen here: prefixes of the environment variables that other machines get. Not all variables, as they are passed on
a command line, which other users of a machine can read."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")
_LINE = re.compile(r"([^\s-]\S*)\s+slots\s*=\s*([1-9]\d*)")
_FREE_PORT = "import socket; probe = socket.create_server(('', 0)); print(probe.getsockname()[1])"


class HostError(ConanError):
    """A hostfile can't be read or a machine can't be reached; the message names the line or host and what to do."""


@dataclass(frozen=True)
class Host:
    """A machine, and how many training processes to run on it."""

    name: str
    slots: int


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to train on, and how many training processes to run there; None is one per GPU."""

    address: str
    processes: int | None = None


def training_place(address: str | None, processes: int | None) -> int | Cluster:
    """Return where to train: on the cluster at an address, or on this machine, in one process by default."""
    return Cluster(address, processes) if address else processes or 1


def count_threads(cores: int, processes: int) -> str:
    """Return OMP_NUM_THREADS for each of a machine's processes: the user's, or an equal share of the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes))


class Process(Protocol):
    """A started training process: a subprocess.Popen, or what is used like one."""

    @property
    def stdin(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


def read_hostfile(file: Path) -> list[Host]:
    """Read a hostfile in DeepSpeed's format: one line `HOST slots=N` per host, comments after #.

    Raises:
        HostError: a line is malformed, a host is listed twice, or there are no hosts.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        if not (found := _LINE.fullmatch(text)):
            raise HostError(f"{file}:{number}: expected `HOST slots=N`, with N at least 1; found {text!r}")
        if found[1] in hosts:
            raise HostError(
                f"{file}:{number}: the host {found[1]} is listed twice; give it one line with all its slots"
            )
        hosts[found[1]] = Host(found[1], int(found[2]))
    if not hosts:
        raise HostError(f"{file}: no hosts; expected one line `HOST slots=N` per host")
    return list(hosts.values())


def is_here(name: str) -> bool:
    """Whether a host is this machine: whether one of its addresses (127.0.0.2 included) can be bound here."""
    try:
        addresses = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return name == socket.gethostname()  # if not, an alias that only ssh knows
    for family, kind, _, _, address in addresses:
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(address)
            return True
    return False


def rendezvous(hosts: Sequence[Host]) -> tuple[str, int]:
    """Return where the training processes meet: the first host, and a free port on it.

    Raises:
        HostError: Python can't be run on the first host, or its name means another machine to the other hosts.
    """
    name = hosts[0].name
    if name in LOOPBACK and not all(is_here(host.name) for host in hosts):
        raise HostError(
            f"the first host is {name}, which every machine calls itself; use a name that the other hosts know"
        )
    if is_here(name):
        with socket.create_server(("", 0)) as probe:
            return name, int(probe.getsockname()[1])
    command = [*_SSH, name, shlex.join([sys.executable, "-c", _FREE_PORT])]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise HostError(
            f"{name}: `ssh -o BatchMode=yes {name} {sys.executable} …` failed with exit code {ran.returncode}; see its "
            "output above. ssh must work without a password, and the Python environment must have the same path there"
        )
    return name, int(ran.stdout)


def start(name: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a training process on a host, in the current working directory.

    Its output goes to standard error, since DeepSpeed logs to standard output, where ours is for results. It can't read
    standard input, so a tracker that would ask for a key there fails instead of waiting for an answer. `environment`
    is added to this process's own environment or, on another machine, to the part of it in PASSED_ON. The started
    process ends when this one does, even if this one is killed.
    """
    if is_here(name):
        own = {**os.environ, **environment, PARENT: str(os.getpid())}
        return subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=2)
    passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)} | dict(environment)
    variables = shlex.join(f"{key}={value}" for key, value in passed.items() if key != PARENT)
    # The shell has two children: the process, and a loop that passes signals on to it, whose names it reads from the
    # input, and kills it when the input ends.
    script = (
        f"cd {shlex.quote(str(Path.cwd()))} || exit; exec 3<&0; "
        f"env {variables} {PARENT}=$$ {shlex.join(command)} 3<&- & process=$!; "
        '{ while read -r name; do kill -s "$name" $process; done; kill -s KILL $process; } <&3 & '
        "wait $process; code=$?; kill $! 2>&-; exit $code"
    )
    return subprocess.Popen([*_SSH, name, shlex.join(["sh", "-c", script])], stdin=subprocess.PIPE, stdout=2)


def send(process: Process, number: int) -> None:
    """Send a signal to a started process; does nothing if it has ended."""
    if process.stdin is None:
        process.send_signal(number)
        return
    with suppress(OSError, ValueError):
        process.stdin.write(signal.Signals(number).name.removeprefix("SIG").encode() + b"\n")
        process.stdin.flush()


def end(process: Process) -> None:
    """Kill a started process."""
    if process.stdin is None:
        process.kill()
    else:
        with suppress(OSError):
            process.stdin.close()
