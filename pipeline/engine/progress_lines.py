"""Progress for a log file: where standard error is not a terminal, a line every half minute instead of a bar."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from threading import Event, Thread

from .calls import Progress

SECONDS = 30.0
"""Between two lines: short enough that nobody takes the command for dead."""


@dataclass
class StageProgress:
    """How far a stage is: parts done of all, and the rows read so far. Parts done by an earlier run have no rate."""

    stage: str
    skipped: int
    began: float
    done: int = 0
    total: int = 0
    rows: int = 0

    @property
    def elapsed(self) -> float:
        return max(time.monotonic() - self.began, 0.1)

    @property
    def seconds_left(self) -> float:
        """Estimate by the mean time of a part; infinite before the first is done."""
        made = self.done - self.skipped
        return self.elapsed / made * (self.total - self.done) if made else inf

    def update(self, done: int, total: int, rows: int) -> None:
        self.done, self.total, self.rows = done, total, rows

    def __str__(self) -> str:
        parts = f"{self.stage}: {self.done:,} of {self.total:,}"
        rate = f"{self.rows:,} rows, {self.rows / self.elapsed:,.0f} rows/s" if self.rows else ""
        if not rate and self.done > self.skipped:
            rate = f"{(self.done - self.skipped) / self.elapsed:,.3g}/s"
        return ", ".join(filter(None, [parts, rate, f"{show_seconds(self.elapsed)} so far", self._left()]))

    def _left(self) -> str:
        return f"about {show_seconds(self.seconds_left)} left" if self.seconds_left < inf else ""


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
            latest[:] = [StageProgress(stage, done, time.monotonic())]
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
