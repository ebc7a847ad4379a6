"""Which machines train: the hostfile, and how a training process is started, told and ended on each of them.

Processes of this machine are children; those of others are children of ssh, under a shell there that hears of our end
by the end of its input. All machines must see the corpus, the models and the Python environment under the same paths.
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

from ...schemas.errors import ConanError

PARENT = "CONAN_PARENT"
"""The environment variable that tells a training process whose end is its own."""

STOPPED = 128 + signal.SIGTERM
"""The exit code of a training process that was asked to stop, has saved its step and did."""

PASSED_ON = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHON", "CONAN_", "OMP_", "MKL_", "TORCH", "TRITON_", "DS_", "HF_HOME", "HF_HUB_"),
    *("CUDA_", "NCCL_", "ASCEND_", "HCCL_", "GLOO_", "UCX_"),
)
"""Chosen here: how variables begin that other machines get, too. Not all, as anybody there may read a command line."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")
_LINE = re.compile(r"([^\s-]\S*)\s+slots\s*=\s*([1-9]\d*)")
_FREE_PORT = "import socket; probe = socket.create_server(('', 0)); print(probe.getsockname()[1])"


class HostError(ConanError):
    """A hostfile that can't be read, or a machine that can't be reached: says which line or host and what to do."""


@dataclass(frozen=True)
class Host:
    """A machine and how many training processes it gets."""

    name: str
    slots: int


def read_hostfile(file: Path) -> list[Host]:
    """The hosts of a file in DeepSpeed's format: a line `HOST slots=N` for each, comments after #.

    Raises:
        HostError: a line that is none, a host that stands twice, or no host at all.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        if not (found := _LINE.fullmatch(text)):
            raise HostError(f"{file}:{number}: expected `HOST slots=N`, with N at least 1; found {text!r}")
        if found[1] in hosts:
            raise HostError(f"{file}:{number}: the host {found[1]} stands twice; give it one line with all its slots")
        hosts[found[1]] = Host(found[1], int(found[2]))
    if not hosts:
        raise HostError(f"{file}: no hosts; expected a line `HOST slots=N` for each")
    return list(hosts.values())


def is_here(name: str) -> bool:
    """Whether a host is this machine: whether one of its addresses is an interface's here, 127.0.0.2 for one."""
    try:
        addresses = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return name == socket.gethostname()  # else one that ssh alone knows
    for family, kind, _, _, address in addresses:
        with suppress(OSError), socket.socket(family, kind) as probe:
            probe.bind(address)
            return True
    return False


def rendezvous(hosts: Sequence[Host]) -> tuple[str, int]:
    """Where the processes find each other: the first host, and a port of it that nothing listens on.

    Raises:
        HostError: Python can't be run there, or other hosts can't know it under that name.
    """
    name = hosts[0].name
    if name in LOOPBACK and not all(is_here(host.name) for host in hosts):
        raise HostError(f"the first host is {name}, which is another machine to each; give it the name others know")
    if is_here(name):
        with socket.create_server(("", 0)) as probe:
            return name, int(probe.getsockname()[1])
    command = [*_SSH, name, shlex.join([sys.executable, "-c", _FREE_PORT])]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise HostError(
            f"{name}: `ssh -o BatchMode=yes {name} {sys.executable} …` fails with exit code {ran.returncode}, and what "
            "it printed stands above; ssh must ask for no password, and the environment have the same path there"
        )
    return name, int(ran.stdout)


def start(name: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a training process on a host, in this working directory.

    What it prints goes to standard error: our own output is for answers, and DeepSpeed logs to its. `environment` is
    added to this process's own, or on another machine to what is passed on. The process ends when this one does,
    however that is.
    """
    if is_here(name):
        own = {**os.environ, **environment, PARENT: str(os.getpid())}
        return subprocess.Popen(command, env=own, stdout=2)
    passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)} | dict(environment)
    variables = shlex.join(f"{key}={value}" for key, value in passed.items() if key != PARENT)
    # Of two children, one is the process and one reads signals for it; at the end of its input it kills the process.
    script = (
        f"cd {shlex.quote(str(Path.cwd()))} || exit; exec 3<&0; "
        f"env {variables} {PARENT}=$$ {shlex.join(command)} 3<&- & process=$!; "
        '{ while read -r name; do kill -s "$name" $process; done; kill -s KILL $process; } <&3 & '
        "wait $process; code=$?; kill $! 2>&-; exit $code"
    )
    return subprocess.Popen([*_SSH, name, shlex.join(["sh", "-c", script])], stdin=subprocess.PIPE, stdout=2)


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a started process a signal; one that has ended hears nothing."""
    if process.stdin is None:
        process.send_signal(number)
        return
    with suppress(OSError, ValueError):
        process.stdin.write(signal.Signals(number).name.removeprefix("SIG").encode() + b"\n")
        process.stdin.flush()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a started process."""
    if process.stdin is None:
        process.kill()
    else:
        with suppress(OSError):
            process.stdin.close()
