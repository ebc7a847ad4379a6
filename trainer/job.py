"""The description of a training run, kept as one file: model, shards, settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..pipeline.corpus.folder import fingerprint, read_footer
from ..pipeline.encoder.model_folder import find_model, weights_fingerprint
from ..pipeline.plugins import loaded_plugins
from ..schemas.errors import ConanError
from ..schemas.settings import SourcePrompts
from ..schemas.training_settings import FinetuneSettings, PretrainSettings

VERSION = 5


class TrainingError(ConanError):
    """Training failed or can't start; the message says why and what to do."""


class Job(BaseModel):
    """One run of one training stage. Its folder is `CORPUS/train/NAME`."""

    model_config = ConfigDict(frozen=True)

    corpus: Path
    name: str
    model: str
    settings: PretrainSettings | FinetuneSettings
    shards: dict[str, list[Path]]
    fingerprint: str
    source_prompts: dict[str, SourcePrompts] = {}
    set_prompts: dict[str, SourcePrompts] = {}  # of evaluation sets, for validation
    query_only_sources: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder: log, checkpoints and the trained model."""
        return self.corpus / "train" / self.name

    @property
    def before(self) -> Path:
        """Where an earlier, different run of the same name is moved."""
        return self.folder.with_name(f"{self.name}.before")

    @property
    def file(self) -> Path:
        """The file with this job, which the training processes read."""
        return self.folder / "job.json"

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*"))

    @property
    def model_folder(self) -> Path:
        """The trained model, in the layout of sentence-transformers."""
        return self.folder / "model"

    @property
    def data(self) -> Path:
        """The training data, in files that are read by row; deleted at the end of the run."""
        return self.folder / "data"

    @property
    def best_folder(self) -> Path:
        """The model that scored best on the validation sets, if there are any."""
        return self.folder / "best"

    @property
    def done(self) -> Path:
        """A file that exists once the run has ended successfully."""
        return self.folder / "done"


def make_job(
    corpus: Path,
    name: str,
    model: str,
    settings: PretrainSettings | FinetuneSettings,
    shards: dict[str, list[Path]],
    pools: str | None = None,
    source_prompts: Mapping[str, SourcePrompts] = {},
    set_prompts: Mapping[str, SourcePrompts] = {},
    query_only_sources: Sequence[str] = (),
) -> Job:
    """Build a job, with a fingerprint of everything that decides its result: weights, settings, data, pools, prompts.

    The fingerprint leaves out settings that only decide what is logged or saved, or how a step is computed, so a run
    that ran out of memory can continue with a smaller `gradcache_tokens`.

    Raises:
        ModelError: the model does not exist.
        TrainingError: the model is one that this job would overwrite.
    """
    content = {kind: [read_footer(shard).content for shard in each] for kind, each in shards.items()}
    kept = {"checkpoint_every", "keep_checkpoints", "log_every", "validation", "track"}
    computed = {"gradcache_tokens", "gradient_checkpointing", "compile"}
    decisive = settings.model_dump(mode="json", exclude={"model", *kept, *computed})
    decisive |= {"source_prompts": {name: own.model_dump() for name, own in sorted(source_prompts.items())}}
    decisive |= {"query_only_sources": sorted(query_only_sources)}
    place = Path(model).resolve()
    job = Job(
        corpus=corpus.resolve(),
        name=name,
        model=str(place) if place.is_dir() else model,
        settings=settings,
        shards={kind: [shard.resolve() for shard in each] for kind, each in shards.items()},
        source_prompts=dict(source_prompts),
        set_prompts=dict(set_prompts),
        query_only_sources=tuple(query_only_sources),
        plugins=loaded_plugins(),
        fingerprint=fingerprint(
            "train", VERSION, name, weights_fingerprint(find_model(model)), decisive, content, pools
        ),
    )
    if place.is_relative_to(job.folder) or place.is_relative_to(job.before):
        raise TrainingError(f"{name} can't start from its own result, {model}; copy the model elsewhere and use that")
    return job


def check_processes(job: Job, processes: int) -> None:
    """Raise TrainingError if the last checkpoint was saved by a different number of processes (each saves its part)."""
    if not job.checkpoints:
        return
    last = job.checkpoints[-1]
    before = json.loads((last / "state.json").read_text("utf-8"))["world_size"]
    if before != processes:
        raise TrainingError(
            f"{last} was saved by {before} processes and this run has {processes}; run with --nproc {before} (or that "
            f"many slots in --hostfile), or remove {job.folder} to start over"
        )


def check_dimensions(stage: str, model: str, matryoshka_dims: Sequence[int], width: int) -> None:
    """Raise TrainingError if a stage's `matryoshka_dims` has a value above the width of the model's vectors."""
    if beyond := [each for each in matryoshka_dims if each > width]:
        raise TrainingError(
            f"the vectors of {model} have {width} dimensions, but {stage}.matryoshka_dims lists {beyond[0]}; "
            f"list only values up to {width}"
        )
