"""`conan report`: write one self-contained HTML page about a corpus. Sections without data are left out."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...schemas.errors import CorpusError
from ..corpus.atomic import write_text
from ..corpus.catalog import query
from ..corpus.folder import FOLDERS, STAGES, committed, shards
from ..corpus.pools import FILE as POOLS_FILE
from ..corpus.saved_recipe import load_recipe
from .charts import (
    STYLE,
    escape_text,
    format_percent,
    format_size,
    render_bar,
    render_facts,
    render_histogram,
    render_lines,
    render_table,
)

_SCORE_BINS = 20
"""Bins per unit of cosine."""

_BIN = f"CAST(floor(CAST(score AS DOUBLE) * {_SCORE_BINS}) AS INTEGER)"

_RUNS = {"bootstrap": 0, "pretrain": 1, "finetune": 2}
"""The order of training stages; runs with other names come after them."""

_SHOWN = 80
"""The most characters shown of a text in an example."""

_EXAMPLES = 3
"""The most examples of a rule."""


def write_report(corpus: Path, to: Path) -> Path:
    """Write the page to `to` and return that: inline CSS and SVG, no scripts. Memory doesn't grow with the corpus.

    Raises:
        CorpusError: the folder holds no shards.
    """
    stages = [stage for stage in STAGES if any(committed(corpus, f) for f in FOLDERS if f.partition("/")[0] == stage)]
    if not stages:
        raise CorpusError(f"{corpus}: no shards here to report on; run `conan ingest {corpus} --recipe FILE` first")
    sections = [
        _render_funnel(corpus, stages),
        _render_rejects(corpus),
        _render_scores_and_lengths(corpus, stages),
        _render_pools(corpus),
        _render_training(corpus),
        _render_evaluation(corpus),
    ]
    to.parent.mkdir(parents=True, exist_ok=True)
    write_text(to, _render_page(corpus, "".join(sections)))
    return to


def _render_funnel(corpus: Path, stages: list[str]) -> str:
    """Render rows and bytes of text by stage, then by category and by source."""
    runs = query(
        corpus,
        "SELECT split_part(folder, '/', 1) AS stage, CAST(sum(rows_in) AS BIGINT) AS rows_in, "
        "CAST(sum(rows_out) AS BIGINT) AS rows_out, count(*) AS shards FROM runs GROUP BY ALL",
    ).to_pylist()
    cells = query(
        corpus,
        "SELECT stage, category, source, CAST(sum(rows) AS BIGINT) AS rows, CAST(sum(bytes) AS BIGINT) AS bytes "
        "FROM funnel GROUP BY GROUPING SETS ((stage), (stage, category), (stage, source))",
    ).to_pylist()
    texts = {cell["stage"]: format_size(cell["bytes"]) for cell in cells if cell["category"] is cell["source"] is None}
    flow = {run["stage"]: run for run in runs}
    all_rows, kept = flow[stages[0]]["rows_in"], flow[stages[-1]]["rows_out"]
    head = ["stage", "rows in", "rejected", "rows out", "of input", "text", "shards"]
    by_stage = []
    for stage in stages:
        came, went = flow[stage]["rows_in"], flow[stage]["rows_out"]
        counts = [f"{count:,}" for count in (came, came - went, went)]
        share = format_percent(went, all_rows) + render_bar(went, all_rows)
        by_stage.append([stage, *counts, share, texts.get(stage, format_size(0)), f"{flow[stage]['shards']:,}"])
    summary = {
        "rows in": f"{all_rows:,}",
        f"rows after {stages[-1]}": f"{kept:,}",
        "kept": format_percent(kept, all_rows),
        "text": f"{texts.get(stages[0], format_size(0))} → {texts.get(stages[-1], format_size(0))}",
        "sources": f"{len({cell['source'] for cell in cells} - {None}):,}",
    }
    warnings = "".join(f'<p class="warning">{escape_text(message)}</p>' for message in _find_interrupted(corpus))
    return (
        f"{warnings}{render_facts(summary)}<section><h2>Funnel</h2>{render_table(head, by_stage)}"
        f"<h3>By category</h3>{_render_breakdown(cells, 'category', stages)}"
        f"<h3>By source</h3>{_render_breakdown(cells, 'source', stages)}"
        f'<p class="note">Rows after each stage; a bar shows their share of the rows after {stages[0]}.</p></section>'
    )


def _find_interrupted(corpus: Path) -> Iterator[str]:
    """Yield a warning for each interrupted stage."""
    for folder in FOLDERS:
        if committed(corpus, folder):
            try:
                shards(corpus, folder)
            except CorpusError as error:
                yield f"The numbers on this page are incomplete. {error}"


def _render_breakdown(cells: list[dict[str, Any]], key: str, stages: list[str]) -> str:
    """Render a table of row counts per `key` (category or source) and stage, largest first."""
    found = {(cell[key], cell["stage"]): cell for cell in cells if cell[key] is not None}
    nothing = {"rows": 0, "bytes": 0}
    rows = []
    for name in {name for name, _ in found}:
        row = [found.get((name, stage), nothing) for stage in stages]
        rows.append((row[0]["rows"], name, row))
    body = []
    for most, name, row in sorted(rows, key=lambda row: (-row[0], row[1])):
        counts = [
            f"{cell['rows']:,}" + (render_bar(cell["rows"], most) if place else "") for place, cell in enumerate(row)
        ]
        label = name.replace("_", " ") if key == "category" else name
        body.append([escape_text(label), *counts, format_percent(row[-1]["rows"], most), format_size(row[-1]["bytes"])])
    return render_table([key, *stages, "kept", "text"], body)


def _render_rejects(corpus: Path) -> str:
    """Render the rejects of each stage, by rule, with examples."""
    texts = ", ".join(f"{name}: left({name}, {_SHOWN + 1})" for name in ("query", "positive", "record", "detail"))
    # Twice as many examples as are shown, since identical ones are shown once.
    rules = query(
        corpus,
        f"""
        WITH came AS (
            SELECT split_part(folder, '/', 1) AS stage, CAST(sum(rows_in) AS BIGINT) AS rows_in FROM runs GROUP BY ALL
        )
        SELECT stage, reason, any_value(rows_in) AS rows_in, count(*) AS rows, min_by(
            {{{texts}, source: source, place: file || coalesce(':' || line, '')}},
            hash(coalesce(query, record, ''), coalesce(positive, ''), detail), {2 * _EXAMPLES}
        ) AS examples
        FROM rejected JOIN came USING (stage) GROUP BY stage, reason ORDER BY rows DESC, reason
        """,
    ).to_pylist()
    parts = []
    for stage in STAGES:
        found = [rule for rule in rules if rule["stage"] == stage]
        if found:
            total = sum(rule["rows"] for rule in found)
            share = format_percent(total, found[0]["rows_in"])
            parts.append(f'<h3>{stage} <span class="aside">{total:,} rows, {share} of its input</span></h3>')
            parts += [_render_rule(rule, total) for rule in found]
    note = (
        '<p class="note">Percentages are shares of the stage\'s input, bars are shares of its rejects. '
        "Open a rule to see examples.</p>"
    )
    return f"<section><h2>Rejects</h2>{''.join(parts)}{note}</section>" if parts else ""


def _render_rule(rule: dict[str, Any], total: int) -> str:
    examples = list(dict.fromkeys(_render_example(example) for example in rule["examples"]))[:_EXAMPLES]
    return (
        f'<details><summary><span class="name">{escape_text(rule["reason"])}</span><span>{rule["rows"]:,}</span>'
        f"<span>{format_percent(rule['rows'], rule['rows_in'])}</span>{render_bar(rule['rows'], total)}</summary>"
        f"{''.join(examples)}</details>"
    )


def _render_example(example: dict[str, Any]) -> str:
    """Render a rejected record as a list of its fields; the texts are untrusted, so they are escaped, and shortened."""
    fields = {name: example[name] for name in ("query", "positive")}
    if None in fields.values():
        fields = {"record": example["record"] or ""}
    texts = "".join(
        f'<dt>{name}</dt><dd lang="zh"><bdi>{_shorten(text) if text else "<i>empty</i>"}</bdi></dd>'
        for name, text in fields.items()
    )
    place = "".join(f" · <bdi>{escape_text(example[name])}</bdi>" for name in ("source", "place") if example[name])
    return f"<dl>{texts}<dt>detail</dt><dd><bdi>{_shorten(example['detail'])}</bdi>{place}</dd></dl>"


def _render_scores_and_lengths(corpus: Path, stages: list[str]) -> str:
    """Render the scores, if there are any, and the lengths of the pairs after the last stage before convert."""
    scores = query(
        corpus,
        f"SELECT name, {_BIN} AS bin, count(*) AS rows FROM "
        "(SELECT 'kept' AS name, score FROM score UNION ALL SELECT 'rejected', score FROM score_rejected "
        "UNION ALL SELECT 'with another passage', mismatched FROM score "
        "UNION ALL SELECT 'with another passage', mismatched FROM score_rejected) "
        "WHERE isfinite(score) GROUP BY ALL ORDER BY ALL",
    ).to_pylist()
    charts = ""
    if scores:
        cutoff = _find_cutoff(corpus)
        mark = None if cutoff is None else (cutoff * _SCORE_BINS, f"cutoff {cutoff:g}")
        charts += render_histogram("Cosine of query and positive", "pairs", _count_series(scores), _format_score, mark)
    stage = next((stage for stage in reversed(stages) if stage != "convert"), "pretrain")
    lengths = query(
        corpus,
        "SELECT name, length, count(*) AS rows FROM ("
        f"SELECT 'query' AS name, length(query) AS length FROM {stage} WHERE query <> '' "  # a passage has none
        f"UNION ALL SELECT 'positive', length(positive) FROM {stage}) GROUP BY ALL ORDER BY name DESC, length",
    ).to_pylist()
    quantiles = ""
    if lengths:
        octaves = [row | {"bin": max(row["length"], 1).bit_length() - 1} for row in lengths]
        charts += render_histogram("Length in characters", "texts", _count_series(octaves), lambda edge: f"{2**edge:,}")
        rows = []
        for name in ("query", "positive"):
            counts = [(row["length"], row["rows"]) for row in lengths if row["name"] == name]
            rows.append([name, *(f"{_find_quantile(counts, share):,}" for share in (0.05, 0.5, 0.95, 1))])
        quantiles = render_table(["characters", "5%", "median", "95%", "longest"], rows)
    title = "Scores and lengths" if scores else "Lengths"
    return f'<section><h2>{title}</h2><div class="charts">{charts}</div>{quantiles}</section>' if charts else ""


def _find_cutoff(corpus: Path) -> float | None:
    """Find the cutoff that pairs were rejected by or, if none were, the cutoff in the recipe; None if it is off."""
    cutoffs = "SELECT max(split_part(detail, ' < ', 2)::DOUBLE) AS cutoff FROM score_rejected WHERE reason = 'score'"
    held = query(corpus, cutoffs).column(0)[0].as_py()
    if held is None and (corpus / "recipe.yaml").exists():
        return load_recipe(corpus).score.cutoff
    return None if held is None else float(held)


def _count_series(rows: list[dict[str, Any]]) -> dict[str, dict[int, int]]:
    """Count each name's rows by bin."""
    series: dict[str, dict[int, int]] = {row["name"]: defaultdict(int) for row in rows}
    for row in rows:
        series[row["name"]][row["bin"]] += row["rows"]
    return series


