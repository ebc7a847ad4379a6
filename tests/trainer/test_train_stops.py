"""Runs that are killed, asked to stop, spread over hosts or have infinite gradients; what pools.duckdb then holds."""

import json
import shutil
import signal
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.launch import hosts
from conan_embedding.trainer.launch.hosts import STOPPED, Host, rendezvous
from conan_embedding.trainer.launch.launcher import run_job
from training_runs import HALFWAY, LONG, REFRESHED, RUNS, job_of, log_of, losses_of, replacements, weights_of, windows

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]


@pytest.mark.parametrize("name", ["pretrain", "finetune on two"])
def test_a_killed_run_that_resumes_is_as_one_that_was_not_killed(runs: dict[str, Job], name: str) -> None:
    """Steps and DHNM checks after the last checkpoint are done twice; an incomplete checkpoint is ignored."""
    whole, killed = runs[name], runs[f"{name}, killed"]
    ended = json.loads((killed.folder / "ended.json").read_text())
    assert set(ended["codes"]) == {-signal.SIGKILL}
    assert 0 < max(ended["checkpoints"]) < ended["logged"] < LONG["steps"]
    assert killed.fingerprint == whole.fingerprint
    assert log_of(killed) == log_of(whole)
    assert [line["step"] for line in log_of(killed)] == list(range(1, LONG["steps"] + 1))
    assert_equal_weights(killed, whole)
    assert replacements(killed) == replacements(whole)
    assert windows(killed) == windows(whole)
    assert bool(replacements(killed)) == name.startswith("finetune")
    assert [each.name for each in (killed.folder / "checkpoints").iterdir() if each.is_dir()] == [
        each.name for each in killed.checkpoints
    ]
    assert len(killed.checkpoints) == 2
    assert run_job(killed, 2) is False


