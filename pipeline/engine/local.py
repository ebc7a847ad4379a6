"""Run the calls of a stage in worker processes on this machine; any worker may die without ending the run."""

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread

from ... import collect_garbage_seldom
from .calls import (
    ATTEMPTS,
    THREAD_VARIABLES,
    Call,
    Engine,
    Outcome,
    attempt,
    attempt_packed,
    cores,
    devices,
    pack_call,
)


def run_on_this_machine(function: Callable[..., None], calls: Sequence[Call], engine: Engine) -> Iterator[Outcome]:
    """Do what stage.run_calls does, in this process or in worker processes, as the engine asks."""
    each = devices() if engine.one_a_device else []
    if engine.processes == 1 and not each:
        for name, arguments in calls:
            yield name, attempt(function, *arguments)
    else:  # with a single GPU too: its memory is freed when the worker ends
        yield from _run_in_processes(function, calls, (each or [""] * engine.processes)[: len(calls)])


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    threads: int
    device: str


_idle: list[_Worker] = []
"""Workers that wait for calls. Starting one takes a second of imports, and a stage may run calls several times."""


def close_workers(but: Container[tuple[int, str]] = ()) -> None:
    """End the workers that wait for calls, except those with one of these (threads, device).

    Called at the end of a command, before training takes the machine, and before calls that need other workers.
    """
    for worker in [each for each in _idle if (each.threads, each.device) not in but]:
        _idle.remove(worker)
        worker.pipe.close()


def _serve(pipe: Connection) -> None:
    """Be a worker: run calls until the driver closes the pipe; exit at once if the driver dies.

    A worker that outlived its driver could commit a shard after the next run has taken the lock.
    """
    collect_garbage_seldom()
    Thread(target=_die_with_driver, daemon=True).start()
    try:
        while True:
            pipe.send(attempt_packed(pipe.recv_bytes()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        # Everything is committed, and in an orderly exit native libraries would complain about leaks.
        os._exit(0)


def _die_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


@contextmanager
def _share(threads: int, device: str) -> Iterator[None]:
    """Give processes started in this block `threads` threads (unless the user has set them) and one GPU, `device`."""
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
    """Return an idle worker with these threads and this device, or start one."""
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
    """Run calls in one process per entry of `each`: the name of a GPU, or an empty string for none."""
    threads = max(1, cores() // len(each))
    close_workers(but={(threads, device) for device in each})
    free = deque(each)
    waiting = deque(calls)
    deaths: Counter[str] = Counter()
    busy: dict[Connection, tuple[_Worker, Call]] = {}

    def start() -> None:
        while waiting and free:
            worker, call = _worker(threads, free.popleft()), waiting.popleft()
            with suppress(ConnectionError):  # it has died already, which recv() below will report
                worker.pipe.send_bytes(pack_call(function, call[1]))
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
