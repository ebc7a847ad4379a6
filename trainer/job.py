"""A training run as one file: what to train, on which shards, with which settings; and its processes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..pipeline.corpus import fingerprint, read_footer, write_text
from ..pipeline.encoder import find_model, weights_fingerprint
from ..schemas.settings import FinetuneSettings, PretrainSettings

VERSION = 1


class TrainingError(RuntimeError):
    """Training did not end well: says which process failed and where to look."""


class Job(BaseModel):
    """One run of one stage of training. Its folder is `corpus/train/NAME`."""

    model_config = ConfigDict(frozen=True)

    corpus: Path
    name: str
    model: str
    settings: PretrainSettings | FinetuneSettings
    shards: dict[str, list[Path]]
    fingerprint: str

    @property
    def folder(self) -> Path:
        """Log, checkpoints and the trained model."""
        return self.corpus / "train" / self.name

    @property
    def model_folder(self) -> Path:
        """The trained model, in the layout of sentence-transformers."""
        return self.folder / "model"

    @property
    def done(self) -> Path:
        """There once the run has ended well."""
        return self.folder / "done"


def make_job(
    corpus: Path,
    name: str,
    model: str,
    settings: PretrainSettings | FinetuneSettings,
    shards: dict[str, list[Path]],
    pools: str | None = None,
) -> Job:
    """A job with the fingerprint of all that decides its result: weights, settings, data, pools."""
    content = {kind: [read_footer(shard).content for shard in each] for kind, each in shards.items()}
    cosmetic = {"model", "checkpoint_every", "keep_checkpoints", "log_every"}
    decisive = settings.model_dump(mode="json", exclude=cosmetic)
    return Job(
        corpus=corpus.resolve(),
        name=name,
        model=model,
        settings=settings,
        shards={kind: [shard.resolve() for shard in each] for kind, each in shards.items()},
        fingerprint=fingerprint(
            "train", VERSION, name, weights_fingerprint(find_model(model)), decisive, content, pools
        ),
    )


def run_job(job: Job, processes: int) -> bool:
    """Train in `processes` processes of this machine; a run that was killed goes on from its last checkpoint.

    Returns False where the very same run had ended already. A folder of another run of this name is replaced.

    Raises:
        TrainingError: a process failed; what it printed stands above.
    """
    if job.done.exists() and job.done.read_text("utf-8") == job.fingerprint:
        return False
    file = job.folder / "job.json"
    if job.folder.exists() and not (file.exists() and _fingerprint(file) == job.fingerprint):
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(file, job.model_dump_json(indent=1))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # started by torchrun: this is one of the processes
        from .train import main

        main(job)
    else:
        _run_processes(file, processes)
    return True


def _fingerprint(file: Path) -> str:
    try:
        return Job.model_validate_json(file.read_text("utf-8")).fingerprint
    except ValueError:
        return ""


def _run_processes(file: Path, processes: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "DS_LOG_LEVEL": os.environ.get("DS_LOG_LEVEL", "ERROR"),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "conan_embedding.trainer.train", str(file)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                break
            time.sleep(0.1)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
    failed = [(number, rank.wait()) for number, rank in enumerate(ranks) if rank.wait() != 0]
    if failed:
        number, code = failed[0]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise TrainingError(
            f"training process {number} of {processes} {how}; the same command goes on from the last checkpoint in "
            f"{file.parent / 'checkpoints'}"
        )
