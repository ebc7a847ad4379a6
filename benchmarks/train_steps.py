"""Runs the first steps of a training job in this process, as `conan train` would, but without the end of a run."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from conan_embedding.trainer import train
from conan_embedding.trainer.job import Job


class _LastStepError(Exception):
    pass


def train_steps(job: Job, last: int, before: Callable[[int], None], after: Callable[[int], None]) -> None:
    """Train up to step `last`, calling `before` and `after` around each step. No checkpoint or model is written."""
    if last >= (job.settings.steps or last + 1):
        raise ValueError("the job must have more steps than that, because a job's last step saves a checkpoint")
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
