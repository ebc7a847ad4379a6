"""The section on the lengths of texts."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from .charts import render_histogram
from .elements import escape_text, render_section, render_table
from .subjects import Subject

_SIDES = ("query", "positive")


def render_lengths(subjects: Sequence[Subject]) -> str:
    """Render the lengths of the pairs after the last stage before convert."""
    charts, rows = "", []
    for subject in subjects:
        other = f" · {subject.name}" if subject.tag else ""
        lengths = _read_lengths(subject)
        if not lengths:
            continue
        series: dict[str, dict[int, int]] = {side: defaultdict(int) for side in _SIDES}
        for row in lengths:
            series[row["name"]][max(row["length"], 1).bit_length() - 1] += row["rows"]
        charts += render_histogram(
            f"Lengths{other}", ("characters", "texts"), series, lambda edge: f"{2**edge:,}" if edge >= 0 else ""
        )
        for side in _SIDES:
            counts = [(row["length"], row["rows"]) for row in lengths if row["name"] == side]
            if counts:
                quantiles = [f"{_find_quantile(counts, share):,}" for share in (0.05, 0.5, 0.95, 1)]
                rows.append([f"{side}{escape_text(other)}", *quantiles])
    table = render_table(["characters", "5%", "median", "95%", "longest"], rows) if rows else ""
    return render_section("lengths", "Lengths", f'<div class="charts">{charts}</div>{table}' if charts else "")


def _read_lengths(subject: Subject) -> list[dict[str, Any]]:
    stage = next((stage for stage in reversed(subject.stages) if stage != "convert"), "pretrain")
    return subject.rows(
        "SELECT name, length, count(*) AS rows FROM ("
        f"SELECT 'query' AS name, length(query) AS length FROM {stage} WHERE query <> '' "  # a passage has none
        f"UNION ALL SELECT 'positive', length(positive) FROM {stage}) GROUP BY ALL ORDER BY name, length"
    )


def _find_quantile(counts: list[tuple[int, int]], share: float) -> int:
    """Find the smallest value that a `share` of the rows doesn't exceed. `counts`: (value, rows), values ascending."""
    upto = np.cumsum([rows for _, rows in counts])
    return counts[int(np.searchsorted(upto, share * upto[-1]))][0]
