"""The section on training: the curves of each run or, if corpora are compared, of the runs of a stage together."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .charts import Curve, render_lines
from .elements import escape_text, render_facts, render_section
from .subjects import Subject

_ORDER = {"bootstrap": 0, "pretrain": 1, "finetune": 2}
"""The order of training stages; runs with other names come after them."""

_RUNS = 8
"""The most runs on a page."""

_MEASURES = {
    "Loss": {"loss": "loss", "retrieval": "retrieval", "sts": "sts"},
    "Cosine": {"positive_score": "positives", "negative_score": "negatives"},
}
"""The charts of a run: columns of the log and what they are called."""

Runs = Mapping[str, list[dict[str, Any]]]
"""The log of a run in each corpus, empty in those without it."""


def render_training(subjects: Sequence[Subject]) -> str:
    """Render the runs that logged a step."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for subject in subjects:
        for log in sorted(subject.folder.glob("train/*/log.jsonl")):
            runs.setdefault(log.parent.name, {})[subject.name] = list(_read_log(log))
    runs = {name: logs for name, logs in runs.items() if any(map(_steps, logs.values()))}
    names = sorted(runs, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))
    parts = [
        _render_run(name, {each.name: runs[name].get(each.name, []) for each in subjects}) for name in names[:_RUNS]
    ]
    if len(names) > _RUNS:
        parts.append(f'<p class="note">The first {_RUNS} of {len(names)} runs are shown.</p>')
    return render_section("training", "Training", "".join(parts))


def _read_log(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log; the last line of a running or killed run may be incomplete."""
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def _steps(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry.get("loss") is not None]  # null if it was NaN or infinite


def _render_run(name: str, runs: Runs) -> str:
    charts = _render_together(runs) if len(runs) > 1 else _render_alone(*runs.values())
    facts = render_facts({corpus: _summarise(entries) for corpus, entries in runs.items()})
    return f'<h3>{escape_text(name)}</h3>{facts}<div class="charts">{charts}</div>'


def _summarise(entries: list[dict[str, Any]]) -> dict[str, str]:
    steps = _steps(entries)
    if not steps:
        return {}
    start = next((entry for entry in entries if entry.get("event") == "start"), {})
    facts = {"step": f"{steps[-1]['step']:,}"}
    for key, shown in (("steps", "total steps"), ("parameters", "parameters"), ("world_size", "processes")):
        if key in start:
            facts[shown] = f"{start[key]:,}"
    facts["loss"] = f"{steps[-1]['loss']:.3f}"
    speeds = [entry["tokens_per_second"] for entry in steps if entry.get("tokens_per_second") is not None]
    if speeds:
        facts["median tokens/s"] = f"{np.median(speeds):,.0f}"
    mining = [entry["mining"] for entry in steps if entry.get("mining")]
    if mining:
        facts["negatives replaced"] = f"{sum(each['replaced'] for each in mining):,}"
        facts["exhausted"] = f"{mining[-1]['exhausted']:,}"
    if best := [entry["mean"] for entry in _validations(entries)]:
        facts["best validation"] = f"{max(best):.3f}"
    return facts


def _validations(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry.get("event") == "validation" and entry.get("mean") is not None]


def _render_alone(entries: list[dict[str, Any]]) -> str:
    """Render a chart of each measure with all its columns."""
    charts = ""
    for title, columns in _MEASURES.items():
        curves = {name: _curve(_steps(entries), column) for column, name in columns.items()}
        there = {name: curve for name, curve in curves.items() if np.nan_to_num(curve[1]).any()}
        if "sts" in curves and "sts" not in there:
            there = {"loss": curves["loss"]}  # the loss of retrieval is all of it
        if there:
            charts += render_lines(title, ("step", title.lower()), there)
    if found := _validations(entries):
        charts += render_lines("Validation", ("step", "mean of the sets"), {"mean": _curve(found, "mean")})
    return charts


def _render_together(runs: Runs) -> str:
    """Render a chart of each column with a curve of each corpus."""
    measures = {"Loss": (_steps, "loss", "loss")}
    measures |= {f"Cosine of {name}": (_steps, column, "cosine") for column, name in _MEASURES["Cosine"].items()}
    measures["Validation"] = (_validations, "mean", "mean of the sets")
    charts = ""
    for title, (choose, column, axis) in measures.items():
        curves = {corpus: _curve(choose(entries), column) for corpus, entries in runs.items()}
        if any(np.isfinite(values).any() for _, values in curves.values()):
            charts += render_lines(title, ("step", axis), curves)
    return charts


def _curve(entries: list[dict[str, Any]], column: str) -> Curve:
    values = [np.array([entry.get(key) for entry in entries], np.float64) for key in ("step", column)]  # None: NaN
    return values[0], values[1]
