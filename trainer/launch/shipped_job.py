"""A training run whose corpus is at a URI, on machines that share no folder.

The driver sends the job before each start, and a machine fetches what it names into the folder that its processes
share. There, the first process does what rank 0 does in a folder that all share: it builds the data, and keeps the
checkpoints in order. Each checkpoint is put into the store, its `state.json` last: without that it is incomplete.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch.distributed as dist

from ...pipeline.corpus.atomic import write_text
from ...pipeline.corpus.pools import FILE as POOLS
from ...pipeline.corpus.uris import find_leased
from ..job import Job, TrainingError

if TYPE_CHECKING:
    from ...pipeline.corpus.mirror import Mirror
    from ...pipeline.corpus.shipping import Shipment

OWNER = "CONAN_LEASE"
"""The environment variable with the corpus's URI and the token of the driver's lease, for which processes put files."""

STATE = "state.json"
_OF_THE_MACHINE = re.compile(r"train/[^/]+/((checkpoints|data)/.*|job\.json)", re.DOTALL)


def ship_job(job: Job) -> "Shipment | None":
    """On the driver, prepare a job for other machines, with its last checkpoint; None if all share a folder.

    Other checkpoints are deleted: they are incomplete, or of another run.

    Raises:
        TrainingError: the job rebuilds pools, for which all machines must share a folder.
    """
    mirror = _find_mirror(job)
    if mirror is None:
        return None
    from ...pipeline.corpus.shipping import ship

    mining = getattr(job.settings, "hard_negative_mining", None)
    if mining is not None and mining.enabled and mining.refresh == "remine":
        raise TrainingError(
            f"{job.name}.hard_negative_mining.refresh: on a cluster, remine needs a corpus in a folder that all "
            "machines share; choose static or rerank, train on one machine, or copy the corpus to such a folder"
        )
    mirror.upload(f"train/{job.name}")
    saved = list_saved(job)
    last = tuple(path for path in mirror.remote if saved and path.startswith(f"{_checkpoint(job, saved[-1])}/"))
    others = [path for path in mirror.remote if path.startswith(f"{_checkpoint(job, '')}") and path not in last]
    mirror.delete(others)
    fetched = [job.corpus / path for path in (*_list_results(mirror, job), *last, POOLS, "evaluation", "holdout")]
    return ship(mirror, write_job, (job, fetched), uuid4().hex)


def write_job(job: Job, fetched: Iterable[Path]) -> str:
    """On another machine, write the file of a job, whose paths are those there; return its path.

    `fetched` are the files that its processes need besides.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(job.file, job.model_dump_json(indent=1))
    return str(job.file)


def list_saved(job: Job) -> list[str]:
    """On the driver, list the names of a run's complete checkpoints, oldest first."""
    mirror = _find_mirror(job)
    if mirror is None:
        return [place.name for place in job.checkpoints]
    _list_again(mirror, job)
    saved = []
    for path in sorted(mirror.remote):
        if path.startswith(_checkpoint(job, "")) and path.endswith(f"/{STATE}"):
            state = json.loads(b"".join(mirror.store.read(path, mirror.remote[path])))
            saved += [path.split("/")[-2]] if state["fingerprint"] == job.fingerprint else []
    return saved


def take_results(job: Job) -> None:
    """On the driver, fetch what a run that has ended has put, and delete its checkpoints."""
    if mirror := _find_mirror(job):
        _list_again(mirror, job)
        mirror.receive({path: mirror.remote[path] for path in _list_results(mirror, job)})
        delete_checkpoints(job)


def delete_checkpoints(job: Job) -> None:
    """On the driver, delete the checkpoints in the store of a run that has ended."""
    if mirror := _find_mirror(job):
        mirror.delete([path for path in mirror.remote if path.startswith(_checkpoint(job, ""))])


def folder_rank() -> int:
    """Return the rank of this process among those that share its folder."""
    return int(os.environ["LOCAL_RANK"]) if OWNER in os.environ else dist.get_rank()


def put_checkpoint(job: Job, place: Path) -> None:
    """Put a checkpoint that all ranks have written, with the results so far; does nothing in a folder that all share.

    Every rank must call this. Raises LeaseLostError if the driver no longer holds the lock of the corpus.
    """
    if OWNER not in os.environ:
        return
    folder = _checkpoint(job, place.name)
    if folder_rank() == 0:
        _put(f"{folder}/{file.name}" for file in place.iterdir() if file.name != STATE)
    dist.barrier()
    if dist.get_rank() == 0:
        from ...pipeline.corpus.shipping import keep_only

        put_results(job)
        _put([f"{folder}/{STATE}"])
        keep_only(*_read_owner(), _checkpoint(job, "").rstrip("/"), place.name)
    dist.barrier()


def put_results(job: Job) -> None:
    """Put what rank 0 has written besides checkpoints; does nothing in a folder that all share."""
    if OWNER in os.environ:
        files = (file.relative_to(job.corpus).as_posix() for file in job.folder.rglob("*") if file.is_file())
        _put([*(path for path in files if not _OF_THE_MACHINE.fullmatch(path) and "/." not in path), POOLS])


def _put(paths: Iterable[str]) -> None:
    from ...pipeline.corpus.shipping import put

    put(*_read_owner(), paths)


def _read_owner() -> tuple[str, str]:
    uri, _, token = os.environ[OWNER].rpartition(" ")
    return uri, token


def _find_mirror(job: Job) -> "Mirror | None":
    mirror = find_leased()
    return mirror if mirror is not None and mirror.folder == job.corpus else None


def _list_again(mirror: "Mirror", job: Job) -> None:
    mirror.list_again(f"train/{job.name}")
    if pools := mirror.store.find(POOLS):
        mirror.remote[POOLS] = pools


def _checkpoint(job: Job, name: str) -> str:
    return f"train/{job.name}/checkpoints/{name}"


def _list_results(mirror: "Mirror", job: Job) -> list[str]:
    """List what the store has of a run besides checkpoints, and the pools, into which it writes."""
    own = [path for path in mirror.remote if path == POOLS or path.startswith(f"train/{job.name}/")]
    return [path for path in own if not _OF_THE_MACHINE.fullmatch(path)]
