"""Maps a stage over its shards in local processes, and survives the death of any of them.

A stage is a pure function from shards to a shard. Each task carries the fingerprint of all that decides its rows, so a
task whose shard is there already is skipped, and a killed run goes on where it stopped.
"""

import multiprocessing
import os
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from typing import Any

from . import corpus as folders

ATTEMPTS = 3
"""How often a shard is tried whose worker dies (out of memory, a crash in native code)."""


class StageError(RuntimeError):
    """Some shards of a stage could not be made; the others are committed."""


@dataclass(frozen=True)
class Task:
    """One shard to make: what the stage's function is called with, and the fingerprint of all that decides it."""

    arguments: tuple[Any, ...]
    fingerprint: str


@dataclass
class Summary:
    """What a stage did, from the footers of its shards."""

    stage: str
    rows_in: int = 0
    rows_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    skipped: int = 0
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


Progress = Callable[[str, int, int, int], None]
"""Called with the stage's name, shards done, shards in all, rows done."""


def quiet(stage: str, done: int, total: int, rows: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Engine:
    """How tasks are run: in how many processes, and who is told."""

    workers: int = 0
    progress: Progress = quiet

    @property
    def processes(self) -> int:
        """Processes in use: as many as there are cores by default; with one, this process does the work."""
        return self.workers or cores()


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_stage(
    corpus: Path, folder: str, function: Callable[..., None], tasks: Sequence[Task], engine: Engine
) -> Summary:
    """Make the shards of `folder`: `function(*arguments, fingerprint, path)` for each task without its shard.

    A shard that is there keeps its place; new ones take the free places in order, so a resumed run ends as an
    unbroken one does. Shards that no task claims are removed at the end.

    Raises:
        StageError: tasks failed; names each shard and why. What could be made is committed.
    """
    started = time.monotonic()
    folders.begin(corpus, folder)
    place = made(corpus, folder, tasks)
    skipped = len(place)
    taken = {shard.name for shard in place.values()}
    free = (name for number in range(len(tasks)) if (name := f"part-{number:05d}.parquet") not in taken)
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for task in tasks:
        if task.fingerprint not in place:
            path = place[task.fingerprint] = corpus / folder / next(free)
            calls.append((str(path), (*task.arguments, task.fingerprint, path)))
    rows = 0
    engine.progress(folder, skipped, len(tasks), rows)
    failures: list[str] = []
    for done, (name, error) in enumerate(run_calls(function, calls, engine.processes), start=skipped + 1):
        if error:
            failures.append(f"{name}: {error}")
        else:
            rows += folders.read_footer(Path(name)).rows_in
        engine.progress(folder, done, len(tasks), rows)
    if failures:
        raise StageError("\n".join(failures))
    folders.finish(corpus, folder, {shard.name for shard in place.values()})
    summary = summarise(corpus, folder)
    summary.skipped, summary.seconds = skipped, time.monotonic() - started
    return summary


def made(corpus: Path, folder: str, tasks: Sequence[Task]) -> dict[str, Path]:
    """The shards that are there already, by fingerprint of their tasks."""
    wanted = {task.fingerprint for task in tasks}
    place: dict[str, Path] = {}
    for shard in folders.committed(corpus, folder):
        try:
            found = folders.read_footer(shard).fingerprint
        except folders.CorpusError:
            continue  # not whole or not ours: it is made anew
        if found in wanted:
            place.setdefault(found, shard)
    return place


def summarise(corpus: Path, folder: str) -> Summary:
    """What a stage's shards say of themselves, added up."""
    summary = Summary(folder)
    for shard in folders.committed(corpus, folder):
        footer = folders.read_footer(shard)
        summary.shards += 1
        summary.rows_in += footer.rows_in
        summary.rows_out += footer.rows_out
        summary.rejected.update(footer.rejected)
        summary.seconds += footer.seconds
    return summary


Call = tuple[str, tuple[Any, ...]]
Outcome = tuple[str, str | None]


def run_calls(function: Callable[..., None], calls: Sequence[Call], processes: int) -> Iterator[Outcome]:
    """Run `function(*arguments)` for each named call; yields (name, None or what went wrong) as they end."""
    if processes == 1:
        for name, arguments in calls:
            yield name, _attempt(function, arguments)
    elif calls:
        yield from _run_in_processes(function, calls, min(processes, len(calls)))


def _attempt(function: Callable[..., None], arguments: tuple[Any, ...]) -> str | None:
    try:
        function(*arguments)
    except Exception as error:
        traced = traceback.format_exc() if os.environ.get("CONAN_DEBUG") else ""
        return f"{type(error).__name__}: {error}\n{traced}".rstrip()
    return None


def _serve(function: Callable[..., None], pipe: Connection) -> None:
    """A worker: runs calls until the driver closes the pipe; dies at once when the driver does.

    A worker that lived on could commit a shard after the next run has taken the lock.
    """
    Thread(target=_die_with_driver, daemon=True).start()
    try:
        while True:
            pipe.send(_attempt(function, pipe.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        # All is committed. Taking the interpreter down in order only lets native libraries complain of leaks.
        os._exit(0)


def _die_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Share the cores: a process started in this block reads these variables when its libraries load."""
    names = ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: value or str(count) for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    call: Call


def _run_in_processes(function: Callable[..., None], calls: Sequence[Call], processes: int) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")
    waiting = deque(calls)
    deaths: Counter[str] = Counter()
    workers: list[_Worker] = []

    def start(call: Call) -> None:
        pipe, other = context.Pipe()
        process = context.Process(target=_serve, args=(function, other), daemon=True)
        with _threads(max(1, cores() // processes)):
            process.start()
        other.close()
        with suppress(BrokenPipeError):  # it died already: its end of the pipe will tell
            pipe.send(call[1])
        workers.append(_Worker(process, pipe, call))

    try:
        while waiting or workers:
            while waiting and len(workers) < processes:
                start(waiting.popleft())
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                name = worker.call[0]
                try:
                    error = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    workers.remove(worker)
                    deaths[name] += 1
                    if deaths[name] < ATTEMPTS:
                        waiting.append(worker.call)
                    else:
                        yield name, f"its worker died {ATTEMPTS} times (exit code {worker.process.exitcode})"
                    continue
                yield name, error
                if waiting:
                    worker.call = waiting.popleft()
                    with suppress(BrokenPipeError):
                        worker.pipe.send(worker.call[1])
                else:
                    worker.pipe.close()
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.process.kill()
