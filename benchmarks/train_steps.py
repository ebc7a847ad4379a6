"""The first steps of a training run in this process, as `conan train` takes them, without what a run ends with."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from conan_embedding.trainer import train
from conan_embedding.trainer.job import Job


class _LastStepError(Exception):
    pass


def train_steps(job: Job, last: int, before: Callable[[int], None], after: Callable[[int], None]) -> None:
    """Train up to the step `last`, with a call before and after each; no checkpoint or model is written at the end."""
    if last >= (job.settings.steps or last + 1):
        raise ValueError("the job itself must have more steps: its last one is saved")
    load_batches = train.load_batches

    def watched(*arguments: Any) -> Iterator[Any]:
        for step, batch in load_batches(*arguments):
            before(step)
            yield step, batch
            after(step)
            if step == last:
                raise _LastStepError

    with mock.patch.object(train, "load_batches", watched):
        try:
            train.main(job)
        except _LastStepError:
            return
