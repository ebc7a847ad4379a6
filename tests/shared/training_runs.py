"""Training runs that several test files use."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import duckdb
import forks
import torch
from conan_embedding.schemas.training_settings import (
    FinetuneSettings,
    HardNegativeMining,
    OptimizerSettings,
    PretrainSettings,
    Validation,
)
from conan_embedding.trainer.job import Job, make_job
from processes import wait_until
from safetensors.torch import load_file

SHARED = {"learning_rate": 1e-3, "temperature": 0.1, "log_every": 1, "max_length": 32}
PRETRAIN = {**SHARED, "batch_size": 8, "projection_dim": 24, "matryoshka_dims": [8, 24]}
FINETUNE = {**SHARED, "retrieval_batch": 8, "sts_batch": 6, "matryoshka_dims": [16, 32], "negatives": 4}
EASILY = HardNegativeMining(check_every=4, factor=1.0, ceiling=2.0)  # half the queries change windows at a check
PLAIN = {"steps": 8, "warmup": 0.25, "weight_decay": 0.5, "gradient_clipping": 0.7}
SHORT = {"steps": 5}
LONG = {"steps": 28, "checkpoint_every": 7}
REFRESHED = {**FINETUNE, "steps": 18, "checkpoint_every": 5}
RERANK = EASILY.model_copy(update={"refresh": "rerank", "factor": 0.95})
HALFWAY = 9
"""The step after which a run is stopped; the DHNM check at step 8 is not yet in its last checkpoint."""
REMINE = EASILY.model_copy(update={"refresh": "remine", "remine_every": 6})

EACH = HardNegativeMining(policy="v2", factor=1.0, ceiling=2.0, floor=0.92)


def job_of(corpus: Path, tiny: Path, settings: OptimizerSettings) -> Job:
    """Return the job that `conan train` would make."""
    shards = {kind: sorted((corpus / "convert" / kind).glob("*.parquet")) for kind in ("pretrain", "retrieval", "sts")}
    if isinstance(settings, PretrainSettings):
        return make_job(corpus, "pretrain", str(tiny), settings, {"pairs": shards["pretrain"]})
    assert isinstance(settings, FinetuneSettings)
    found = {"retrieval": shards["retrieval"], "sts": shards["sts"] if settings.sts_batch else []}
    return make_job(corpus, "finetune", str(tiny), settings, found, pools="the pools")


def log_of(job: Job) -> list[dict[str, Any]]:
    """Return the steps in a run's log, without values that depend on the clock."""
    lines = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "tokens_per_second"} for line in lines if "loss" in line]


def losses_of(job: Job) -> list[float]:
    return [line["loss"] for line in log_of(job)]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("model.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def replacements(job: Job) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(job.corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute("FROM replacements ORDER BY ALL").fetchall()


def windows(job: Job) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(job.corpus / "pools.duckdb"), read_only=True) as connection:
        return connection.execute("FROM windows ORDER BY ALL").fetchall()


