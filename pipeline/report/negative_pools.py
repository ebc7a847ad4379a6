"""The section on negative pools."""

from collections.abc import Sequence
from typing import Any

from ..corpus.pools import has_pools
from .charts import render_histogram
from .elements import escape_text, render_facts, render_section, render_table
from .subjects import Subject

_BINS = 50
"""Bins per unit of cosine."""

_BEST = (
    "(SELECT min(score) AS positive, any_value(scores[1]) AS negative "
    "FROM pools.candidates JOIN pools.positives USING (query_id) GROUP BY query_id HAVING negative IS NOT NULL)"
)


def render_pools(subjects: Sequence[Subject]) -> str:
    """Render the sizes of the pools, and how their scores compare with those of positives."""
    mined = [subject for subject in subjects if has_pools(subject.folder) and _read_run(subject)]
    if not mined:
        return ""
    facts = {subject.name: _summarise(_read_run(subject)[0]) for subject in mined}
    charts = "".join(_render_scores(subject) for subject in mined)
    decided = "".join(_render_decisions(subject) for subject in mined)
    return render_section(
        "pools", "Negative pools", f'{render_facts(facts)}<div class="charts">{charts}</div>{decided}'
    )


def _read_run(subject: Subject) -> list[dict[str, Any]]:
    """Read the last mining run and the sizes of its pools."""
    return subject.rows(
        "SELECT (SELECT count(*) FROM pools.queries) AS queries, (SELECT count(*) FROM pools.passages) AS passages, "
        "(SELECT CAST(coalesce(sum(len(passage_ids)), 0) AS BIGINT) FROM pools.candidates) AS candidates, "
        f"(SELECT avg(positive - negative) FROM {_BEST}) AS gap, "
        "(SELECT count(*) FROM pools.replacements) AS replacements, method, margin, top_k FROM pools.runs "
        "ORDER BY created_at DESC LIMIT 1"
    )


def _summarise(run: dict[str, Any]) -> dict[str, str]:
    facts = {name: f"{run[name]:,}" for name in ("queries", "passages", "candidates", "replacements")}
    facts["method"] = escape_text(f"{run['method']}, {run['margin']:g}, top {run['top_k']}")
    return facts if run["gap"] is None else facts | {"mean gap to top negative": f"{run['gap']:.3f}"}


def _render_decisions(subject: Subject) -> str:
    """Render what a judge decided, by source and decision; nothing for pools without decisions."""
    if not subject.rows("FROM duckdb_views() WHERE database_name = 'pools' AND view_name = 'decided'"):
        return ""  # pools of an earlier version
    rows = subject.rows("FROM pools.decided")
    names = sorted({row["decision"] for row in rows})
    pairs = {(row["source"], row["decision"]): f"{row['pairs']:,}" for row in rows}
    sources = sorted({row["source"] for row in rows}, key=str)
    table = [[escape_text(str(source)), *(pairs.get((source, name), "0") for name in names)] for source in sources]
    title = f"Decisions of the judge{subject.tag}"
    heads = ["source", *(name.replace("_", " ") for name in names)]
    return f"<h3>{title}</h3>{render_table(heads, table)}" if rows else ""


def _render_scores(subject: Subject) -> str:
    rows = subject.rows(
        f"SELECT name, CAST(floor(CAST(score AS DOUBLE) * {_BINS} + 1e-4) AS INTEGER) AS bin, count(*) AS rows FROM "
        f"(SELECT 'lowest positive' AS name, positive AS score FROM {_BEST} UNION ALL "
        f"SELECT 'top negative', negative FROM {_BEST}) WHERE isfinite(score) GROUP BY ALL ORDER BY ALL"
    )
    series: dict[str, dict[int, int]] = {row["name"]: {} for row in rows}
    for row in rows:
        series[row["name"]][row["bin"]] = row["rows"]
    title = "Scores when mined" + (f" · {subject.name}" if subject.tag else "")
    return render_histogram(title, ("cosine", "queries"), series, lambda edge: f"{edge / _BINS:g}") if rows else ""
