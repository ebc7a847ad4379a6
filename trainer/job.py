"""A training run as one file: what to train, on which shards, with which settings."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..pipeline.corpus.folder import fingerprint, read_footer
from ..pipeline.encoder.model_folder import find_model, weights_fingerprint
from ..pipeline.plugins import loaded_plugins
from ..schemas.errors import ConanError
from ..schemas.training_settings import FinetuneSettings, PretrainSettings

VERSION = 3


class TrainingError(ConanError):
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
    plugins: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Log, checkpoints and the trained model."""
        return self.corpus / "train" / self.name

    @property
    def before(self) -> Path:
        """Where another run of this name is set aside."""
        return self.folder.with_name(f"{self.name}.before")

    @property
    def file(self) -> Path:
        """The job itself, as its processes read it."""
        return self.folder / "job.json"

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that are whole, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    @property
    def model_folder(self) -> Path:
        """The trained model, in the layout of sentence-transformers."""
        return self.folder / "model"

    @property
    def data(self) -> Path:
        """The texts it trains on, laid out to be read by rows; gone when the run has ended."""
        return self.folder / "data"

    @property
    def best_folder(self) -> Path:
        """The model that did best on the validation sets, where there are any."""
        return self.folder / "best"

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
    """A job with the fingerprint of all that decides its result: weights, settings, data, pools.

    Settings of what is kept of a run, or of how a step is computed, are not among them: a run that lacked memory
    goes on with smaller chunks.

    Raises:
        ModelError: no such model.
        TrainingError: the model is the one that this job would replace.
    """
    content = {kind: [read_footer(shard).content for shard in each] for kind, each in shards.items()}
    kept = {"checkpoint_every", "keep_checkpoints", "log_every", "validation", "tensorboard"}
    computed = {"gradcache_tokens", "gradient_checkpointing", "compile"}
    decisive = settings.model_dump(mode="json", exclude={"model", *kept, *computed})
    place = Path(model).resolve()
    job = Job(
        corpus=corpus.resolve(),
        name=name,
        model=str(place) if place.is_dir() else model,
        settings=settings,
        shards={kind: [shard.resolve() for shard in each] for kind, each in shards.items()},
        plugins=loaded_plugins(),
        fingerprint=fingerprint(
            "train", VERSION, name, weights_fingerprint(find_model(model)), decisive, content, pools
        ),
    )
    if place.is_relative_to(job.folder) or place.is_relative_to(job.before):
        raise TrainingError(f"{name} can't start from its own result, {model}: copy that elsewhere and name the copy")
    return job


def check_processes(job: Job, processes: int) -> None:
    """Raise TrainingError where the last checkpoint was made by another number of processes: each holds its part."""
    if not job.checkpoints:
        return
    last = job.checkpoints[-1]
    before = json.loads((last / "state.json").read_text("utf-8"))["world_size"]
    if before != processes:
        raise TrainingError(
            f"{last} was saved by {before} processes and this run has {processes}; run with --nproc {before} (or as "
            f"many slots in --hostfile), or remove {job.folder} to start anew"
        )


def check_dimensions(job: Job, width: int) -> None:
    """Raise TrainingError where the loss is to look at more dimensions than the model's vectors have."""
    if beyond := [each for each in job.settings.matryoshka_dims if each > width]:
        raise TrainingError(
            f"the vectors of {job.model} have {width} dimensions, and {job.name}.matryoshka_dims names {beyond[0]}; "
            f"name some of at most {width}"
        )
