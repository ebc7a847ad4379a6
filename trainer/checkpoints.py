"""Checkpoints of a run: whole or not there, and enough to go on as if nothing had happened."""

import json
import os
import shutil
import time
from typing import Any, NoReturn

import numpy as np
import torch.distributed as dist

from ..pipeline.corpus.atomic import commit, write_text
from .dhnm.miner import Mining
from .job import Job, TrainingError, check_processes
from .loss.cbb import Update


def save(engine: Any, job: Job, step: int, mining: Mining | None) -> None:
    """Save weights, optimizer and DHNM's state under a temporary name, and give it its own when all ranks are done."""
    folder = job.folder / "checkpoints"
    place, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if dist.get_rank() == 0:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=temporary.name, save_latest=False)
    if dist.get_rank() == 0:
        if mining is not None:
            mining.write(step)
            np.savez(temporary / "windows.npz", **mining.state())
        state = {"step": step, "world_size": dist.get_world_size(), "fingerprint": job.fingerprint}
        (temporary / "state.json").write_text(json.dumps(state), "utf-8")
    dist.barrier()
    if dist.get_rank() == 0:
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        commit(temporary, place)
        for old in job.checkpoints[: -job.settings.keep_checkpoints]:
            shutil.rmtree(old)
    dist.barrier()


def resume(engine: Any, job: Job, mining: Mining | None) -> int:
    """Load the last checkpoint, if any; returns its step, 0 for a fresh start.

    Raises:
        TrainingError: it was made by another number of processes.
    """
    check_processes(job, dist.get_world_size())
    step = 0
    if found := job.checkpoints:
        engine.load_checkpoint(str(found[-1].parent), tag=found[-1].name)
        step = int(json.loads((found[-1] / "state.json").read_text("utf-8"))["step"])
        if mining is not None:
            with np.load(found[-1] / "windows.npz") as arrays:
                mining.restore(dict(arrays))
    if mining is not None and dist.get_rank() == 0:
        mining.write(step)
    return step


def finish(job: Job, step: int, mining: Mining | None) -> None:
    """Mark the run as done (rank 0), once pools.duckdb has all of DHNM's log.

    Raises:
        TrainingError: somebody has kept pools.duckdb open for a minute.
    """
    for _ in range(60):
        if mining is None or mining.write(step):
            break
        time.sleep(1)
    else:
        raise TrainingError(f"{job.corpus / 'pools.duckdb'} is open in another process; close it and try again")
    write_text(job.done, job.fingerprint)


def give_up(job: Job, step: int, update: Update) -> NoReturn:
    """End a run that has no gradients any more: rank 0 keeps the update, then all raise.

    Raises:
        TrainingError: always; says where the update is.
    """
    file = job.folder / "lost_update.json"
    if dist.get_rank() == 0:
        tensors = {name: value.tolist() for name, value in vars(update).items() if name != "texts"}
        write_text(file, json.dumps({"step": step, "texts": update.texts} | tensors, ensure_ascii=False))
    dist.barrier()  # who raises first ends the others
    raise TrainingError(
        f"at step {step} and before it, the gradients were no numbers; the last update is in {file}; a lower "
        "learning_rate or a higher temperature may help"
    )
