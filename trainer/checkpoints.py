"""Checkpoints: written atomically, and complete enough that a resumed run is the same as an uninterrupted one."""

import json
import os
import shutil
import time
from typing import Any, NoReturn

import numpy as np
import torch.distributed as dist

from ..pipeline.corpus.atomic import commit, write_text
from .dhnm.miner import HardNegativeMiner
from .job import Job, TrainingError, check_processes
from .launch.shipped_job import STATE, folder_rank, put_checkpoint, put_results
from .loss.cbb import Batch


def save(engine: Any, job: Job, step: int, miner: HardNegativeMiner | None) -> None:
    """Save weights, optimizer and DHNM's state under a temporary name; rename it once all ranks have written.

    Where machines share no folder, each has the files of its own ranks, and they are put together in the store.
    """
    folder = job.folder / "checkpoints"
    place, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if folder_rank() == 0:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    dist.barrier()
    # A checkpoint of LoRA leaves the frozen weights out: they are those of the model that the run starts from.
    lora = job.settings.lora is not None
    engine.save_checkpoint(str(folder), tag=temporary.name, save_latest=False, exclude_frozen_parameters=lora)
    if dist.get_rank() == 0:
        if miner is not None:
            miner.write(step, whole=False)
            np.savez(temporary / "windows.npz", **miner.state())
        state = {"step": step, "world_size": dist.get_world_size(), "fingerprint": job.fingerprint}
        (temporary / STATE).write_text(json.dumps(state), "utf-8")
    dist.barrier()
    if folder_rank() == 0:
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        commit(temporary, place)
        for old in job.checkpoints[: -job.settings.keep_checkpoints]:
            shutil.rmtree(old)
    dist.barrier()
    put_checkpoint(job, place)


def resume(engine: Any, job: Job, miner: HardNegativeMiner | None) -> int:
    """Load the last checkpoint, if any; return its step, or 0 for a fresh start.

    Raises:
        TrainingError: the checkpoint was saved by a different number of processes.
    """
    check_processes(job, dist.get_world_size())
    step = 0
    if found := job.checkpoints:
        whole = job.settings.lora is None
        engine.load_checkpoint(str(found[-1].parent), tag=found[-1].name, load_module_strict=whole)
        step = int(json.loads((found[-1] / STATE).read_text("utf-8"))["step"])
        if miner is not None:
            with np.load(found[-1] / "windows.npz") as arrays:
                miner.restore(dict(arrays))
    if miner is not None and dist.get_rank() == 0:
        miner.write(step)
    return step


def finish(job: Job, step: int, miner: HardNegativeMiner | None) -> None:
    """Mark the run as done (rank 0) once DHNM's log is complete in pools.duckdb.

    Raises:
        TrainingError: another process has kept pools.duckdb open for a minute.
    """
    for _ in range(60):
        if miner is None or miner.write(step):
            break
        time.sleep(1)
    else:
        raise TrainingError(f"{job.corpus / 'pools.duckdb'} is open in another process; close it and try again")
    write_text(job.done, job.fingerprint)


def give_up(job: Job, step: int, batch: Batch) -> NoReturn:
    """Stop a run whose gradients stay NaN or infinite: rank 0 saves the batch, then every rank raises.

    Raises:
        TrainingError: always; the message names the file with the batch.
    """
    file = job.folder / "nonfinite_batch.json"
    if dist.get_rank() == 0:
        tensors = {name: value.tolist() for name, value in vars(batch).items() if name != "texts"}
        tensors = json.loads(json.dumps(tensors), parse_constant=lambda _: None)  # JSON has no NaN
        write_text(file, json.dumps({"step": step, "texts": batch.texts} | tensors, ensure_ascii=False))
        put_results(job)
    dist.barrier()  # the first rank to raise ends the others, so wait until the batch is saved
    raise TrainingError(
        f"gradients were NaN or infinite at step {step} and the steps before it; its batch is in {file}; try a lower "
        "learning_rate or a higher temperature"
    )
