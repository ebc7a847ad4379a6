"""The section on evaluation: the metrics of each model next to those of BM25."""

import json
from collections.abc import Sequence
from typing import Any

from ..corpus.folder import HOLDOUT, committed, read_footer
from .elements import escape_text, render_section, render_table
from .subjects import Subject

_MODELS = 12
"""The most models in a table: chosen here, so that it is a few screens wide at most."""

_BM25 = "bm25"


def render_evaluation(subjects: Sequence[Subject]) -> str:
    """Render a table with a column per model, the best in bold; BM25 is the last one, and what others are compared to.

    Higher is better for all metrics. If corpora are compared, columns of the same model are next to each other.
    """
    values: dict[tuple[str, str, str, str], float | None] = {}
    sizes: dict[str, int | None] = {}
    for subject in subjects:
        for row in _read_metrics(subject):
            values[row["set"], row["metric"], row["model"], subject.name] = row["value"]
            sizes[row["model"]] = row.get("bytes_per_vector")
    models = sorted(dict.fromkeys(model for _, _, model, _ in values), key=lambda model: model == _BM25)
    columns = [
        (model, subject)
        for model in models
        for subject in subjects
        if any(key[2:] == (model, subject.name) for key in values)
    ]
    left_out = len(columns) - _MODELS
    columns = columns if left_out <= 0 else [*columns[: _MODELS - 1], columns[-1]]
    rows = []
    for place, metric in dict.fromkeys(key[:2] for key in values):
        found = [values.get((place, metric, model, subject.name)) for model, subject in columns]
        best = max((value for value in found if value is not None), default=None)
        cells = [
            _render_cell(
                value, value == best, None if model == _BM25 else values.get((place, metric, _BM25, subject.name))
            )
            for value, (model, subject) in zip(found, columns, strict=True)
        ]
        rows.append([f'{escape_text(place)} <span class="aside">{escape_text(metric)}</span>', *cells])
    held_out = "".join(_render_held_out(subject) for subject in subjects)
    if not rows:
        return render_section("evaluation", "Evaluation", held_out) if held_out else ""
    note = "The best is bold" + ("; below each metric is its difference from BM25's." if _BM25 in models else ".")
    note += f" {left_out} more are left out." if left_out > 0 else ""
    heads = [f"{escape_text(model)}{_render_size(sizes[model])}{subject.tag}" for model, subject in columns]
    table = f'{render_table(["set", *heads], rows)}<p class="note">{note}</p>'
    return render_section("evaluation", "Evaluation", table + held_out)


def _render_held_out(subject: Subject) -> str:
    """Render a table of the sets that `holdout:` keeps apart: questions, of how many, and passages to search."""
    notes = [read_footer(shard).notes for shard in committed(subject.folder, HOLDOUT)]
    rows = [
        [escape_text(each["source"]), *(f"{each[name]:,}" for name in ("held_out", "questions", "passages"))]
        for each in sorted(notes, key=lambda each: str(each.get("source")))
        if "source" in each  # a cut of a corpus has no notes
    ]
    return render_table([f"held out{subject.tag}", "questions", "of", "passages"], rows) if rows else ""


def _read_metrics(subject: Subject) -> list[dict[str, Any]]:
    file = subject.folder / "evaluation" / "metrics.json"
    return list(json.loads(file.read_text("utf-8"))) if file.exists() else []


def _render_size(bytes_per_vector: int | None) -> str:
    return f'<br><span class="aside">{bytes_per_vector:,} bytes</span>' if bytes_per_vector else ""


def _render_cell(value: float | None, best: bool, baseline: float | None) -> str:
    if value is None:
        return "–"
    shown = f"<b>{value:.3f}</b>" if best else f"{value:.3f}"
    return shown if baseline is None else f'{shown}<br><span class="aside">{value - baseline:+.3f}</span>'
