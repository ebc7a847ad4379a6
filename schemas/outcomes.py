"""Outcomes of commands as typed records. The command line prints each type in its own way, or as JSON."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class Summary:
    """The outcome of a data stage, from the footers of its shards.

    `skipped` counts the shards that an earlier run had made. `notes` are further results, printed as they are.
    `empty_sources` lists sources without a file or without a pair; if there are any, or any rejects, ingest sets
    `bad_input`.
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
    """A finished training run. `trained` is False if it was finished before; `last_step` is its last logged step."""

    stage: str
    trained: bool
    model: str
    last_step: dict[str, Any]


@dataclass(frozen=True)
class LostRow:
    """A question, pair or text of a set on which a model does worse than the baseline."""

    query_id: str
    query: str
    value: float
    baseline_value: float


@dataclass(frozen=True)
class Comparison:
    """A model's metric on a set and the baseline's, on the same `rows` questions, pairs or texts.

    `low`, `high` and `p` are from the paired bootstrap, as in `Bounds` of trainer/evaluation/paired_bootstrap.py. They
    are None where it can't tell, and `note` says why. `verdict` is `worse` if both the difference and `high` are below
    the margin, `lower` if only the difference is, `better` if `low` is above 0, else `not worse`. `lost` are the rows
    that lost most, worst first.
    """

    model: str
    baseline: str
    set: str
    metric: str
    value: float
    baseline_value: float
    difference: float
    rows: int
    low: float | None
    high: float | None
    p: float | None
    verdict: Literal["worse", "lower", "not worse", "better"]
    note: str
    lost: list[LostRow]


@dataclass(frozen=True)
class Gate:
    """What `conan evaluate` was asked to judge: comparisons with a baseline, and a message for each failure.

    `failures` is None if nothing could fail, as neither a minimum nor a margin was given. `notes` are sets that could
    not be judged, each with the reason.
    """

    comparisons: list[Comparison]
    failures: list[str] | None
    notes: list[str]


@dataclass(frozen=True)
class Evaluated:
    """Metrics of models on evaluation sets, as rows of model, dimension, precision, bytes_per_vector, set, metric and
    value; and what was judged. Rows of C-MTEB have no precision and bytes_per_vector."""

    metrics: list[dict[str, Any]]
    gate: Gate | None = None


@dataclass(frozen=True)
class Exported:
    """The folder of an exported model, and what other tools will not read of it as meant."""

    folder: str
    warnings: list[str]


@dataclass(frozen=True)
class Pushed:
    """A push to a repository of the Hugging Face hub: files with their bytes, and the card. A dry run has no URL."""

    repository: str
    kind: str
    private: bool
    files: dict[str, int]
    card: str
    url: str | None


@dataclass(frozen=True)
class TrainingPlan:
    """Size of a training run, without running it. Memory is the least that a process needs, in megabytes.

    `draws_per_record` is how often a pair or query is drawn on average.
    """

    settings: dict[str, Any]
    records: int
    steps: int
    draws_per_record: float
    texts_per_step: int
    parameters: int
    states_mb: int
    activations_mb: int
    warnings: list[str]


@dataclass(frozen=True)
class JudgingPlan:
    """The pairs that `conan judge` is about, those that its judge has not scored, and what a language model costs.

    `to_grade` are the scored pairs in its band that it has not graded, `tokens` an estimate of their prompts, `budget`
    the tokens that may be paid for in all.
    """

    judge: str
    pairs: int
    to_score: int
    llm: str = ""
    to_grade: int = 0
    tokens: int = 0
    budget: int = 0


@dataclass(frozen=True)
class SourcePlan:
    """What `conan synthesize` would ask for a source: `requests` of the `queries` to its passages are not answered yet.

    `to_grade` are the most requests for grades. `tokens` is an estimate for all of them, answers included.
    """

    source: str
    passages: int
    queries: int
    requests: int
    to_grade: int
    tokens: int
    requests_left: int
    tokens_left: int


@dataclass(frozen=True)
class SynthesisPlan:
    """What `conan synthesize` would ask, source by source."""

    sources: list[SourcePlan]


@dataclass(frozen=True)
class Finding:
    """One line of `conan doctor`: what was examined, whether it is as it should be, what was found, and what to do."""

    check: str
    level: Literal["ok", "warning", "error"]
    found: str
    cure: str = ""


Outcome = Summary | Trained | Evaluated | Exported