def _format_score(edge: int) -> str:
    return f"{edge / _SCORE_BINS:g}"


def _find_quantile(counts: list[tuple[int, int]], share: float) -> int:
    """Find the smallest value that a `share` of the rows doesn't exceed. `counts`: (value, rows), values ascending."""
    upto = np.cumsum([rows for _, rows in counts])
    return counts[int(np.searchsorted(upto, share * upto[-1]))][0]


def _render_pools(corpus: Path) -> str:
    """Render the sizes of the negative pools, and how their scores compare with those of positives."""
    if not (corpus / POOLS_FILE).exists():
        return ""
    best = (
        "(SELECT min(score) AS positive, any_value(scores[1]) AS negative "
        "FROM pools.candidates JOIN pools.positives USING (query_id) GROUP BY query_id HAVING negative IS NOT NULL)"
    )
    found = query(
        corpus,
        "SELECT (SELECT count(*) FROM pools.queries) AS queries, (SELECT count(*) FROM pools.passages) AS passages, "
        "(SELECT CAST(coalesce(sum(len(passage_ids)), 0) AS BIGINT) FROM pools.candidates) AS candidates, "
        f"(SELECT avg(positive - negative) FROM {best}) AS gap, "
        "(SELECT count(*) FROM pools.replacements) AS replacements, method, margin, top_k FROM pools.runs "
        "ORDER BY created_at DESC LIMIT 1",
    ).to_pylist()
    scores = query(
        corpus,
        f"SELECT name, {_BIN} AS bin, count(*) AS rows FROM (SELECT 'lowest positive' AS name, positive AS score "
        f"FROM {best} UNION ALL SELECT 'top negative', negative FROM {best}) "
        "WHERE isfinite(score) GROUP BY ALL ORDER BY ALL",
    ).to_pylist()
    if not found:
        return ""
    values = {name: f"{found[0][name]:,}" for name in ("queries", "passages", "candidates", "replacements")}
    values["method"] = escape_text(f"{found[0]['method']}, {found[0]['margin']:g}, top {found[0]['top_k']}")
    if found[0]["gap"] is not None:
        values["mean gap to top negative"] = f"{found[0]['gap']:.3f}"
    chart = render_histogram("Scores when mined", "queries", _count_series(scores), _format_score) if scores else ""
    return f'<section><h2>Negative pools</h2>{render_facts(values)}<div class="charts">{chart}</div></section>'


