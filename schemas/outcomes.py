"""Outcomes: what a command has done, as typed records. The command line shows them by their type, or prints JSON."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Summary:
    """What a data stage did, from the footers of its shards.

    `notes` are results of the stage, shown as they are. `empty_sources` are sources without a file or without a pair;
    with them, or with rejects, ingest has had `bad_input`.
    """

    stage: str
    rows_in: int = 0
    rows_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    skipped: int = 0
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    empty_sources: list[str] = field(default_factory=list)
    bad_input: bool = False


@dataclass(frozen=True)
class Trained:
    """A training run that has ended: whether it was this command that trained, and the last step that it logged."""

    stage: str
    trained: bool
    model: str
    last_step: dict[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """Metrics of models on evaluation sets: rows of model, dimension, set, metric, value."""

    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """The folder of an exported model."""

    folder: str


@dataclass(frozen=True)
class TrainingPlan:
    """What a training run would be. Memory is what a process takes at least, in megabytes."""

    settings: dict[str, Any]
    records: int
    steps: int
    texts_per_step: int
    parameters: int
    states_mb: int
    activations_mb: int


Outcome = Summary | Trained | Evaluated | Exported
