"""Maps a stage over its shards, in local processes or on a Ray cluster, and survives the death of any worker.

A stage is a pure function from shards to a shard. Each task carries the fingerprint of all that decides its rows, so a
task whose shard is there already is skipped, and a killed run goes on where it stopped.
"""

import multiprocessing
import os
import pickle
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from typing import Any

from ... import collect_garbage_seldom
from ..corpus import folder as folders

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
    for done, (name, error) in enumerate(run_calls(function, calls, engine), start=skipped + 1):
        if error:
            failures.append(f"{name}: {error}")
        elif not Path(name).exists():
            failures.append(f"{name}: made on a node that does not share this folder")
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


def run_calls(function: Callable[..., None], calls: Sequence[Call], engine: Engine) -> Iterator[Outcome]:
    """Run `function(*arguments)` for each named call; yields (name, None or what went wrong) as they end.

    The function is one that a worker can import by its name. A call whose worker dies is tried again.

    Raises:
        ClusterError: the engine's Ray cluster can't be used.
    """
    if not calls:
        return
    if engine.address is not None:
        from .ray import run_on_cluster

        yield from run_on_cluster(function, calls, engine)
        return
    each = devices() if engine.one_a_device else []
    if engine.processes == 1 and not each:
        for name, arguments in calls:
            yield name, _attempt(function, *arguments)
    else:  # a single GPU's model, too, is a worker's: it goes with it
        yield from _run_in_processes(function, calls, (each or [""] * engine.processes)[: len(calls)])


def _attempt(function: Callable[..., None], *arguments: Any) -> str | None:
    try:
        function(*arguments)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust, of Polars say, is no Exception
        traced = traceback.format_exc() if os.environ.get("CONAN_DEBUG") else ""
        return f"{type(error).__name__}: {error}\n{traced}".rstrip()
    return None


def attempt_pickled(call: bytes) -> str | None:
    """In a worker: run a pickled (function, arguments); what went wrong, if only that the function is not there."""
    return _attempt(_run_pickled, call)


def _run_pickled(call: bytes) -> None:
    function, arguments = pickle.loads(call)
    function(*arguments)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    threads: int
    device: str


_idle: list[_Worker] = []
"""Workers that wait for calls: one takes a second to import its libraries, and a stage may run calls several times."""


def close_workers(but: Container[tuple[int, str]] = ()) -> None:
    """End the workers that wait for calls, except those of these (threads, device).

    At the end of a command, before training takes the machine, and before calls that want others.
    """
    for worker in [each for each in _idle if (each.threads, each.device) not in but]:
        _idle.remove(worker)
        worker.pipe.close()


def _serve(pipe: Connection) -> None:
    """A worker: runs calls until the driver closes the pipe; dies at once when the driver does.

    A worker that lived on could commit a shard after the next run has taken the lock.
    """
    collect_garbage_seldom()
    Thread(target=_die_with_driver, daemon=True).start()
    try:
        while True:
            pipe.send(attempt_pickled(pipe.recv_bytes()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        # All is committed. Taking the interpreter down in order only lets native libraries complain of leaks.
        os._exit(0)


def _die_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


THREAD_VARIABLES = ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""What libraries read when they are loaded, to know how many threads to use."""


@contextmanager
def _share(threads: int, device: str) -> Iterator[None]:
    """Processes started in this block have so many threads, where the user has not said otherwise, and one GPU."""
    of_device = ["CUDA_VISIBLE_DEVICES"] if device else []
    before = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, *of_device)}
    os.environ.update({name: os.environ.get(name) or str(threads) for name in THREAD_VARIABLES})
    os.environ.update(dict.fromkeys(of_device, device))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _worker(threads: int, device: str) -> _Worker:
    """A worker that waits, with as many threads and this device; else a new one."""
    for worker in [each for each in _idle if (each.threads, each.device) == (threads, device)]:
        _idle.remove(worker)
        if worker.process.is_alive():
            return worker
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other,), daemon=True)
    with _share(threads, device):
        process.start()
    other.close()
    return _Worker(process, pipe, threads, device)


def _run_in_processes(function: Callable[..., None], calls: Sequence[Call], each: Sequence[str]) -> Iterator[Outcome]:
    """A process for each of these devices, or for each empty string one without."""
    threads = max(1, cores() // len(each))
    close_workers(but={(threads, device) for device in each})
    free = deque(each)
    waiting = deque(calls)
    deaths: Counter[str] = Counter()
    busy: dict[Connection, tuple[_Worker, Call]] = {}

    def start() -> None:
        while waiting and free:
            worker, call = _worker(threads, free.popleft()), waiting.popleft()
            with suppress(ConnectionError):  # it died already: its end of the pipe will tell
                worker.pipe.send((function, call[1]))
            busy[worker.pipe] = worker, call

    try:
        while waiting or busy:
            start()
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, call = busy.pop(pipe)
                free.append(worker.device)
                name = call[0]
                try:
                    error = pipe.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    deaths[name] += 1
                    if deaths[name] < ATTEMPTS:
                        waiting.append(call)
                    else:
                        yield name, f"its worker died {ATTEMPTS} times (exit code {worker.process.exitcode})"
                    continue
                _idle.append(worker)
                start()  # before the driver looks at the outcome
                yield name, error
    finally:
        for worker, _ in busy.values():
            worker.process.kill()