def _render_training(corpus: Path) -> str:
    """Render the curves of each training run that logged a step."""
    logs = sorted(corpus.glob("train/*/log.jsonl"), key=lambda log: (_RUNS.get(log.parent.name, 9), log.parent.name))
    runs = "".join(_render_run(log.parent.name, list(_read_log(log))) for log in logs)
    return f"<section><h2>Training</h2>{runs}</section>" if runs else ""


def _read_log(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log; the last line of a running or killed run may be incomplete."""
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def _render_run(name: str, entries: list[dict[str, Any]]) -> str:
    steps = [entry for entry in entries if entry.get("loss") is not None]  # null if it was NaN or infinite
    if not steps:
        return ""
    x = np.array([entry["step"] for entry in steps], np.float64)
    curves = {
        key.replace("_", " "): np.array([entry.get(key) for entry in steps], np.float64)  # None becomes NaN
        for key in ("loss", "retrieval", "sts", "positive_score", "negative_score", "tokens_per_second")
    }
    start = next((entry for entry in entries if entry.get("event") == "start"), {})
    values = {"step": f"{steps[-1]['step']:,}"}
    for key, shown in (("steps", "total steps"), ("parameters", "parameters"), ("world_size", "processes")):
        if key in start:
            values[shown] = f"{start[key]:,}"
    values["loss"] = f"{curves['loss'][-1]:.3f}"
    if np.isfinite(curves["tokens per second"]).any():
        values["median tokens/s"] = f"{np.nanmedian(curves['tokens per second']):,.0f}"
    mining = [entry["mining"] for entry in steps if entry.get("mining")]
    if mining:
        values["negatives replaced"] = f"{sum(each['replaced'] for each in mining):,}"
        values["exhausted"] = f"{mining[-1]['exhausted']:,}"
    losses = ["loss", "retrieval", "sts"] if np.any(curves["sts"] > 0) else ["loss"]
    scores = [key for key in ("positive score", "negative score") if np.isfinite(curves[key]).any()]
    charts = render_lines("Loss", "by step", x, {key: curves[key] for key in losses})
    if scores:
        charts += render_lines("Cosine", "by step", x, {key: curves[key] for key in scores})
    return f'<h3>{escape_text(name)}</h3>{render_facts(values)}<div class="charts">{charts}</div>'


def _render_evaluation(corpus: Path) -> str:
    """Render a table of metrics, a column per model, the best in bold; higher is better for all metrics."""
    file = corpus / "evaluation" / "metrics.json"
    if not file.exists():
        return ""
    values = {(row["set"], row["metric"], row["model"]): row["value"] for row in json.loads(file.read_text("utf-8"))}
    models = list(dict.fromkeys(model for _, _, model in values))
    rows = []
    for place, metric in dict.fromkeys((place, metric) for place, metric, _ in values):
        found = [values.get((place, metric, model)) for model in models]
        best = max((value for value in found if value is not None), default=None)
        shown = ["–" if v is None else f"<b>{v:.3f}</b>" if v == best else f"{v:.3f}" for v in found]
        rows.append([f'{escape_text(place)} <span class="aside">{escape_text(metric)}</span>', *shown])
    return (
        f"<section><h2>Evaluation</h2>{render_table(['set', *map(escape_text, models)], rows)}</section>"
        if rows
        else ""
    )


def _shorten(text: str) -> str:
    return escape_text(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _render_page(corpus: Path, body: str) -> str:
    name = escape_text(corpus.resolve().name)
    now = datetime.now().astimezone()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name} · Conan corpus report</title>
<style>{STYLE}</style>
</head>
<body>
<header><p>Conan corpus report</p><h1>{name}</h1>
<p>{escape_text(str(corpus))} · <time datetime="{now.isoformat(timespec="seconds")}">{now:%d %B %Y, %H:%M %Z}</time></p>
</header>
<main>
{body}
</main>
</body>
</html>
"""
