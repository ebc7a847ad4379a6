"""Starts the processes of a training run, here or on several machines, and ends them together."""

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
    """Train in so many processes of this machine, or of several; a killed run goes on from its last checkpoint.

    Returns False where the very same run had ended already. Another run of this name is set aside as NAME.before, if it
    has saved anything, in place of one that was there. The run's job.json is there from the beginning: another
    launcher, as torchrun, may take it over.

    SIGTERM lets the processes end the step they are in and save it.

    Raises:
        TrainingError: a process failed (what it printed stands above), the run was asked to stop, or the number of
            processes has changed meanwhile.
        HostError: a host can't be reached.
    """
    places = [Host(hosts.LOOPBACK[0], processes)] if isinstance(processes, int) else processes
    if job.model_folder.is_dir() and job.done.exists() and job.done.read_text("utf-8") == job.fingerprint:
        shutil.rmtree(job.data, ignore_errors=True)  # where it was killed just before that
        return False
    if job.folder.exists() and _fingerprint(job.file) != job.fingerprint:
        if job.checkpoints or job.model_folder.is_dir():
            shutil.rmtree(job.before, ignore_errors=True)
            job.folder.rename(job.before)
        else:  # nothing to come back to, as of a run that failed at its start
            shutil.rmtree(job.folder)
    check_processes(job, sum(host.slots for host in places))
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(job.file, job.model_dump_json(indent=1))
    _run_processes(job, places)
    return True


def _run_processes(job: Job, places: Sequence[Host]) -> None:
    """Run the ranks, host after host, until all have ended well, or one has not: then the others are ended too."""
    located = [(host, place) for host in places for place in range(host.slots)]
    here = sum(host.slots for host in places if hosts.is_here(host.name))
    busiest = max(here, *(host.slots for host in places))
    master, port = hosts.rendezvous(places)
    common = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // busiest)),
        # Huge pages for large tensors: without them, page faults cost a CPU a tenth of each step.
        "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "1"),
        # A torch.py in the folder that the command was started in is not imported.
        "PYTHONSAFEPATH": "1",
        "WORLD_SIZE": str(len(located)),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
    }
    if here and not torch.accelerator.is_available():
        common["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns of it
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
                hosts.end(each)  # SIGTERM would let it wait for the others at the end of its step
        codes = [each.wait() for each in ranks]
        signal.signal(signal.SIGTERM, before)
        Console(stderr=True).show_cursor()  # a process that was ended in the middle of its progress bar left it hidden
    if STOPPED in codes and job.checkpoints:
        raise TrainingError(
            f"training was asked to stop; its step is saved in {job.checkpoints[-1]}, where the same command goes on"
        )
    names = [f"{number} on {host.name}" if len(places) > 1 else str(number) for number, (host, _) in enumerate(located)]
    ends = ", ".join(
        f"{names[number]} was killed by signal {-codes[number]}"
        if codes[number] < 0
        else f"{names[number]} ended with exit code {codes[number]}"
        for number in failed
    )
    raise TrainingError(
        f"of {len(ranks)} training processes (counted from 0), {ends}; what went wrong stands above. The same command "
        f"goes on from the last checkpoint in {job.folder / 'checkpoints'}"
    )


def _fingerprint(file: Path) -> str:
    try:
        return Job.model_validate_json(file.read_text("utf-8")).fingerprint
    except (OSError, ValueError):
        return ""
