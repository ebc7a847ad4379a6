"""Progress for a log file: where standard error is not a terminal, a line every half minute instead of a bar."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from threading import Event, Thread

from .calls import Progress

SECONDS = 30.0
"""Between two lines: short enough that nobody takes the command for dead."""


@dataclass
class StageProgress:
    """How far a stage is: parts done of all, and the rows read so far. Parts done by an earlier run have no rate.

    Rates are those at the last update, so they don't fall, and the time left counts down, while a part takes long.
    """

    stage: str
    skipped: int
    began: float = field(default_factory=time.monotonic)
    updated: float = 0.0
    done: int = 0
    total: int = 0
    rows: int = 0

    def update(self, done: int, total: int, rows: int) -> None:
        self.done, self.total, self.rows, self.updated = done, total, rows, time.monotonic()

    @property
    def worked(self) -> float:
        """Seconds from the beginning to the last update."""
        return max(self.updated - self.began, 0.1)

    @property
    def rate(self) -> str:
        """The rows so far and, to two digits at least, those of a second."""
        rate = self.rows / self.worked
        return f"{self.rows:,} rows, {f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} rows/s"

    @property
    def seconds_left(self) -> float:
        """Estimate by the mean time of a part; infinite before the first is done."""
        made = self.done - self.skipped
        return self.worked / made * (self.total - self.done) - (time.monotonic() - self.updated) if made > 0 else inf

    def __str__(self) -> str:
        rate = self.rate if self.rows else ""
        if not rate and self.done > self.skipped:
            rate = f"{(self.done - self.skipped) / self.worked:,.3g}/s"
        so_far = f"{show_seconds(time.monotonic() - self.began)} so far"
        left = f"about {show_seconds(self.seconds_left)} left" if self.seconds_left < inf else ""
        return ", ".join(filter(None, [f"{self.stage}: {self.done:,} of {self.total:,}", rate, so_far, left]))


def show_seconds(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    return str(timedelta(seconds=max(0, round(seconds))))


@contextmanager
def progress_lines() -> Iterator[Progress]:
    """Yield a function that takes progress; the latest is printed on standard error every SECONDS until all is done.

    A thread prints, so a part that takes minutes does not look dead. A command that is done sooner prints nothing.
    """
    latest: list[StageProgress] = []
    is_over = Event()

    def show(stage: str, done: int, total: int, rows: int) -> None:
        if not latest or latest[-1].stage != stage:
            latest[:] = [StageProgress(stage, done)]
        latest[-1].update(done, total, rows)
        if done == total:  # what follows may be another process's, which tells its own progress
            latest.clear()

    def print_lines() -> None:
        while not is_over.wait(SECONDS):
            for each in tuple(latest):
                print(each, file=sys.stderr, flush=True)

    printer = Thread(target=print_lines, daemon=True)
    printer.start()
    try:
        yield show
    finally:
        is_over.set()
        printer.join()
