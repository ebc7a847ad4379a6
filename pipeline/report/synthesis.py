"""The section on what language models have written."""

from collections.abc import Sequence

from .elements import escape_text, format_percent, render_bar, render_section, render_table
from .subjects import Subject

_STEPS = ("asked", "answered", "parsed", "faultless", "distinct_queries", "found", "kept")
_COLUMNS = {"source": "By source", "kind": "By kind", "persona": "By persona"}


def render_synthesis(subjects: Sequence[Subject]) -> str:
    """Render how many queries were left after each check, by source, kind and persona."""
    return render_section("synthesis", "Synthesis", "".join(map(_render_subject, subjects)))


def _render_subject(subject: Subject) -> str:
    return "".join(_render_funnel(subject, column, title) for column, title in _COLUMNS.items())


def _render_funnel(subject: Subject, column: str, title: str) -> str:
    sums = ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in (*_STEPS, "prompt_tokens", "answer_tokens"))
    rows = subject.rows(
        f"SELECT {column} AS name, {sums} FROM synthesis_funnel WHERE {column} IS NOT NULL GROUP BY name ORDER BY name"
    )
    table = [
        [
            escape_text(row["name"]),
            *(f"{row[step]:,}" for step in _STEPS),
            f"{format_percent(row['kept'], row['asked'])}{render_bar(row['kept'], row['asked'])}",
            *(f"{row[name]:,}" for name in ("prompt_tokens", "answer_tokens")),
        ]
        for row in rows
    ]
    heads = [column, *(step.replace("_", " ") for step in _STEPS), "share kept", "prompt tokens", "answer tokens"]
    return f"<h3>{title}{subject.tag}</h3>{render_table(heads, table)}" if rows else ""
