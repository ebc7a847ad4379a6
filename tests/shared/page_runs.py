"""Run the blocks of a page as a reader would: in one shell and one Python, in a folder of the page's own.

`conan` and `python FILE` are a script that asks this process for a fork, which has all libraries loaded: new processes
would take seconds to start.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import forks
import yaml
from conan_embedding.schemas.errors import ConanError
from conan_embedding.schemas.recipe import load
from page_blocks import Block, compare, read_commands

SCRIPT = f"""#!{sys.executable} -IS
import json, os, socket, sys
name = os.path.basename(sys.argv[0])
if name == "python" and not (sys.argv[1:] and sys.argv[1].endswith(".py")):
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["PAGE_FORKS"])
    server.sendall(json.dumps([name, os.getpid(), os.getcwd(), sys.argv[1:], dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.makefile().read()))
"""


class BlockError(Exception):
    """A block that can't be run, with what it printed."""


def run_page(blocks: list[Block], folder: Path) -> list[str]:
    """Run the blocks of a page, in order, up to one that fails.

    Returns what is wrong: output that is not what the page shows, and the failure.
    """
    wrong: list[str] = []
    with ExitStack() as stack:
        shell = stack.enter_context(open_shell(folder))
        python = None
        for block in blocks:
            try:
                if block.language == "sh":
                    shell.run(block.text)
                elif block.language == "console":
                    _run_console(shell, block, wrong)
                elif block.language == "yaml":
                    _load_recipe(block.text, folder)
                elif block.language == "python":
                    python = python or stack.enter_context(_open_python(folder))
                    python.run(block)
            except (BlockError, ConanError, ValueError) as error:
                wrong.append(f"{block.place}: {error}")
                break
    return wrong


def _run_console(shell: "Shell", block: Block, wrong: list[str]) -> None:
    """Run the commands of a console block. One may fail if the block shows its error."""
    for command in read_commands(block.text):
        output, errors, code = shell.call(command.text)
        both = output + errors
        if code and not ("error" in command.output.lower() and not compare(command.output, both, block.numbers_vary)):
            raise BlockError(f"exit code {code} of $ {command.text}\n{both}")
        # A page may leave out what goes to standard error.
        differences = [compare(command.output, came, block.numbers_vary) for came in (output, both)]
        if command.output and all(differences):
            wrong.append(f"{block.place}: $ {command.text}\n{differences[bool(errors and not output)]}")


def _load_recipe(text: str, folder: Path) -> None:
    """Check that a block is a recipe, a part of one, or a list of sources, whatever its variables are."""
    if isinstance(yaml.safe_load(text), list):
        text = "sources:\n" + textwrap.indent(text, "  ")
    file = folder / ".block.yaml"
    file.write_text(re.sub(r"\$\{(\w+)\}", r"\1", text), "utf-8")
    load(file)
    file.unlink()


class Shell:
    """Bash that keeps its variables from block to block."""

    def __init__(self, folder: Path, environment: dict[str, str], files: Path) -> None:
        self.files = files
        self.bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, text: str) -> tuple[str, str, int]:
        """Run commands; their standard output, standard error, and the exit code of the last one."""
        script, output, errors = (self.files / name for name in ("script", "output", "errors"))
        script.write_text(text, "utf-8")
        for file in (output, errors):
            file.write_text("")
        assert self.bash.stdin and self.bash.stdout
        self.bash.stdin.write(f". {script} </dev/null >>{output} 2>>{errors}; echo $?\n")
        self.bash.stdin.flush()
        code = self.bash.stdout.readline() or self.bash.wait()
        return output.read_text("utf-8"), errors.read_text("utf-8"), int(code)

    def run(self, text: str) -> None:
        """Run commands that all must succeed."""
        output, errors, code = self.call(f"set -e\n{text}set +e\n")
        if code:
            raise BlockError(f"exit code {code}\n{output}{errors}")


@contextmanager
def open_shell(folder: Path) -> Iterator[Shell]:
    """Open a shell in a folder, in which `conan` and `python FILE` are forks."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as server:
        files = Path(place)
        server.bind(str(files / "socket"))  # in a short path, as sockets want
        server.listen()
        thread = threading.Thread(target=_serve, args=(server,))
        thread.start()
        for name in ("conan", "python"):
            (files / name).write_text(SCRIPT)
            (files / name).chmod(0o755)
        path = os.pathsep.join([place, str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"PATH": path, "PAGE_FORKS": str(files / "socket"), "HF_HUB_OFFLINE": "1", "CONAN_DEBUG": ""}
        shell = Shell(folder, {**os.environ, **own}, files)
        try:
            yield shell
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.bash.pid, signal.SIGKILL)
            shell.bash.wait()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket) -> None:
    """Run the commands that `conan` asks for, at the same time where they are in one pipe."""
    one_at_a_time = threading.Lock()  # a start changes this process's environment for a moment

    def answer(connection: socket.socket) -> None:
        with connection:
            name, process_id, *call, environment = json.loads(connection.makefile().read())
            output, errors = (Path(f"/proc/{process_id}/fd/{number}") for number in (1, 2))
            with one_at_a_time:
                process = forks.start(
                    call_in_folder, name, *call, output=output, errors=errors, environment=environment
                )
            connection.sendall(str(forks.exit_codes([process])[0]).encode())

    with suppress(OSError):  # until it is shut down
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],)).start()


def call_in_folder(name: str, folder: str, arguments: list[str]) -> None:
    """Run `conan` or a Python file in a folder."""
    _enter(folder)
    if name == "conan":
        forks.conan(*arguments)
    else:
        sys.executable = shutil.which("python") or sys.executable  # files that it runs with it are forks too
        forks.program(Path(arguments[0]), *arguments[1:])


def _enter(folder: str) -> None:
    """Go to a folder, on what looks like a single core: further workers would take seconds to start."""
    os.chdir(folder)
    os.sched_getaffinity = lambda _: {0}


class _Python:
    """A fork that keeps its variables from block to block."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self.connection, self.log = connection, log

    def run(self, block: Block) -> None:
        try:
            self.connection.send((block.text, block.place))
            error = self.connection.recv()
        except (EOFError, OSError):
            error = f"Python ended; it printed:\n{self.log.read_text('utf-8')}"
        if error:
            raise BlockError(error)


@contextmanager
def _open_python(folder: Path) -> Iterator[_Python]:
    ours, theirs = Pipe()
    with tempfile.TemporaryDirectory() as place, ours:
        log = Path(place, "log")
        process = forks.start(interpret, str(folder), theirs, output=log)
        theirs.close()
        try:
            yield _Python(ours, log)
        finally:
            forks.kill_group(process)


def interpret(folder: str, connection: Connection) -> None:
    """Run code that comes over a connection, always with the same variables; answer with a traceback, or nothing."""
    _enter(folder)
    sys.path.insert(0, folder)
    variables = {"__name__": "__main__"}
    while True:
        text, place = connection.recv()
        try:
            exec(compile(text, place, "exec"), variables)
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send("")
