"""Send a run's log to its experiment trackers, so that none of them can hold training up or end it."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from ..pipeline.corpus.atomic import write_text
from .job import Job
from .trackers import TRACKERS

Entry = Mapping[str, Any]
"""A line of log.jsonl."""

LAST_SECONDS = 60
"""Chosen here: how long the end of a run waits for trackers that are behind, with the network down for example."""


class Tracking:
    """The trackers of a run, each with a thread of its own, in which it is called in order.

    Args:
        job: The run; a tracker that it names for the first time is sent the log from the beginning.
        settings: What the trackers show as the settings of the run.
        kept: The entries of the log up to the checkpoint that the run resumes from.
        sent: All entries that the log had before; steps that are done again are not sent again.
    """

    def __init__(self, job: Job, settings: Mapping[str, Any], kept: Sequence[Entry], sent: Iterable[Entry]) -> None:
        known = {_key(entry) for entry in sent}
        self.trackers = [_TrackerThread(name, job, settings, kept, known) for name in dict.fromkeys(job.settings.track)]

    def log(self, entry: Entry) -> None:
        """Send the numbers of an entry."""
        for each in self.trackers:
            each.call(each.log, entry)

    def finish(self, succeeded: bool) -> None:
        """End the run in all trackers, and wait for that."""
        ends = {each.name: each.call(each.finish, succeeded) for each in self.trackers}
        late = wait(ends.values(), LAST_SECONDS).not_done
        for name in (name for name, end in ends.items() if end in late):
            _warn(f"{name} has not stored everything after {LAST_SECONDS} s, and is not waited for; log.jsonl has all")


class _TrackerThread:
    """A tracker, and the thread that calls it until it fails."""

    def __init__(
        self, name: str, job: Job, settings: Mapping[str, Any], kept: Sequence[Entry], known: set[tuple[Any, Any]]
    ) -> None:
        self.name, self.file, self.known, self.failed = name, job.folder / "trackers" / name, known, False
        self.pool = ThreadPoolExecutor(1, f"track {name}")
        self.call(self.start, job, settings, kept)

    def call(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        return self.pool.submit(self._try, function, *arguments)

    def _try(self, function: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            function(*arguments)
        except Exception as error:  # whatever the tracker's library raises
            self.failed = True
            said = " ".join(str(error).split())
            _warn(
                f"{self.name} failed ({type(error).__name__}: {said}); training continues without it; log.jsonl has all"
            )

    def start(self, job: Job, settings: Mapping[str, Any], kept: Sequence[Entry]) -> None:
        self.tracker = TRACKERS[self.name]()
        run_id = self.file.read_text("utf-8") if self.file.exists() else None
        started = self.tracker.start(f"{job.corpus.name} {job.name}", settings, job.folder, run_id)
        if started != run_id:
            self.known = set()
            for entry in kept:
                self.log(entry)
            self.file.parent.mkdir(exist_ok=True)
            write_text(self.file, started)

    def log(self, entry: Entry) -> None:
        numbers = numbers_of(entry)
        if "step" in entry and numbers and _key(entry) not in self.known:
            self.tracker.log(numbers, entry["step"])

    def finish(self, succeeded: bool) -> None:
        self.tracker.finish(succeeded)


def numbers_of(entry: Entry) -> dict[str, float]:
    """Return the numbers of a log entry by the names that trackers get.

    A nested number is named by its path, `mining/replaced`, and one of an event begins with the event's name:
    `validation/mean`.
    """
    event = entry.get("event")
    return dict(_numbers(entry, f"{event}/" if event else ""))


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value


def _key(entry: Entry) -> tuple[Any, Any]:
    """Return what no other entry of a run has: the event, None for a step's own entry, and the step."""
    return entry.get("event"), entry.get("step")


def _warn(message: str) -> None:
    print(f"track: {message}", file=sys.stderr)
