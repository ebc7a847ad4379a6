"""The sections on rejects: how many each rule made, and a table of examples that can be searched."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from ..corpus.folder import STAGES
from ..text.personal_data import mask_texts
from .elements import escape_text, format_percent, render_bar, render_section, render_table
from .subjects import Subject

_EXAMPLES = 3
"""The most examples of a stage, rule and source."""

_MOST = 300
"""The most examples on a page: chosen here, so that it is under 2 MB."""

_SHOWN = 100
"""The most characters shown of a text."""

_READ = 10 * _SHOWN
"""The characters that are read of a text: more than are shown, so that personal data is masked before it is cut."""

_TEXTS = ("query", "positive", "record", "detail")


def render_rejects(subjects: Sequence[Subject]) -> str:
    """Render the number of rejects by stage and rule."""
    found = {subject.name: _count(subject) for subject in subjects}
    totals: dict[tuple[str, str], int] = {}
    for name, rules in found.items():
        for (stage, _), rule in rules.items():
            totals[name, stage] = totals.get((name, stage), 0) + rule["rows"]
    most = {
        key: max(each[key]["rows"] for each in found.values() if key in each) for each in found.values() for key in each
    }
    rows = []
    for stage, reason in sorted(most, key=lambda key: (STAGES.index(key[0]), -most[key], key[1])):
        row = [escape_text(reason), stage]
        for name, rules in found.items():
            rule = rules.get((stage, reason), {"rows": 0, "rows_in": 0})
            row += [
                f"{rule['rows']:,}{render_bar(rule['rows'], totals.get((name, stage), 0))}",
                format_percent(rule["rows"], rule["rows_in"]),
            ]
        rows.append(row)
    if not rows:
        return ""
    heads = [f"{head}{subject.tag}" for subject in subjects for head in ("rows", "of stage's input")]
    note = (
        '<p class="note">A bar shows the share of the stage\'s rejects. <a href="#examples">Examples</a> are at the '
        "end of the page.</p>"
    )
    return render_section("rejects", "Rejects", render_table(["rule", "stage", *heads], rows) + note)


def _count(subject: Subject) -> dict[tuple[str, str], dict[str, Any]]:
    """Count the rejects of each rule of each stage."""
    rules = subject.rows(
        """
        WITH came AS (
            SELECT split_part(folder, '/', 1) AS stage, CAST(sum(rows_in) AS BIGINT) AS rows_in FROM runs GROUP BY ALL
        )
        SELECT stage, reason, CAST(sum(rows) AS BIGINT) AS rows, any_value(rows_in) AS rows_in
        FROM rules JOIN came USING (stage) GROUP BY stage, reason
        """
    )
    return {(rule["stage"], rule["reason"]): rule for rule in rules}


def render_examples(subjects: Sequence[Subject]) -> str:
    """Render a table of examples: some of each stage, rule and source; in the browser it can be filtered."""
    found = [(subject, _draw(subject, _MOST // len(subjects))) for subject in subjects]
    heads = ["stage", "rule", "source", "rows", "detail", "texts"] + ["corpus"] * (len(subjects) > 1)
    rows = "".join(
        _render_example(row, subject if len(subjects) > 1 else None)
        for subject, examples in found
        for row in examples.iter_rows(named=True)
    )
    if not rows:
        return ""
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    selects = "".join(
        f'<select data-column="{heads.index(name)}" aria-label="{name}"><option value="">every {name}</option></select>'
        for name in ("stage", "rule", "source", "corpus")
        if name in heads
    )
    return render_section(
        "examples",
        "Examples of rejects",
        f'<p class="note">Up to {_EXAMPLES} of each stage, rule and source, drawn at random, and {_MOST} in all; rows '
        "says how many there are. Personal data is masked, texts are shortened.</p>"
        '<div class="filters" hidden><input type="search" placeholder="search" aria-label="search">'
        f'{selects}<output aria-live="polite"></output></div><table class="examples"><thead><tr>'
        f"{columns}</tr></thead><tbody>{rows}</tbody></table>",
    )


def _draw(subject: Subject, most: int) -> pl.DataFrame:
    """Draw examples: every rule has some before any source has several, and those of the most rows come first.

    Twice as many are read as are shown, since identical ones are shown once.
    """
    texts = ", ".join(f"{name}: left({name}, {_READ})" for name in _TEXTS)
    table = subject.query(
        f"""
        WITH counted AS (
            SELECT stage, reason, coalesce(source, '') AS source, count(*) AS rows FROM rejected GROUP BY ALL
        ), chosen AS (
            FROM counted
            ORDER BY row_number() OVER (PARTITION BY stage, reason ORDER BY rows DESC, source), rows DESC, stage, reason
            LIMIT {most}
        )
        SELECT stage, reason, chosen.source, rows, min_by(
            {{{texts}, place: file || coalesce(':' || line, '')}},
            hash(coalesce(query, record, ''), coalesce(positive, ''), detail), {2 * _EXAMPLES}
        ) AS examples
        FROM rejected JOIN chosen USING (stage, reason)
        WHERE coalesce(rejected.source, '') = chosen.source
        GROUP BY ALL ORDER BY rows DESC, stage, reason
        """
    )
    group = ("stage", "reason", "source")
    examples = pl.DataFrame(table).explode("examples").unnest("examples").unique((*group, *_TEXTS), maintain_order=True)
    return (
        examples.with_columns(mask_texts(examples[name])[0].alias(name) for name in _TEXTS)
        .with_columns(number=pl.int_range(pl.len()).over(group), order=pl.col("stage").replace_strict(_ORDER))
        .filter(pl.col("number") < _EXAMPLES)
        .sort("number", maintain_order=True)
        .head(most)
        .sort("order", "reason", "source", "number")
    )


_ORDER = {stage: place for place, stage in enumerate(STAGES)}


def _render_example(example: dict[str, Any], subject: Subject | None) -> str:
    """Render a reject; its texts are untrusted. What never became a pair has its raw record and place."""
    fields = {name: example[name] for name in ("query", "positive")}
    if None in fields.values():
        fields = {"record": example["record"] or ""}
    texts = "".join(
        f"<dt>{name}</dt><dd>{f'<bdi>{escape_text(text, _SHOWN)}</bdi>' if text else '<i>empty</i>'}</dd>"
        for name, text in fields.items()
    )
    if example["place"]:
        texts += f"<dt>place</dt><dd><bdi>{escape_text(example['place'], _SHOWN)}</bdi></dd>"
    cells = [example["stage"], escape_text(example["reason"]), escape_text(example["source"]), f"{example['rows']:,}"]
    corpus = f"<td>{escape_text(subject.name)}</td>" if subject else ""
    return (
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}<td><bdi>{escape_text(example['detail'], _SHOWN)}</bdi>"
        f'</td><td><dl lang="zh">{texts}</dl></td>{corpus}</tr>'
    )
