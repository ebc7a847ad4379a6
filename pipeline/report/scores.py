"""The section on scores: their distribution in the corpus and in each source, with the cuts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, log2
from typing import Any, NamedTuple

import numpy as np

from .charts import render_histogram
from .elements import ROWS, escape_text, render_section, render_table
from .subjects import Subject

_FINE = 200
"""Bins per unit of cosine that scores are counted in."""

_WIDTHS = (1, 2, 4, 10, 20, 40)
_BINS = 40
"""The most bins of a chart: the first of the _WIDTHS, in fine bins, that gives no more is taken."""

_CHARTS = 24
"""The most charts of single sources."""

_MISMATCHED = "with another passage"

Bins = Mapping[str, Mapping[int, int]]
"""Rows by bin, for each series."""


class _Source(NamedTuple):
    """A source's scores: fine bins, the number of pairs that each cut rejected, and the cuts."""

    name: str
    bins: Bins
    rejected: Mapping[str, int]
    marks: Sequence[tuple[float, str]]
    """Cosines that pairs were cut at, with their labels."""
    first: float | None
    """The share of pairs whose positive ranks first."""


def render_scores(subjects: Sequence[Subject]) -> str:
    """Render the scores of all pairs, then those of each source."""
    scored = [subject for subject in subjects if _has_scores(subject)]
    if not scored:
        return ""
    read = [(f" · {subject.name}" if subject.tag else "", *_read_sources(subject)) for subject in scored]
    sources = [source for _, found, _ in read for source in found]
    span = _find_span([total for *_, total in read], [mark for source in sources for mark in source.marks])
    cosines, tables = "", ""
    for other, found, total in read:
        cutoffs = {mark for source in found for mark in source.marks if mark[1].startswith("cutoff")}
        cosines += _render_cosines(f"All sources{other}", total, sorted(cutoffs), span)
        tables += f"<h3>By source{escape_text(other)}</h3>{_render_table(found)}"
    ranks = "".join(_render_ranks(subject, other) for subject, (other, *_) in zip(scored, read, strict=True))
    names = dict.fromkeys(source.name for source in sources)
    charts = [
        _render_cosines(f"{source.name}{other}", source.bins, source.marks, span)
        for name in names
        for other, found, _ in read
        for source in found
        if source.name == name and source.bins
    ]
    charts = charts if len(names) > 1 else []
    small = "charts" if len(scored) > 1 else "charts small"
    note = (
        '<p class="note">Cosines of query and positive, of pairs kept and rejected, and of each query with another '
        "passage: the score of a wrong pair. Dashed lines are cuts. Charts of sources share the horizontal axis"
        f"{f'; the first {_CHARTS} are shown' if len(charts) > _CHARTS else ''}.</p>"
    )
    return render_section(
        "scores",
        "Scores",
        f'{note}<div class="charts">{cosines}{ranks}</div>{tables}'
        f'<div class="{small}">{"".join(charts[:_CHARTS])}</div>',
    )


def _has_scores(subject: Subject) -> bool:
    return bool(subject.rows(f"SELECT 1 FROM ({_all_pairs(subject)}) WHERE isfinite(score) LIMIT 1"))


def _all_pairs(subject: Subject) -> str:
    """Build the SQL for kept and rejected pairs; shards of earlier versions lack columns, which are NULL then."""
    parts = []
    for view, name in (("score", "kept"), ("score_rejected", "rejected")):
        there = {column["column_name"] for column in subject.rows(f"DESCRIBE {view}")}
        columns = [
            column if column in there else f"NULL AS {column}"
            for column in ("score", "mismatched", "rank", "reason", "detail")
        ]
        parts.append(f"SELECT '{name}' AS name, source, format, {', '.join(columns)} FROM {view}")
    return " UNION ALL ".join(parts)


