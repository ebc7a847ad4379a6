"""Start the processes of a training run, here, on several machines or on a cluster, and end them together."""

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...pipeline.corpus.atomic import write_text
from ...pipeline.engine.calls import ATTEMPTS, cores
from ..job import Job, TrainingError, check_processes
from . import hosts
from .hosts import LOST, STOPPED, Cluster, Host, Process
from .shipped_job import delete_checkpoints, list_saved, ship_job, take_results

_ENVIRONMENT = {
    # Huge pages for large tensors: without them, page faults take a tenth of each step on a CPU.
    "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "1"),
    # Keeps a torch.py in the working directory from being imported.
    "PYTHONSAFEPATH": "1",
}


def run_job(job: Job, where: int | Sequence[Host] | Cluster) -> bool:
    """Train with this many processes on this machine, on hosts or on a cluster.

    A killed run continues from its last checkpoint. Returns False if the same run is complete already. A different run
    of this name is renamed to NAME.before (replacing an older one) if it has saved anything, else deleted. The run's
    job.json is written first, so another launcher, such as torchrun, can continue the run.

    On SIGTERM, the processes finish their current step and save a checkpoint. A run on a cluster that loses a node
    starts its processes again.

    Raises:
        TrainingError: a process failed (it has printed why), the run was asked to stop, or the number of processes has
            changed since the run was started.
        HostError: a host can't be reached.
        ClusterError: the cluster can't be reached, or has too few GPUs.
    """
    if job.model_folder.is_dir() and job.done.exists() and job.done.read_text("utf-8") == job.fingerprint:
        shutil.rmtree(job.data, ignore_errors=True)  # left if a run was killed just before this
        delete_checkpoints(job)  # as above
        return False
    if job.folder.exists() and _fingerprint(job.file) != job.fingerprint:
        if job.checkpoints or job.model_folder.is_dir():
            shutil.rmtree(job.before, ignore_errors=True)
            job.folder.rename(job.before)
        else:  # nothing worth keeping: the run failed at its start
            shutil.rmtree(job.folder)
    count = count_processes(where)
    check_processes(job, count)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(job.file, job.model_dump_json(indent=1))
    command = ["-m", "conan_embedding.trainer.train", str(job.file)]
    if isinstance(where, Cluster):
        _run_on_cluster(job, where, count, command)
    else:
        places = [Host(hosts.LOOPBACK[0], where)] if isinstance(where, int) else where
        _run_on_hosts(job, places, [sys.executable, *command])
    return True


def count_processes(where: int | Sequence[Host] | Cluster) -> int:
    """Return how many processes a run has. Raises ClusterError if the cluster can't be reached."""
    if isinstance(where, Cluster):
        from .cluster import count_places

        return count_places(where)
    return where if isinstance(where, int) else sum(host.slots for host in where)


def _run_on_hosts(job: Job, places: Sequence[Host], command: Sequence[str]) -> None:
    """Run all ranks, numbered host by host."""
    located = [(host, place) for host in places for place in range(host.slots)]
    here = sum(host.slots for host in places if hosts.is_here(host.name))
    busiest = max(here, *(host.slots for host in places))
    master, port = hosts.rendezvous(places)
    common = {
        **_ENVIRONMENT,
        "OMP_NUM_THREADS": hosts.count_threads(cores(), busiest),
        "WORLD_SIZE": str(len(located)),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
    }
    if here and not torch.accelerator.is_available():
        common["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")  # avoids a warning from DeepSpeed

    def start() -> Iterator[Process]:
        for rank, (host, place) in enumerate(located):
            own = {"RANK": str(rank), "LOCAL_RANK": str(place), "LOCAL_WORLD_SIZE": str(host.slots)}
            yield hosts.start(host.name, command, common | own)

    names = [f"{number} on {host.name}" if len(places) > 1 else str(number) for number, (host, _) in enumerate(located)]
    _end_together(job, names, start())


def _run_on_cluster(job: Job, cluster: Cluster, count: int, command: Sequence[str]) -> None:
    """Run all ranks where Ray places them, again and again if nodes are lost.

    Raises TrainingError if ATTEMPTS nodes are lost without a new checkpoint between.
    """
    from .cluster import started

    losses: Counter[str] = Counter()
    while True:
        shipment = ship_job(job)
        with started(cluster, count, command, _ENVIRONMENT, shipment) as (ranks, addresses):
            names = [f"{number} on {address}" for number, address in enumerate(addresses)]
            try:
                _end_together(job, names, ranks)
                take_results(job)
                return
            except _LostNodeError as error:
                saved = list_saved(job)
                last = saved[-1] if saved else "the start"
                losses[last] += 1
                if losses[last] == ATTEMPTS:
                    raise TrainingError(
                        f"{error}, {ATTEMPTS} times without a new checkpoint; run the same command to continue from "
                        f"{last}"
                    ) from error
                print(f"{error}; training continues from {last}", file=sys.stderr)


class _LostNodeError(Exception):
    """The node of a process was lost, or Ray has killed the process."""


def _end_together(job: Job, names: Sequence[str], starting: Iterable[Process]) -> None:
    """Start processes and wait until all have succeeded or one has failed; then kill the others."""
    ranks: list[Process] = []

    def pass_on(number: int, _: Any) -> None:
        for each in ranks:
            hosts.send(each, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        ranks.extend(starting)
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
    if LOST in codes:  # whichever process noticed first
        raise _LostNodeError(f"lost the node of training process {names[codes.index(LOST)]}")
    if STOPPED in codes and (saved := list_saved(job)):
        place = job.folder / "checkpoints" / saved[-1]
        raise TrainingError(
            f"training was asked to stop and saved its step in {place}; run the same command to continue"
        )
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
