"""Runs that are killed, asked to stop or lose their gradients; and what they have in pools.duckdb then."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conan_embedding.schemas.settings import (
    FinetuneSettings,
)
from conan_embedding.trainer.job import Job, TrainingError, run_job
from processes import wait_until
from training_runs import (
    FINETUNE,
    RUNS,
    job_of,
    log_of,
    losses_logged,
    losses_of,
    replacements,
    start,
    weights_of,
    windows,
)


@pytest.mark.parametrize("name", ["pretrain", "finetune on two"])
def test_a_killed_run_that_resumes_is_as_one_that_was_not_killed(
    runs: dict[str, Job], corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings, processes = RUNS[name]
    job = job_of(corpus, tiny, settings)
    assert job.fingerprint == runs[name].fingerprint
    killed = start(job, processes)
    # Beyond its second checkpoint, so that steps, and checks of DHNM, are done twice.
    wait_until(lambda: len(job.checkpoints) >= 2 and losses_logged(job) >= 24)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join()
    assert not job.done.exists()
    (job.folder / "checkpoints" / ".step-00000099.tmp").mkdir()  # half a checkpoint, of a kill while saving
    reached = int(job.checkpoints[-1].name.removeprefix("step-"))
    assert 20 <= reached < 40

    assert run_job(job, processes) is True
    assert log_of(job) == log_of(runs[name])
    steps = [line["step"] for line in log_of(job)]
    assert steps == list(range(1, 41))
    found, expected = weights_of(job.model_folder), weights_of(runs[name].model_folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert replacements(job) == replacements(runs[name])
    assert windows(job) == windows(runs[name])
    assert bool(replacements(job)) == name.startswith("finetune")
    assert [each.name for each in (job.folder / "checkpoints").iterdir() if each.is_dir()] == [
        each.name for each in job.checkpoints
    ]
    assert len(job.checkpoints) == 2
    assert run_job(job, processes) is False


@pytest.mark.parametrize("refresh", ["rerank", "remine"])
def test_a_killed_run_that_resumes_refreshes_the_same(runs: dict[str, Job], refresh: str) -> None:
    whole, killed = runs[f"{refresh} on two"], runs[f"{refresh}, killed"]
    assert log_of(killed) == log_of(whole)
    assert len(log_of(killed)) == 24
    assert replacements(killed) == replacements(whole) != []
    assert windows(killed) == windows(whole)


def test_the_number_of_processes_changes_no_reranking(runs: dict[str, Job]) -> None:
    one, two = runs["rerank"], runs["rerank on two"]
    assert losses_of(one)[:8] == pytest.approx(losses_of(two)[:8], abs=1e-4)
    moved = [row for row in replacements(one) if row[0] <= 8]
    assert moved and {row[5:] for row in moved} == {(0, 4)}
    assert np.allclose(moved, [row for row in replacements(two) if row[0] <= 8], atol=1e-4)


def test_remined_pools_go_with_the_run(runs: dict[str, Job]) -> None:
    job = runs["remine on two"]
    mining = {line["step"]: line["mining"] for line in log_of(job) if "mining" in line}
    assert sorted(mining) == [4, 6, 8, 12, 16, 18, 20, 24]
    assert [step for step, found in mining.items() if "remined" in found] == [6, 12, 18]  # after the last step, none
    assert not job.data.exists()


def test_a_run_that_is_asked_to_stop_saves_its_step(
    runs: dict[str, Job], corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two checkpoints, by a signal to the process that started the others."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings, processes = RUNS["finetune on two"]
    job = job_of(corpus, tiny, settings)
    asked = start(job, processes)
    wait_until(lambda: (job.folder / "log.jsonl").exists() and losses_logged(job) >= 5)
    assert asked.pid is not None
    os.kill(asked.pid, signal.SIGTERM)
    asked.join(60)
    assert asked.exitcode == 1
    reached = int(job.checkpoints[-1].name.removeprefix("step-"))
    assert reached == log_of(job)[-1]["step"] < 40 and not job.done.exists()
    assert run_job(job, processes) is True
    assert log_of(job) == log_of(runs["finetune on two"])


def test_a_run_without_gradients_ends_and_keeps_its_update(corpus: Path, tiny: Path) -> None:
    """The first step makes weights of 1e30; the next three have no loss and are not taken."""
    wild = {**FINETUNE, "learning_rate": 1e30, "warmup": 0.0, "gradient_clipping": 0.0}
    job = job_of(corpus, tiny, FinetuneSettings(**wild, steps=9))
    with pytest.raises(TrainingError, match="ended with exit code 1"):
        run_job(job, 2)
    steps = log_of(job)
    assert [(line["step"], line.get("skipped", 0)) for line in steps] == [(1, 0), (2, 1), (3, 2)]
    assert steps[0]["loss"] > 0 and [line["loss"] for line in steps[1:]] == [None, None]
    lost = json.loads((job.folder / "lost_update.json").read_text("utf-8"))
    assert lost["step"] == 4 and len(lost["query_rows"]) == 8 and max(lost["positive_rows"]) < len(lost["texts"])