def _read_sources(subject: Subject) -> tuple[list[_Source], Bins]:
    """Read the scores of each source, those with the most pairs first, and the bins of all of them together.

    Sources that no table or chart has room for have no bins of their own.
    """
    pairs = _all_pairs(subject)
    sources = subject.rows(
        "SELECT source, any_value(format) AS format, avg(CAST(rank = 1 AS INTEGER)) AS first, "
        f"min(score) FILTER (name = 'kept') AS lowest FROM ({pairs}) "
        "WHERE isfinite(score) GROUP BY source ORDER BY count(*) DESC, source"
    )
    # A cosine such as 0.35 may be a little less than that in float32; it still belongs to the bin that begins there.
    fine = f"CAST(least(floor(CAST({{}} AS DOUBLE) * {_FINE} + 1e-4), {_FINE - 1}) AS INTEGER)"
    bins: dict[str | None, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for row in subject.rows(
        f"WITH pairs AS ({pairs}), largest AS (SELECT source FROM pairs WHERE isfinite(score) GROUP BY source "
        f"ORDER BY count(*) DESC, source LIMIT {ROWS}) "
        "SELECT largest.source, name, bin, count(*) AS rows FROM ("
        f"SELECT source, name, {fine.format('score')} AS bin FROM pairs WHERE isfinite(score) UNION ALL "
        f"SELECT source, '{_MISMATCHED}', {fine.format('mismatched')} FROM pairs WHERE isfinite(mismatched)"
        ") LEFT JOIN largest USING (source) GROUP BY ALL ORDER BY ALL"
    ):
        bins[row["source"]][row["name"]][row["bin"]] = row["rows"]
    cuts: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in subject.rows(
        "SELECT source, reason, count(*) AS rows, max(TRY_CAST(regexp_extract(detail, '< ([-0-9.e]+)', 1) AS DOUBLE)) "
        f"AS at FROM ({pairs}) WHERE name = 'rejected' GROUP BY ALL"
    ):
        cuts[row["source"]][row["reason"]] = row
    found = [_make_source(subject, one, bins.get(one["source"], {}), cuts[one["source"]]) for one in sources]
    return found, _add_up(bins.values())


def _make_source(subject: Subject, source: dict[str, Any], bins: Bins, cuts: dict[str, dict[str, Any]]) -> _Source:
    """Put a source together. Its cutoff is what rejects were held to or, without rejects, what the recipe says.

    A run may have had another cutoff than the recipe says, which is of no use if a pair below it was kept.
    """
    settings = subject.settings.get("score") or {}
    cutoff = cuts["score"]["at"] if "score" in cuts else None
    if cutoff is None:
        cutoff = (settings.get("cutoffs") or {}).get(source["format"], settings.get("cutoff"))
        if cutoff is not None and source["lowest"] is not None and np.float32(source["lowest"]) < np.float32(cutoff):
            cutoff = None
    marks = [] if cutoff is None else [(cutoff * _FINE, f"cutoff {cutoff:g}")]
    if "score_quantile" in cuts and cuts["score_quantile"]["at"] is not None:
        marks.append((cuts["score_quantile"]["at"] * _FINE, f"quantile {cuts['score_quantile']['at']:g}"))
    rejected = {reason: cut["rows"] for reason, cut in cuts.items()}
    return _Source(source["source"], bins, rejected, marks, source["first"])


def _add_up(parts: Iterable[Bins]) -> Bins:
    total: dict[str, dict[int, int]] = {}
    for bins in parts:
        for name, counts in bins.items():
            own = total.setdefault(name, defaultdict(int))
            for place, count in counts.items():
                own[place] += count
    return total


def _find_span(totals: Sequence[Bins], marks: Sequence[tuple[float, str]]) -> tuple[int, int]:
    """Return the first and last fine bin that charts need, so that all have the same axis."""
    places = [place for bins in totals for counts in bins.values() for place in counts]
    places += [floor(place) for place, _ in marks]
    return min(places), max(places)


def _render_cosines(title: str, bins: Bins, marks: Sequence[tuple[float, str]], span: tuple[int, int]) -> str:
    low, high = span
    width = next((width for width in _WIDTHS if (high - low) / width < _BINS), _WIDTHS[-1])
    series: dict[str, dict[int, int]] = {}
    for name in ("kept", "rejected", _MISMATCHED):
        series[name] = defaultdict(int)
        for place, count in bins.get(name, {}).items():
            series[name][place // width] += count
    shown = [(place / width, label) for place, label in marks]
    return render_histogram(
        title,
        ("cosine", "pairs"),
        series,
        lambda edge: f"{edge * width / _FINE:g}",
        shown,
        (low // width, high // width),
    )


def _render_ranks(subject: Subject, other: str) -> str:
    """Render how the positives rank. A bin is the ranks up to a power of two, beyond the one before."""
    found = subject.rows(
        f"SELECT name, CAST(ceil(log2(rank)) AS INTEGER) AS bin, count(*) AS rows FROM ({_all_pairs(subject)}) "
        "WHERE rank >= 1 GROUP BY ALL ORDER BY ALL"
    )
    if not found:
        return ""
    cut = subject.rows(
        "SELECT TRY_CAST(regexp_extract(any_value(detail), '> ([0-9]+) among', 1) AS INTEGER) AS rank, "
        "TRY_CAST(regexp_extract(any_value(detail), 'among ([0-9]+)', 1) AS INTEGER) AS among "
        "FROM score_rejected WHERE reason = 'score_rank'"
    )[0]
    series: dict[str, dict[int, int]] = {"kept": {}, "rejected": {}}
    for row in found:
        series[row["name"]][row["bin"]] = row["rows"]
    rank, among = cut["rank"], cut["among"]
    if rank is None:
        rank = (subject.settings.get("score") or {}).get("rank")
        if rank is not None and max(series["kept"], default=0) > ceil(log2(rank)):
            rank = None  # the run had another one
    axis = f"rank of the positive among {among:,} passages, up to" if among else "rank of the positive, up to"
    marks = [(log2(rank) + 1, f"rank {rank}")] if rank else []
    return render_histogram(
        f"Rank{other}", (axis, "pairs"), series, lambda edge: f"{2 ** (edge - 1):,}" if edge > 0 else "", marks
    )


def _render_table(sources: Sequence[_Source]) -> str:
    """Render quantiles of the scores of each source, and the number of pairs that each cut rejected."""
    rows = []
    for source in sources:
        pairs = _add_up({"pairs": source.bins[name]} for name in source.bins if name != _MISMATCHED).get("pairs", {})
        wrong = source.bins.get(_MISMATCHED, {})
        quantiles = [_find_quantile(pairs, share) for share in (0.05, 0.5, 0.95)]
        quantiles += [_find_quantile(wrong, share) for share in (0.5, 0.95)]
        first = "–" if source.first is None else f"{source.first:.0%}"
        cuts = [f"{source.rejected.get(reason, 0):,}" for reason in ("score", "score_quantile", "score_rank")]
        rows.append([escape_text(source.name), f"{sum(pairs.values()):,}", *quantiles, first, *cuts])
    heads = ["5%", "median", "95%", "mismatched median", "mismatched 95%", "ranked first"]
    return render_table(["source", "scored", *heads, "cut by cutoff", "by quantile", "by rank"], rows)


def _find_quantile(counts: Mapping[int, int], share: float) -> str:
    """Interpolate a quantile in fine bins."""
    if not counts:
        return "–"
    places = sorted(counts)
    upto = np.cumsum([counts[place] for place in places])
    at = int(np.searchsorted(upto, share * upto[-1]))
    within = (share * upto[-1] - (upto[at] - counts[places[at]])) / counts[places[at]]
    return f"{(places[at] + within) / _FINE:.2f}"
