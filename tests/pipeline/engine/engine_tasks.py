"""Stages for the tests of the engines: worker processes import them by name, like real ones."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter

SCHEMA = pa.schema([pa.field("number", pa.int64()), pa.field("process", pa.int64())])
REJECTED = pa.schema([*SCHEMA, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def numbers(first: int, last: int, fingerprint: str, shard: Path) -> None:
    """Write the numbers from `first` to `last` - 1; reject the odd ones."""
    found = list(range(first, last))
    with ShardWriter(shard, SCHEMA, REJECTED, stage="filter", version=1, fingerprint=fingerprint) as out:
        out.received(len(found))
        even = [number for number in found if number % 2 == 0]
        odd = [number for number in found if number % 2]
        out.keep(pa.table({"number": even, "process": [os.getpid()] * len(even)}, SCHEMA))
        columns = {"number": odd, "process": [0] * len(odd), "reason": ["odd"] * len(odd), "detail": [""] * len(odd)}
        out.reject(pa.table(columns, REJECTED))


def die_first(first: int, last: int, attempts: Path, fingerprint: str, shard: Path) -> None:
    """Like `numbers`, but for every other task the worker is killed while it writes the shard for the first time."""
    attempt = attempts / f"{first}-{len(list(attempts.iterdir()))}"
    attempt.touch()
    if len(list(attempts.glob(f"{first}-*"))) == 1 and first % 20 == 0:
        with ShardWriter(shard, SCHEMA, REJECTED, stage="filter", version=1, fingerprint=fingerprint):
            os.kill(os.getpid(), signal.SIGKILL)
    numbers(first, last, fingerprint, shard)


def die_always(first: int, last: int, attempts: Path, fingerprint: str, shard: Path) -> None:
    """Like `numbers`, but one task kills its worker at every attempt."""
    if first == 10:
        (attempts / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    numbers(first, last, fingerprint, shard)


def fail(first: int, last: int, fingerprint: str, shard: Path) -> None:
    """Like `numbers`, but one task raises an exception."""
    if first == 10:
        raise ValueError("ten is too many")
    numbers(first, last, fingerprint, shard)


def wait_for_ever(started: Path, fingerprint: str, shard: Path) -> None:
    """Record this process's id, then never return."""
    (started / str(os.getpid())).touch()
    signal.pause()


def wait_for_go(first: int, last: int, started: Path, fingerprint: str, shard: Path) -> None:
    """Like `numbers`, but record the ids of this process and its parent, then wait for the file `go` while writing."""
    (started / f"{first}-{os.getppid()}-{os.getpid()}").touch()
    with ShardWriter(shard, SCHEMA, REJECTED, stage="filter", version=1, fingerprint=fingerprint):
        while not (started / "go").exists():
            time.sleep(0.02)
    numbers(first, last, fingerprint, shard)


def look_around(first: int, last: int, seen: Path, fingerprint: str, shard: Path) -> None:
    """Like `numbers`, but record this process's parent, id, GPUs and number of threads."""
    parts = (os.getppid(), os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("POLARS_MAX_THREADS"))
    (seen / "-".join(str(part) for part in (first, *parts))).touch()
    numbers(first, last, fingerprint, shard)


def named(name: str, *arguments: Any) -> None:
    """Run another of these functions, given its name."""
    globals()[name](*arguments)


def forget(first: int, last: int, fingerprint: str, shard: Path) -> None:
    """Write no shard, which looks like a shard written on a machine that does not share the folder."""


def note_process(folder: Path, number: int) -> None:
    """A call that writes no shard: record this process's id."""
    (folder / f"{number}-{os.getpid()}").touch()
    time.sleep(0.2)  # so that the other worker gets calls too


def on_a_device(folder: Path, number: int) -> None:
    """Record this process's id and GPU, then wait until another process has done the same."""
    (folder / f"{number}-{os.getpid()}-{os.environ.get('CUDA_VISIBLE_DEVICES')}").touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
