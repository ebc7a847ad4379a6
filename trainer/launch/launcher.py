"""Start the processes of a training run, here or on several machines, and end them together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...pipeline.corpus.atomic import write_text
from ..job import Job, TrainingError, check_processes
from . import hosts
from .hosts import STOPPED, Host


def run_job(job: Job, processes: int | Sequence[Host]) -> bool:
    """Train with this many processes on this machine, or on hosts; a killed run continues from its last checkpoint.

    Returns False if the same run is complete already. A different run of this name is renamed to NAME.before (replacing
    an older one) if it has saved anything, else deleted. The run's job.json is written first, so another launcher, such
    as torchrun, can continue the run.

    On SIGTERM, the processes finish their current step and save a checkpoint.

    Raises:
        TrainingError: a process failed (it has printed why), the run was asked to stop, or the number of processes has
            changed since the run was started.
        HostError: a host can't be reached.
    """
    places = [Host(hosts.LOOPBACK[0], processes)] if isinstance(processes, int) else processes
    if job.model_folder.is_dir() and job.done.exists() and job.done.read_text("utf-8") == job.fingerprint:
        shutil.rmtree(job.data, ignore_errors=True)  # left if a run was killed just before this
        return False
    if job.folder.exists() and _fingerprint(job.file) != job.fingerprint:
        if job.checkpoints or job.model_folder.is_dir():
            shutil.rmtree(job.before, ignore_errors=True)
            job.folder.rename(job.before)
        else:  # nothing worth keeping: the run failed at its start
            shutil.rmtree(job.folder)
    check_processes(job, sum(host.slots for host in places))
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(job.file, job.model_dump_json(indent=1))
    _run_processes(job, places)
    return True


def _run_processes(job: Job, places: Sequence[Host]) -> None:
    """Run all ranks, numbered host by host, until all have succeeded or one has failed; then kill the others."""
    located = [(host, place) for host in places for place in range(host.slots)]
    here = sum(host.slots for host in places if hosts.is_here(host.name))
    busiest = max(here, *(host.slots for host in places))
    master, port = hosts.rendezvous(places)
    common = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // busiest)),
        # Huge pages for large tensors: without them, page faults take a tenth of each step on a CPU.
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "1"),
        # Keeps a torch.py in the working directory from being imported.
        "PYTHONSAFEPATH": "1",
        "WORLD_SIZE": str(len(located)),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
    }
    if here and not torch.accelerator.is_available():
        common["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")  # avoids a warning from DeepSpeed
    command = [sys.executable, "-m", "conan_embedding.trainer.train", str(job.file)]
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: Any) -> None:
        for each in ranks:
            hosts.send(each, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        for rank, (host, place) in enumerate(located):
            own = {"RANK": str(rank), "LOCAL_RANK": str(place), "LOCAL_WORLD_SIZE": str(host.slots)}
            ranks.append(hosts.start(host.name, command, common | own))
        while not (failed := [number for number, rank in enumerate(ranks) if rank.poll()]):
            if all(rank.poll() == 0 for rank in ranks):
                return
            time.sleep(0.1)
    finally:
        for each in ranks:
            if each.poll() is None:
                hosts.end(each)  # not SIGTERM, on which it would wait for the others at the end of its step
        codes = [each.wait() for each in ranks]
        signal.signal(signal.SIGTERM, before)
        Console(stderr=True).show_cursor()  # a process killed while it showed a progress bar has left it hidden
    if STOPPED in codes and job.checkpoints:
        raise TrainingError(
            f"training was asked to stop and saved its step in {job.checkpoints[-1]}; run the same command to continue"
        )
    names = [f"{number} on {host.name}" if len(places) > 1 else str(number) for number, (host, _) in enumerate(located)]
    ends = ", ".join(
        f"process {names[number]} was killed by signal {-codes[number]}"
        if codes[number] < 0
        else f"process {names[number]} ended with exit code {codes[number]}"
        for number in failed
    )
    raise TrainingError(
        f"training failed ({len(ranks)} processes, numbered from 0): {ends}; see the errors above. Run the same "
        f"command to continue from the last checkpoint in {job.folder / 'checkpoints'}"
    )


def _fingerprint(file: Path) -> str:
    try:
        return Job.model_validate_json(file.read_text("utf-8")).fingerprint
    except (OSError, ValueError):
        return ""
