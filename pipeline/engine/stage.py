"""Map a stage over its shards, in local processes or on a Ray cluster; any worker may die without ending the run.

A stage is a pure function from shards to a shard. Each task has a fingerprint of everything that its rows depend on, so
a task whose shard exists already is skipped, and a killed run continues where it stopped.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...schemas.errors import ConanError, CorpusError
from ...schemas.outcomes import Summary
from ..corpus import folder as folders
from ..corpus.uris import upload_shard
from .calls import Call, Engine, Outcome


class StageError(ConanError):
    """Some shards of a stage could not be written; the others are committed."""


@dataclass(frozen=True)
class Task:
    """A shard to write: the arguments of the stage's function, and a fingerprint of all that its rows depend on."""

    arguments: tuple[Any, ...]
    fingerprint: str


def run_stage(
    corpus: Path, folder: str, function: Callable[..., None], tasks: Sequence[Task], engine: Engine
) -> Summary:
    """Write the shards of `folder`: call `function(*arguments, fingerprint, path)` for each task without a shard.

    Shards that exist keep their names; new ones take the free names in order, so a resumed run ends with the same
    files as an uninterrupted one. Shards that belong to no task are deleted at the end.

    Raises:
        StageError: tasks failed; the message names each shard and its error. All other shards are committed.
    """
    started = time.monotonic()
    folders.begin(corpus, folder)
    place = find_finished(corpus, folder, tasks)
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
            failures.append(f"{name}: written on a node that does not share this folder")
        else:
            rows += folders.read_footer(Path(name)).rows_in
            upload_shard(corpus, Path(name), folders.rejects(Path(name)))
        engine.progress(folder, done, len(tasks), rows)
    if failures:
        raise StageError("\n".join(failures))
    folders.finish(corpus, folder, {shard.name for shard in place.values()})
    summary = summarise(corpus, folder)
    summary.skipped, summary.seconds = skipped, time.monotonic() - started
    return summary


def find_finished(corpus: Path, folder: str, tasks: Sequence[Task]) -> dict[str, Path]:
    """Return the shards that exist already, by the fingerprints of their tasks."""
    wanted = {task.fingerprint for task in tasks}
    place: dict[str, Path] = {}
    for shard in folders.committed(corpus, folder):
        try:
            found = folders.read_footer(shard).fingerprint
        except CorpusError:
            continue  # incomplete or not a shard: it is written again
        if found in wanted:
            place.setdefault(found, shard)
    return place


def summarise(corpus: Path, folder: str) -> Summary:
    """Add up the footers of a stage's shards."""
    summary = Summary(folder)
    for shard in folders.committed(corpus, folder):
        footer = folders.read_footer(shard)
        summary.shards += 1
        summary.rows_in += footer.rows_in
        summary.rows_out += footer.rows_out
        summary.rejected.update(footer.rejected)
        summary.seconds += footer.seconds
    return summary


def run_calls(function: Callable[..., None], calls: Sequence[Call], engine: Engine) -> Iterator[Outcome]:
    """Run `function(*arguments)` for each call; yield (name, error or None) as the calls end.

    Workers must be able to import the function by its name. A call whose worker dies is tried again.

    Raises:
        ClusterError: the engine's Ray cluster can't be used.
    """
    if not calls:
        return
    if engine.address is not None:
        from .ray import run_on_cluster

        yield from run_on_cluster(function, calls, engine)
    else:
        from .local import run_on_this_machine

        yield from run_on_this_machine(function, calls, engine)