def assert_equal_weights(one: Job, other: Job) -> None:
    found, expected = weights_of(one.model_folder), weights_of(other.model_folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("refresh", ["rerank", "remine"])
def test_a_killed_run_that_resumes_refreshes_the_same(runs: dict[str, Job], refresh: str) -> None:
    whole, killed = runs[f"{refresh} on two"], runs[f"{refresh}, killed"]
    assert log_of(killed) == log_of(whole)
    assert len(log_of(killed)) == REFRESHED["steps"]
    assert replacements(killed) == replacements(whole) != []
    assert windows(killed) == windows(whole)


def test_the_number_of_processes_changes_no_reranking(runs: dict[str, Job]) -> None:
    one, two = runs["rerank"], runs["rerank on two"]
    assert losses_of(one)[:8] == pytest.approx(losses_of(two)[:8], abs=1e-4)
    moved = [row[:7] for row in replacements(one) if row[0] <= 8]
    assert moved and {row[5:7] for row in moved} == {(0, 4)}
    assert np.allclose(moved, [row[:7] for row in replacements(two) if row[0] <= 8], atol=1e-4)


def test_neither_processes_nor_a_kill_change_what_v2_replaces(runs: dict[str, Job]) -> None:
    """One process against two with GradCache, divided by task, killed and resumed."""
    one, two = runs["v2"], runs["v2 on two, killed"]
    assert max(json.loads((two.folder / "ended.json").read_text())["checkpoints"]) == 5
    assert losses_of(one)[:8] == pytest.approx(losses_of(two)[:8], abs=1e-4)
    expected, found = ([row for row in replacements(job) if row[0] <= 8] for job in (one, two))
    assert {row[0] for row in expected} >= {1, 2, 6, 7, 8}
    assert np.allclose(expected, found, atol=1e-4)
    assert [line["mining"].keys() for line in log_of(two)] == [{"scored", "flagged", "replaced", "exhausted"}] * 18


def test_remined_pools_go_with_the_run(runs: dict[str, Job]) -> None:
    job = runs["remine on two"]
    mining = {line["step"]: line["mining"] for line in log_of(job) if "mining" in line}
    assert sorted(mining) == [4, 6, 8, 12, 16]
    assert [step for step, found in mining.items() if "remined" in found] == [6, 12]  # not after the last step
    assert not job.data.exists()


def test_a_run_that_is_asked_to_stop_saves_its_step(runs: dict[str, Job]) -> None:
    """And continues from there."""
    stopped, whole = runs["finetune on two, stopped"], runs["finetune on two"]
    ended = json.loads((stopped.folder / "ended.json").read_text())
    assert ended["codes"] == [STOPPED, STOPPED]
    assert HALFWAY <= max(ended["checkpoints"]) == ended["logged"] < LONG["steps"]
    assert log_of(stopped) == log_of(whole)
    assert replacements(stopped) == replacements(whole)
    assert_equal_weights(stopped, whole)


def test_other_machines_and_torchrun_train_as_one_machine_does(
    runs: dict[str, Job], training_corpus: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes give the same losses on one address, on two addresses, and under two torchrun launchers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings, _ = RUNS["zero 1"]
    two_hosts = job_of(Path(shutil.copytree(training_corpus, training_corpus.with_name("two hosts"))), tiny, settings)
    with monkeypatch.context() as patched:  # nothing may be imported from the folder that a command is started in
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "torch.py").write_text("raise ImportError('this is another torch')")
        patched.chdir(elsewhere)
        starts = {"127.0.0.2": hosts.start, "127.0.0.3": forks.Rank}  # one new process shows it
        patched.setattr(hosts, "start", lambda name, *arguments: starts[name](name, *arguments))
        assert run_job(two_hosts, [Host("127.0.0.2", 1), Host("127.0.0.3", 1)]) is True
    launched = job_of(training_corpus, tiny, settings)
    with monkeypatch.context() as patched:
        patched.setattr(
            "conan_embedding.trainer.launch.launcher._run_on_hosts", lambda *_: None
        )  # stopped before it started
        run_job(launched, 1)
    run_with_torchrun(launched)
    for job in (two_hosts, launched):
        assert job.done.exists()
        assert losses_of(job) == pytest.approx(losses_of(runs["zero 1"]), abs=1e-6)


def run_with_torchrun(job: Job) -> None:
    """Train with two torchrun launchers that meet at 127.0.0.2, each with one process."""
    _, port = rendezvous([Host("127.0.0.2", 1)])
    launch = ["--nnodes=2", "--nproc-per-node=1", f"--rdzv-endpoint=127.0.0.2:{port}", "--rdzv-backend=c10d"]
    command = [*launch, "--rdzv-id=conan", "-m", "conan_embedding.trainer.train", str(job.file)]
    output, environment = job.corpus / "output", {"DS_ACCELERATOR": "cpu"}
    nodes = [forks.start(torchrun, command, output=output, environment=environment) for _ in range(2)]
    assert forks.exit_codes(nodes) == [0, 0], output.read_text("utf-8")


def torchrun(command: list[str]) -> None:
    """Run torchrun, whose ranks are forks."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
    from torch.distributed.run import main

    SubprocessHandler._popen = lambda _, command, environment: forks.Rank("", command, environment)
    main(command)


def test_a_run_without_gradients_ends_and_keeps_its_update(runs: dict[str, Job]) -> None:
    """The first step makes weights of 1e30; the next three have no finite loss and are skipped."""
    job = runs["gradients, lost"]
    steps = log_of(job)
    assert [(line["step"], line.get("nonfinite_steps", 0)) for line in steps] == [(1, 0), (2, 1), (3, 2)]
    assert steps[0]["loss"] > 0 and [line["loss"] for line in steps[1:]] == [None, None]
    lost = json.loads((job.folder / "nonfinite_batch.json").read_text("utf-8"))
    assert lost["teacher_scores"][0][0] is None
    assert lost["step"] == 4 and len(lost["query_rows"]) == 8 and max(lost["positive_rows"]) < len(lost["texts"])