RUNS: dict[str, tuple[OptimizerSettings, int]] = {
    "pretrain": (PretrainSettings(**PRETRAIN, **LONG), 1),
    "finetune": (FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY), 1),
    "finetune on two": (FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY), 2),
    "plain": (PretrainSettings(**PRETRAIN, **PLAIN), 1),
    "recomputed": (PretrainSettings(**PRETRAIN, **PLAIN, gradient_checkpointing=True), 1),
    "zero 0, chunked": (FinetuneSettings(**FINETUNE, **SHORT, zero_stage=0, gradcache_tokens=64), 2),
    "zero 1": (FinetuneSettings(**FINETUNE, **SHORT, zero_stage=1), 2),
    "zero 2": (FinetuneSettings(**FINETUNE, **SHORT, zero_stage=2), 2),
    "zero 3": (
        FinetuneSettings(**FINETUNE, **SHORT, zero_stage=3, gradcache_tokens=128, validation=Validation(every=5)),
        2,
    ),
    "zero 3, bf16": (
        FinetuneSettings(
            **FINETUNE, **SHORT, zero_stage=3, gradcache_tokens=128, precision="bf16", gradient_checkpointing=True
        ),
        2,
    ),
    "chunked": (FinetuneSettings(**FINETUNE, **SHORT, gradcache_tokens=64, cbb_partition="per_task"), 2),
    "bf16": (PretrainSettings(**PRETRAIN, steps=3, precision="bf16"), 2),
    "validated": (
        PretrainSettings(
            **{**PRETRAIN, "learning_rate": 0.03},
            steps=8,
            learn_temperature=True,
            gradcache_tokens=64,
            track=["tensorboard"],
            validation=Validation(every=2, queries=20),
        ),
        2,
    ),
    "in turn": (FinetuneSettings(**FINETUNE, steps=6, alternate_tasks=True), 2),
    "no sentences": (FinetuneSettings(**{**FINETUNE, "sts_batch": 0}, steps=3), 1),
    "rerank": (FinetuneSettings(**REFRESHED, hard_negative_mining=RERANK), 1),
    "rerank on two": (FinetuneSettings(**REFRESHED, hard_negative_mining=RERANK, zero_stage=0), 2),
    "remine on two": (FinetuneSettings(**REFRESHED, hard_negative_mining=REMINE), 2),
    "v2": (FinetuneSettings(**REFRESHED, hard_negative_mining=EACH), 1),
    "v2 on two, killed": (
        FinetuneSettings(**REFRESHED, hard_negative_mining=EACH, gradcache_tokens=64, cbb_partition="per_task"),
        2,
    ),
    "pretrain, killed": (PretrainSettings(**PRETRAIN, **LONG), 1),
    "finetune on two, killed": (FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY), 2),
    "finetune on two, stopped": (FinetuneSettings(**FINETUNE, **LONG, hard_negative_mining=EASILY), 2),
    "rerank, killed": (FinetuneSettings(**REFRESHED, hard_negative_mining=RERANK, zero_stage=0), 2),
    "remine, killed": (FinetuneSettings(**REFRESHED, hard_negative_mining=REMINE), 2),
    "gradients, lost": (
        FinetuneSettings(**{**FINETUNE, "learning_rate": 1e30}, steps=9, warmup=0.0, gradient_clipping=0.0),
        2,
    ),
}
"""Killed or stopped runs are started again; runs that lose something end with exit code 1."""


class Runs(dict[str, Job]):
    """The runs above, each made when a test first needs it; if it fails, only those tests fail."""

    def __init__(self, base: Path, corpus: Path, tiny: Path) -> None:
        self.base, self.corpus, self.tiny = base, corpus, tiny
        self.failed: dict[str, Exception] = {}

    def __missing__(self, name: str) -> Job:
        if name in self.failed:
            raise self.failed[name]
        try:
            self[name] = train(Path(shutil.copytree(self.corpus, self.base / name)), self.tiny, name)
        except Exception as error:
            self.failed[name] = error
            raise
        return self[name]


def train(corpus: Path, tiny: Path, name: str) -> Job:
    """Make a run in its own corpus."""
    settings, processes = RUNS[name]
    job = job_of(corpus, tiny, settings)
    job.folder.mkdir(parents=True)
    job.file.write_text(job.model_dump_json())
    ended = name.rpartition(", ")[2]
    if ended in ("killed", "stopped"):
        codes = run_ranks(job, processes, signal.SIGKILL if ended == "killed" else signal.SIGTERM)
        steps = [int(place.name.removeprefix("step-")) for place in job.checkpoints]
        found = {"codes": codes, "checkpoints": steps, "logged": log_of(job)[-1]["step"]}
        (job.folder / "ended.json").write_text(json.dumps(found))
        (job.folder / "checkpoints" / ".step-00000099.tmp").mkdir()  # incomplete, as after a kill while saving
    assert set(run_ranks(job, processes)) == {1 if ended == "lost" else 0}, (corpus / "output").read_text("utf-8")
    return job


def run_ranks(job: Job, processes: int, ended: signal.Signals | None = None) -> list[int | None]:
    """Run the ranks of a job and return their exit codes; a signal, if given, ends all of them halfway."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    common = {**master, "WORLD_SIZE": str(processes), "TORCH_EXTENSIONS_DIR": str(job.corpus / "extensions")}
    ranks = []
    for rank in range(processes):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "CONAN_DEBUG": "1"}
        ranks.append(forks.start(forks.train, str(job.file), output=job.corpus / "output", environment=own))
    if ended:
        wait_until(lambda: losses_logged(job) >= HALFWAY or any(rank.exitcode is not None for rank in ranks))
        for rank in ranks:
            assert rank.pid
            os.kill(rank.pid, ended)
    return forks.exit_codes(ranks)


def losses_logged(job: Job) -> int:
    log = job.folder / "log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0
