"""The section on the funnel: rows and bytes of text by stage, category and source."""

from collections.abc import Iterator, Sequence
from typing import Any

from ...schemas.errors import CorpusError
from ..corpus.folder import FOLDERS, STAGES, committed, shards
from .elements import escape_text, format_percent, format_size, render_bar, render_facts, render_section, render_table
from .subjects import Subject

_NOTHING = {"rows": 0, "bytes": 0}


def render_funnel(subjects: Sequence[Subject]) -> str:
    """Render facts of each corpus and tables of its rows. Several corpora are next to each other."""
    flows = [_read_flow(subject) for subject in subjects]
    cells = [_read_cells(subject) for subject in subjects]
    facts = {
        subject.name: _summarise(subject, flow, own) for subject, flow, own in zip(subjects, flows, cells, strict=True)
    }
    compared = len(subjects) > 1
    stages = _render_compared_stages(subjects, flows) if compared else _render_stages(subjects[0], flows[0], cells[0])
    note = "rows of the first stage" if compared else f"rows after {subjects[0].stages[0]}"
    return render_section(
        "funnel",
        "Funnel",
        f"{''.join(_warn(subject) for subject in subjects)}{render_facts(facts)}{stages}"
        f"<h3>By category</h3>{_render_breakdown('category', subjects, cells)}"
        f"<h3>By source</h3>{_render_breakdown('source', subjects, cells)}"
        f'<p class="note">Rows after each stage; a bar shows their share of the {note}.</p>',
    )


def _read_flow(subject: Subject) -> dict[str, dict[str, Any]]:
    """Read what came into each stage and what went out."""
    runs = subject.rows(
        "SELECT split_part(folder, '/', 1) AS stage, CAST(sum(rows_in) AS BIGINT) AS rows_in, "
        "CAST(sum(rows_out) AS BIGINT) AS rows_out, count(*) AS shards FROM runs GROUP BY ALL"
    )
    return {run["stage"]: run for run in runs}


def _read_cells(subject: Subject) -> list[dict[str, Any]]:
    """Read rows and bytes by stage, by stage and category, and by stage and source."""
    return subject.rows(
        "SELECT stage, category, source, CAST(sum(rows) AS BIGINT) AS rows, CAST(sum(bytes) AS BIGINT) AS bytes "
        "FROM funnel GROUP BY GROUPING SETS ((stage), (stage, category), (stage, source))"
    )


def _read_texts(cells: list[dict[str, Any]]) -> dict[str, str]:
    """Return the size of the texts after each stage."""
    return {cell["stage"]: format_size(cell["bytes"]) for cell in cells if cell["category"] is cell["source"] is None}


def _summarise(subject: Subject, flow: dict[str, dict[str, Any]], cells: list[dict[str, Any]]) -> dict[str, str]:
    first, last = subject.stages[0], subject.stages[-1]
    came, kept, texts = flow[first]["rows_in"], flow[last]["rows_out"], _read_texts(cells)
    return {
        "rows in": f"{came:,}",
        "rows kept": f"{kept:,} after {last}",
        "kept": format_percent(kept, came),
        "text": f"{texts.get(first, format_size(0))} → {texts.get(last, format_size(0))}",
        "sources": f"{len({cell['source'] for cell in cells} - {None}):,}",
    }


def _warn(subject: Subject) -> str:
    return "".join(f'<p class="warning">{escape_text(message, 1000)}</p>' for message in _find_interrupted(subject))


def _find_interrupted(subject: Subject) -> Iterator[str]:
    """Yield a warning for each interrupted stage."""
    for folder in FOLDERS:
        if committed(subject.folder, folder):
            try:
                shards(subject.folder, folder)
            except CorpusError as error:
                yield f"The numbers on this page are incomplete. {error}"


def _render_stages(subject: Subject, flow: dict[str, dict[str, Any]], cells: list[dict[str, Any]]) -> str:
    texts, all_rows = _read_texts(cells), flow[subject.stages[0]]["rows_in"]
    rows = []
    for stage in subject.stages:
        came, went = flow[stage]["rows_in"], flow[stage]["rows_out"]
        counts = [f"{count:,}" for count in (came, came - went, went)]
        share = format_percent(went, all_rows) + render_bar(went, all_rows)
        rows.append([stage, *counts, share, texts.get(stage, format_size(0)), f"{flow[stage]['shards']:,}"])
    return render_table(["stage", "rows in", "rejected", "rows out", "of input", "text", "shards"], rows)


def _render_compared_stages(subjects: Sequence[Subject], flows: list[dict[str, dict[str, Any]]]) -> str:
    """Render the rows after each stage, and their share of what came into the first, for each corpus."""
    rows = []
    for stage in [stage for stage in STAGES if any(stage in flow for flow in flows)]:
        row = [stage]
        for subject, flow in zip(subjects, flows, strict=True):
            if stage in flow:
                went, all_rows = flow[stage]["rows_out"], flow[subject.stages[0]]["rows_in"]
                row += [f"{went:,}", format_percent(went, all_rows) + render_bar(went, all_rows)]
            else:
                row += ["–", "–"]
        rows.append(row)
    heads = [f"{name}{subject.tag}" for subject in subjects for name in ("rows out", "of input")]
    return render_table(["stage", *heads], rows)


def _render_breakdown(key: str, subjects: Sequence[Subject], cells: list[list[dict[str, Any]]]) -> str:
    """Render row counts per `key` (category or source), largest first; of compared corpora those of two stages."""
    found = [{(cell[key], cell["stage"]): cell for cell in each if cell[key] is not None} for each in cells]
    columns = [subject.stages if len(subjects) == 1 else _ends(subject.stages) for subject in subjects]
    rows = []
    for name in {name for each in found for name, _ in each}:
        sizes, row = [], [escape_text(name.replace("_", " ") if key == "category" else name)]
        for each, stages in zip(found, columns, strict=True):
            counts = [each.get((name, stage), _NOTHING) for stage in stages]
            most = counts[0]["rows"]
            row += [f"{most:,}"] + [f"{cell['rows']:,}{render_bar(cell['rows'], most)}" for cell in counts[1:]]
            row += [format_percent(counts[-1]["rows"], most), format_size(counts[-1]["bytes"])]
            sizes.append(most)
        rows.append((-max(sizes), name, row))
    heads = [
        f"{head}{subject.tag}"
        for subject, stages in zip(subjects, columns, strict=True)
        for head in (*stages, "kept", "text")
    ]
    return render_table([key, *heads], [row for *_, row in sorted(rows)])


def _ends(stages: list[str]) -> list[str]:
    return [stages[0], stages[-1]] if len(stages) > 1 else stages
