"""The files that mark the state of a run. Runs that are killed and resumed are in test_train_stops.py."""

from collections.abc import Callable

import pytest
from conan_embedding.trainer import checkpoints
from conan_embedding.trainer.job import Job, TrainingError


class Stubborn:
    """A miner whose file is open elsewhere for the first attempts."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts

    def write(self, step: int) -> bool:
        self.attempts -= 1
        return self.attempts < 0


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(checkpoints.time, "sleep", lambda _: None)
    return lambda: None


@pytest.mark.usefixtures("no_waiting")
def test_a_run_is_done_when_pools_have_its_log(job: Job) -> None:
    checkpoints.finish(job, 10, Stubborn(5))  # type: ignore[arg-type]
    assert job.done.read_text() == "f"
    job.done.unlink()
    with pytest.raises(TrainingError, match="open in another process"):
        checkpoints.finish(job, 10, Stubborn(100))  # type: ignore[arg-type]
    assert not job.done.exists()
    checkpoints.finish(job, 10, None)
    assert job.done.exists()
