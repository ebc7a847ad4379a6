"""The settings that make a run a different run, and how its processes start and end."""

import json
import multiprocessing
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.pipeline.corpus.folder import read_footer
from conan_embedding.schemas.settings import SourcePrompts
from conan_embedding.schemas.training_settings import BootstrapTraining, FinetuneSettings, PretrainSettings
from conan_embedding.trainer.job import Job, TrainingError, make_job
from conan_embedding.trainer.launch import launcher as module
from conan_embedding.trainer.launch.launcher import run_job
from processes import has_ended, wait_until

Shards = Callable[[Path, str], list[Path]]


@pytest.fixture
def pretraining(training_corpus: Path, tiny: Path, shards: Shards) -> Callable[..., Job]:
    """Make a pre-training job, with changed settings if given."""
    pairs = {"pairs": shards(training_corpus, "pretrain")}
    return lambda **changes: make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(**changes), pairs)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace the training processes with a shell script."""

    def write(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(module.sys, "executable", str(program))

    return write


def finish(job: Job) -> None:
    job.model_folder.mkdir(parents=True)
    job.done.write_text(job.fingerprint)


def test_a_job_survives_its_file(pretraining: Callable[..., Job], training_corpus: Path, tiny: Path) -> None:
    job = pretraining(steps=3)
    assert Job.model_validate_json(job.model_dump_json()) == job
    for settings in (BootstrapTraining(steps=3), FinetuneSettings(steps=3)):
        job = make_job(training_corpus, "x", str(tiny), settings, {})
        again = Job.model_validate_json(job.model_dump_json()).settings
        assert again.model_dump() == settings.model_dump()
        assert isinstance(again, FinetuneSettings) == isinstance(settings, FinetuneSettings)


def test_the_fingerprint_is_of_what_decides_the_result(
    pretraining: Callable[..., Job], training_corpus: Path, tiny: Path, shards: Shards, write: Any, tmp_path: Path
) -> None:
    job = pretraining()
    assert pretraining().fingerprint == job.fingerprint
    for others in ({"log_every": 1, "checkpoint_every": 7}, {"gradcache_tokens": 64, "gradient_checkpointing": True}):
        assert pretraining(**others).fingerprint == job.fingerprint
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    pairs = {"pairs": shards(training_corpus, "pretrain")}
    assert make_job(training_corpus, "pretrain", str(copy), PretrainSettings(), pairs).fingerprint == job.fingerprint

    others = [pretraining(learning_rate=2e-5), pretraining(seed=1)]
    others.append(make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(), pairs, pools="other"))
    own = {"a": SourcePrompts(query="q")}
    prompted = make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(), pairs, source_prompts=own)
    others.append(prompted)
    alone = make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(), pairs, query_only_sources=["a"])
    assert Job.model_validate_json(alone.model_dump_json()).query_only_sources == ("a",)
    others.append(alone)
    only_of_sets = make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(), pairs, set_prompts=own)
    assert only_of_sets.fingerprint == job.fingerprint
    assert Job.model_validate_json(prompted.model_dump_json()).source_prompts == own
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    others.append(make_job(training_corpus, "pretrain", str(copy), PretrainSettings(), pairs))
    before = read_footer(pairs["pairs"][0]).content
    write.shard(training_corpus, "pretrain", [{"source": "c", "query": "q", "positive": "p", "cluster_id": 4}])
    assert read_footer(pairs["pairs"][0]).content != before
    others.append(make_job(training_corpus, "pretrain", str(tiny), PretrainSettings(), pairs))
    assert len({job.fingerprint, *(other.fingerprint for other in others)}) == 8


def test_a_finished_run_is_not_run_again(pretraining: Callable[..., Job], processes: Callable[[str], None]) -> None:
    processes("exit 1")
    finish(pretraining())
    assert run_job(pretraining(), 1) is False
    assert run_job(pretraining(log_every=1), 3) is False
    with pytest.raises(TrainingError):
        run_job(pretraining(learning_rate=2e-5), 1)


def test_a_finished_run_whose_model_is_gone_is_run_again(
    pretraining: Callable[..., Job], processes: Callable[[str], None]
) -> None:
    processes("exit 0")
    finish(pretraining())
    pretraining().model_folder.rmdir()
    assert run_job(pretraining(), 1) is True


def test_another_run_of_the_name_is_set_aside(
    pretraining: Callable[..., Job], processes: Callable[[str], None]
) -> None:
    processes("exit 0")
    job = pretraining()
    assert run_job(job, 1) is True
    (job.folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (job.folder / "checkpoints" / "step-00000001" / "state.json").write_text('{"step": 1, "world_size": 1}')
    assert run_job(job, 1) is True
    assert job.checkpoints
    finish(job)
    changed = pretraining(learning_rate=2e-5)
    assert run_job(changed, 1) is True
    assert [file.name for file in job.folder.iterdir()] == ["job.json"]
    assert Job.model_validate_json(job.file.read_text()) == changed
    assert Job.model_validate_json((job.before / "job.json").read_text()) == job
    assert (job.before / "checkpoints" / "step-00000001" / "state.json").exists()
    third = pretraining(learning_rate=3e-5)
    assert run_job(third, 1) is True
    assert Job.model_validate_json((job.before / "job.json").read_text()) == job  # the run in between saved nothing
    finish(third)
    assert run_job(changed, 1) is True
    assert Job.model_validate_json((job.before / "job.json").read_text()) == third
    assert not (job.before / "checkpoints").exists()


def test_a_folder_without_a_readable_job_gives_way(
    pretraining: Callable[..., Job], processes: Callable[[str], None]
) -> None:
    processes("exit 0")
    job = pretraining()
    for content in (None, "{", '{"name": "pretrain"}'):
        (job.folder / "checkpoints" / "step-00000001").mkdir(parents=True)
        if content is not None:
            job.file.write_text(content)
        assert run_job(job, 1) is True
        assert not job.checkpoints


def test_another_number_of_processes_is_refused(
    pretraining: Callable[..., Job], processes: Callable[[str], None]
) -> None:
    processes("exit 0")
    job = pretraining()
    run_job(job, 2)
    for step, ranks in (1, 1), (2, 2):
        folder = job.folder / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step, "world_size": ranks}))
    (job.folder / "checkpoints" / ".step-00000003.tmp").mkdir()
    with pytest.raises(TrainingError, match=r"step-00000002 was saved by 2 processes and this run has 3; .*--nproc 2"):
        run_job(job, 3)
    assert run_job(job, 2) is True


def test_a_stage_does_not_replace_the_model_that_it_starts_from(training_corpus: Path, tiny: Path) -> None:
    for name in ("finetune.before", "finetune"):
        model = training_corpus / "train" / name / "model"
        shutil.copytree(tiny, model)
        with pytest.raises(TrainingError, match="own result"):
            make_job(training_corpus, "finetune", str(model), FinetuneSettings(), {})
    assert make_job(training_corpus, "pretrain", str(model), PretrainSettings(), {}).model == str(model)


def test_a_model_is_found_from_any_folder(training_corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert make_job(training_corpus, "pretrain", tiny.name, PretrainSettings(), {}).model == str(tiny.resolve())


def test_processes_know_their_place(
    pretraining: Callable[..., Job],
    processes: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "7")  # of a cluster's scheduler, say
    monkeypatch.setenv("WORLD_SIZE", "9")
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS", "CONAN_PARENT"]
    told = " ".join(f"${name}" for name in names)
    processes(f'echo "$@"; echo "{told}" > {tmp_path}/told-$RANK')
    job = pretraining()
    run_job(job, 2)
    lines = [dict(zip(names, (tmp_path / f"told-{rank}").read_text().split(), strict=True)) for rank in range(2)]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    for rank, line in enumerate(lines):
        assert line["RANK"] == line["LOCAL_RANK"] == str(rank)
        assert line["WORLD_SIZE"] == line["LOCAL_WORLD_SIZE"] == "2"
        assert line["OMP_NUM_THREADS"] == threads
        assert line["CONAN_PARENT"] == str(os.getpid())
    assert lines[0]["MASTER_PORT"] == lines[1]["MASTER_PORT"]
    out, err = capfd.readouterr()
    assert out == ""  # the output of processes must not mix with the command's answer
    assert err == f"-m conan_embedding.trainer.train {job.file}\n" * 2


@pytest.mark.parametrize(("how", "message"), [("exit 3", "1 ended with exit code 3"), ("kill -9 $$", "signal 9")])
def test_one_failure_ends_all_and_is_named(
    pretraining: Callable[..., Job], processes: Callable[[str], None], tmp_path: Path, how: str, message: str
) -> None:
    processes(f'if [ "$RANK" = 1 ]; then {how}; fi; echo $$ > {tmp_path}/other; exec sleep 60')
    started = time.monotonic()
    with pytest.raises(
        TrainingError, match=rf"training failed \(2 processes.*: process 1 .*{message.split(' ', 1)[1]}"
    ) as error:
        run_job(pretraining(), 2)
    assert time.monotonic() - started < 30
    assert " 0 was killed" not in str(error.value)  # by us
    other = tmp_path / "other"
    if other.exists() and (number := other.read_text()):  # otherwise it was ended before it could write
        with pytest.raises(ProcessLookupError):
            os.kill(int(number), 0)


def test_processes_end_with_the_one_that_started_them(pretraining: Callable[..., Job]) -> None:
    """However it ends: here the parent is killed even before its training process is ready."""
    job = pretraining(steps=10**6, batch_size=2, projection_dim=8, matryoshka_dims=[8])
    parent = multiprocessing.get_context("fork").Process(target=run_job, args=(job, 1))
    parent.start()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    wait_until(lambda: bool(children.read_text().split()))
    rank = int(children.read_text().split()[0])
    parent.kill()
    parent.join(10)
    assert parent.exitcode == -signal.SIGKILL
    wait_until(lambda: has_ended(rank))
    assert not job.done.exists()
