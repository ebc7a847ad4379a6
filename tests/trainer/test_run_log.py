"""The log's entries for steps, and how the log of a killed run is continued."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import Losses
from conan_embedding.trainer.run_log import Log

VALUES: dict[str, Any] = {"tokens": 100, "learning_rate": 1e-3, "gradient_norm": 1.0, "replaced": None}


def losses(total: float) -> Losses:
    return Losses(
        torch.tensor(total),
        {"retrieval": torch.tensor(1.0), "sts": torch.tensor(2.0)},
        torch.tensor([0.5, 0.7]),
        torch.tensor([[0.1, float("nan")], [0.3, 0.5]]),
    )


def lines(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]


def write_steps(log: Log, *steps: int, total: float = 1.0) -> None:
    for step in steps:
        write_step(log, step, losses(total))


def write_step(log: Log, step: int, found: Losses, **values: Any) -> None:
    """Log a step as the training loop does."""
    values = VALUES | values
    log.count(step, found)
    if log.is_due(step) or values["replaced"] is not None:
        log.step(step, found, **values)


def test_steps_are_logged_every_so_often_and_at_checks_and_the_end(job: Job) -> None:
    log = Log(job, 0, 25)
    for step in range(1, 26):
        write_step(log, step, losses(0.25), gradient_norm=4.5, replaced={"flagged": 0} if step == 7 else None)
    log.write(event="end", step=25)
    assert [(line["step"], line.get("mining")) for line in lines(job)] == [
        (7, {"flagged": 0}),
        (10, None),
        (20, None),
        (25, None),
        (25, None),
    ]
    first = lines(job)[0]
    assert first.pop("tokens_per_second") > 0
    assert first == {
        "step": 7,
        "loss": 0.25,
        "retrieval": 1.0,
        "sts": 2.0,
        "negatives": 0.0,
        "positive_score": 0.6,
        "negative_score": 0.3,
        "learning_rate": 1e-3,
        "gradient_norm": 4.5,
        "mining": {"flagged": 0},
    }


def test_updates_whose_sentence_pairs_have_one_label_are_counted(job: Job) -> None:
    log = Log(job, 0, 20)
    for step in range(1, 21):
        one_label = replace(losses(1.0), single_label=step in (3, 4, 10))
        write_step(log, step, one_label)
    assert [line.get("single_label_batches") for line in lines(job)] == [3, None]


def test_false_negatives_are_logged_where_they_are_masked(job: Job) -> None:
    log = Log(job, 0, 20)
    for step, found in ((10, torch.tensor(1.26)), (20, None)):
        write_step(log, step, replace(losses(1.0), mean_negatives=torch.tensor(7.5), mean_false_negatives=found))
    assert [(line["negatives"], line.get("false_negatives")) for line in lines(job)] == [(7.5, 1.3), (7.5, None)]


def test_a_rate_counts_from_the_entry_before(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("conan_embedding.trainer.run_log.time.monotonic", lambda: clock)
    log = Log(job, 0, 20)
    for step in range(1, 21):
        clock = 102.0 if step <= 10 else 106.0
        write_step(log, step, losses(1.0), tokens=1000)
    assert [line["tokens_per_second"] for line in lines(job)] == [500, 250]


def test_a_line_is_said_on_standard_error(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    Log(job, 0, 20).say("warning: a query is drawn [0.5] times")
    assert capsys.readouterr() == ("", f"train {job.name}: warning: a query is drawn [0.5] times\n")


def test_other_ranks_write_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(job, 0, 20, writes=False)
    log.write(event="start")
    log.say("nothing")
    assert not capsys.readouterr().err
    write_steps(log, 10, 20)
    assert not (job.folder / "log.jsonl").exists()


@pytest.mark.parametrize(("resumed_at", "kept"), [(0, []), (10, [0, 10]), (20, [0, 10, 20])])
def test_a_resumed_log_ends_at_the_checkpoint(job: Job, resumed_at: int, kept: list[int]) -> None:
    log = Log(job, 0, 100)
    log.write(event="start")
    write_steps(log, 10, 20, 30)
    log.file.write('{"step": 40, "lo')
    log.file.close()
    again = Log(job, resumed_at, 100)
    write_steps(again, 40)
    assert [line.get("step", 0) for line in lines(job)] == [*kept, 40]


@pytest.mark.parametrize("total", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_null_and_skipped_steps_are_counted(job: Job, total: float) -> None:
    log = Log(job, 0, 100)
    write_step(log, 10, losses(total), gradient_norm=float("inf"), nonfinite_steps=2)
    write_step(log, 20, losses(0.5), nonfinite_steps=2)
    assert [line["loss"] for line in lines(job)] == [None, 0.5]
    assert [line["gradient_norm"] for line in lines(job)] == [None, 1.0]
    assert [line["nonfinite_steps"] for line in lines(job)] == [2, 2]


def test_nothing_is_shown_where_there_is_no_terminal(job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(job, 0, 20)
    write_steps(log, 10, 20)
    log.close(succeeded=True)
    assert capfd.readouterr() == ("", "")


def test_a_log_file_sees_how_far_the_run_is(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.engine.progress_lines.SECONDS", 0.01)
    log = Log(job, 4, 20)
    err, deadline = "", time.monotonic() + 60
    while "train pretrain: 6 of 20, " not in err and time.monotonic() < deadline:
        write_step(log, 6, losses(1.0))
        err += capsys.readouterr().err
    assert "train pretrain: 6 of 20, " in err and " left\n" in err
    log.close(succeeded=True)
    capsys.readouterr()
    time.sleep(0.03)
    assert capsys.readouterr().err == ""
