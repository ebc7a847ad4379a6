"""Runs of training that several files of tests look at, and the program that makes them: it loads DeepSpeed once."""

import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
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
EASILY = HardNegativeMining(check_every=4, factor=1.0, ceiling=2.0)  # half the queries move at a check
PLAIN = {"steps": 8, "warmup": 0.25, "weight_decay": 0.5, "gradient_clipping": 0.7}
LONG = {"steps": 40, "checkpoint_every": 10}
REFRESHED = {**FINETUNE, "steps": 24, "checkpoint_every": 5}
RERANK = EASILY.model_copy(update={"refresh": "rerank", "factor": 0.95})
REMINE = EASILY.model_copy(update={"refresh": "remine", "remine_every": 6})


def job_of(corpus: Path, tiny: Path, settings: OptimizerSettings) -> Job:
    """The job that `conan train` would make."""
    shards = {kind: sorted((corpus / "convert" / kind).glob("*.parquet")) for kind in ("pretrain", "retrieval", "sts")}
    if isinstance(settings, PretrainSettings):
        return make_job(corpus, "pretrain", str(tiny), settings, {"pairs": shards["pretrain"]})
    assert isinstance(settings, FinetuneSettings)
    found = {"retrieval": shards["retrieval"], "sts": shards["sts"] if settings.sts_batch else []}
    return make_job(corpus, "finetune", str(tiny), settings, found, pools="the pools")


def log_of(job: Job) -> list[dict[str, Any]]:
    """The steps in a run's log, without what depends on the clock."""
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
    "zero 0, chunked": (FinetuneSettings(**FINETUNE, steps=8, zero_stage=0, gradcache_tokens=64), 2),
    "zero 1": (FinetuneSettings(**FINETUNE, steps=8, zero_stage=1), 2),
    "zero 2": (FinetuneSettings(**FINETUNE, steps=8, zero_stage=2), 2),
    "zero 3": (
        FinetuneSettings(**FINETUNE, steps=8, zero_stage=3, gradcache_tokens=64, validation=Validation(every=8)),
        2,
    ),
    "zero 3, bf16": (
        FinetuneSettings(
            **FINETUNE, steps=8, zero_stage=3, gradcache_tokens=64, precision="bf16", gradient_checkpointing=True
        ),
        2,
    ),
    "chunked": (FinetuneSettings(**FINETUNE, steps=8, gradcache_tokens=64, cbb_partition="per_task"), 2),
    "bf16": (PretrainSettings(**PRETRAIN, steps=3, precision="bf16"), 2),
    "validated": (
        PretrainSettings(
            **{**PRETRAIN, "learning_rate": 0.03},
            steps=8,
            learn_temperature=True,
            gradcache_tokens=64,
            tensorboard=True,
            validation=Validation(every=2, queries=20),
        ),
        2,
    ),
    "in turn": (FinetuneSettings(**FINETUNE, steps=6, alternate_tasks=True), 2),
    "no sentences": (FinetuneSettings(**{**FINETUNE, "sts_batch": 0}, steps=3), 1),
    "rerank": (FinetuneSettings(**REFRESHED, hard_negative_mining=RERANK), 1),
    "rerank on two": (FinetuneSettings(**REFRESHED, hard_negative_mining=RERANK, zero_stage=0), 2),
    "remine on two": (FinetuneSettings(**REFRESHED, hard_negative_mining=REMINE), 2),
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
"""Those that are killed, or asked to stop, are started again; those that lose something end with exit code 1."""

LOADED = (
    *("faiss", "numba", "pandas", "setuptools"),
    *("torch._inductor.compile_fx", "transformers.models.bert.modeling_bert"),
)
"""What a run imports as it goes, pyarrow and DeepSpeed for it: once here, for all of them."""


def train_all(base: Path, made_corpus: Path, tiny: Path) -> None:
    arguments = []
    for name, (settings, processes) in RUNS.items():
        job = job_of(Path(shutil.copytree(made_corpus, base / name)), tiny, settings)
        job.folder.mkdir(parents=True)
        job.file.write_text(job.model_dump_json())
        ended = {"killed": "KILL", "stopped": "TERM", "lost": "exit"}.get(name.rpartition(", ")[2], "")
        arguments.append(f"{job.file}@{processes}@{ended}")
    (base / "extensions").mkdir()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(base / "extensions")}
    environment |= {"OMP_NUM_THREADS": "1", "CONAN_DEBUG": "1"}
    program = [sys.executable, __file__, *arguments]
    assert subprocess.run(program, env=environment, check=False).returncode == 0


def losses_logged(job: Job) -> int:
    return (job.folder / "log.jsonl").read_text().count('"loss"')


def run_here(job: Job, processes: int, ended: str = "") -> list[int]:
    """Exit codes of the ranks of a job, forks of this process, which has loaded all; `ended` by a signal halfway."""
    from conan_embedding.trainer.train import run

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in range(processes):
        if pid := os.fork():
            ranks.append(pid)
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        try:
            os._exit(run(job.file))
        finally:
            os._exit(1)
    if ended:  # after steps, checks of DHNM among them, that its last checkpoint does not have
        wait_until(lambda: (job.folder / "log.jsonl").exists() and losses_logged(job) >= 14)
        for pid in ranks:
            os.kill(pid, signal.Signals[f"SIG{ended}"])
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]


if __name__ == "__main__":
    for module in LOADED:
        importlib.import_module(module)
    gc.freeze()  # else a collection in a fork copies every page that it looks at
    for argument in sys.argv[1:]:
        file, count, ended = argument.rsplit("@", 2)
        job = Job.model_validate_json(Path(file).read_text())
        if ended in ("KILL", "TERM"):
            codes = run_here(job, int(count), ended)
            steps = [int(place.name.removeprefix("step-")) for place in job.checkpoints]
            found = {"codes": codes, "checkpoints": steps, "logged": log_of(job)[-1]["step"]}
            (job.folder / "ended.json").write_text(json.dumps(found))
            (job.folder / "checkpoints" / ".step-00000099.tmp").mkdir()  # half of one, of a kill while saving
        if set(run_here(job, int(count))) != {1 if ended == "exit" else 0}:
            sys.exit(f"{job.folder}: not the end that was expected")
