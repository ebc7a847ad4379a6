"""The output of commands: tables for people, JSON and CSV for machines, and progress on standard error."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from decimal import Decimal
from math import inf
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .schemas.outcomes import Finding

if TYPE_CHECKING:
    import pyarrow as pa

    from .pipeline.engine.calls import Progress
    from .pipeline.filter.preview import DryRun, Explanation
    from .pipeline.ingest.preview import SourcePreview
    from .pipeline.mine.show_pool import ShownPool
    from .pipeline.recipe_writer.draft import Draft

# Much of the output is data, in which "[/img]" must not be read as markup.
out = Console(markup=False, emoji=False, highlight=False)
_ANY_WIDTH = 1_000_000  # of a line in a file, in characters
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)


def progress() -> AbstractContextManager["Progress"]:
    """Show the progress that a stage reports: as a bar, or as a line every half minute if there is no terminal."""
    from .pipeline.engine.progress_lines import progress_lines

    return _progress_bar() if errors.is_terminal else progress_lines()


@contextmanager
def _progress_bar() -> Iterator["Progress"]:
    """Show a bar with shards, rows, rows per second and the time left."""
    from rich import progress as bars

    from .pipeline.engine.progress_lines import StageProgress, show_seconds

    class Left(bars.ProgressColumn):
        """Time left. Rich's own column averages over half a minute, and a shard may take longer than that."""

        def render(self, task: bars.Task) -> Text:
            seconds = task.fields["progress"].seconds_left
            return Text(show_seconds(seconds) if seconds < inf else "-:--:--")

    columns = (
        bars.TextColumn("{task.description:20}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[progress].rate}"),
        Left(),
    )
    bar = bars.Progress(*columns, console=errors, transient=True)

    def show(stage: str, done: int, total: int, rows: int) -> None:
        if not bar.tasks or bar.tasks[0].description != stage:
            clear()
            bar.add_task(stage, total=total, completed=done, progress=StageProgress(stage, skipped=done))
            bar.start()
        task = bar.tasks[0]
        task.fields["progress"].update(done, total, rows)
        bar.update(task.id, completed=done, total=total)
        if done == total:
            clear()

    def clear() -> None:
        """Remove the bar, so that output that follows and training processes have the terminal."""
        bar.stop()
        for task in bar.task_ids:
            bar.remove_task(task)

    try:
        yield show
    finally:
        clear()


def echo_json(value: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Print one line of JSON, with null for NaN and infinite numbers."""
    typer.echo(_as_json(value))


def _as_json(value: Any) -> str:
    from pydantic_core import to_json

    return to_json(_plain(value), inf_nan_mode="null", bytes_mode="base64", fallback=str).decode()


def _plain(value: Any) -> Any:
    """Turn decimals into numbers, at any depth. DuckDB's sum() of integers is a decimal, and JSON would say "280"."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def print_value(value: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a value as JSON, or as `show` does for people."""
    if as_json:
        echo_json(value)
    else:
        show(value)


def show_rows(found: "pa.Table", as_json: bool = False, as_csv: bool = False) -> None:
    """Print the result of an SQL query."""
    if as_json:
        for record in found.to_pylist():
            echo_json(record)
    elif as_csv:
        _echo_csv(found)
    else:
        table = Table(*(Column(name, overflow="fold") for name in found.column_names))
        for record in found.to_pylist():
            table.add_row(*map(_cell, record.values()))
        print_table(table)


def _echo_csv(found: "pa.Table") -> None:
    """Print a header and a line per row. Lists, structs and bytes, which CSV does not have, are written as in JSON."""
    import polars as pl
    from pydantic_core import to_json

    def as_text(value: Any) -> str | None:
        return (
            None if value is None else to_json(value, inf_nan_mode="null", bytes_mode="base64", fallback=str).decode()
        )

    frame = pl.DataFrame(pl.from_arrow(found))
    for name, kind in frame.schema.items():
        if kind.is_nested() or kind in (pl.Binary, pl.Object):
            values = [None if value is None else _as_json(value) for value in found[name].to_pylist()]
            frame = frame.with_columns(pl.Series(name, values, pl.String))
    typer.echo(frame.write_csv(), nl=False)


def print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, or in a pipe or a file as wide as its cells."""
    if not out.is_terminal:
        out.width = _ANY_WIDTH
    out.print(table)


def show_explanation(explanation: "Explanation", as_json: bool) -> None:
    """Print one pair and each rule's verdict."""
    print_value(asdict(explanation), as_json, _show_explanation)


def _show_explanation(explanation: dict[str, Any]) -> None:
    pair = explanation["pair"]
    out.print(
        f"{pair['pair_id']}  {pair['source']}, {pair['category']}, {pair['format']}, {pair['task']}", style="bold"
    )
    for side in ("query", "positive"):
        text = pair[side]
        out.print(f"{side}: {text[:500]}{' …' if len(text) > 500 else ''}", soft_wrap=True)
    reason = explanation["reason"]
    out.print(f"rejected: {reason} ({explanation['detail']})" if reason else "kept", style="bold")
    rule, value = Column("rule", no_wrap=True), Column("value", justify="right")
    table = Table(rule, "side", value, "bound", Column("verdict", no_wrap=True))
    for finding in explanation["findings"]:
        measured, threshold = finding["value"], finding["threshold"]
        table.add_row(
            finding["rule"],
            finding["side"],
            "" if measured is None else f"{measured:.4g}",
            "" if threshold is None else f"{finding['bound']} {threshold:g}",
            finding["verdict"],
        )
    print_table(table)
    for finding in explanation["findings"]:
        if finding["verdict"] == "fails":
            out.print(f"{finding['rule']}: threshold from {finding['origin']}", soft_wrap=True)


def show_pool(pool: "ShownPool", as_json: bool) -> None:
    """Print a query's positives, its nearest passages, and the reason why each is kept or dropped."""
    print_value(asdict(pool), as_json, _show_pool)


def _show_pool(pool: dict[str, Any]) -> None:
    run, ceiling = pool["run"], pool["ceiling"]
    out.print(f"query {pool['query_id']}: {excerpt(pool['query'])}", style="bold", soft_wrap=True)
    below = "" if ceiling is None else f", candidates below {ceiling:.4f}"
    out.print(f"{run['method']} {run['margin']:g}, top {run['top_k']} of {run['passages']:,} passages{below}")
    for positive in pool["positives"]:
        out.print(f"positive {positive['score']:.4f}: {excerpt(positive['text'])}", no_wrap=True, overflow="ellipsis")
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("place", "score"))
    line = Column("passage", no_wrap=True, overflow="ellipsis", ratio=1)  # takes the width that the others leave
    table = Table(*numbers, Column("verdict", no_wrap=True), line, expand=out.is_terminal)
    for passage in pool["passages"]:
        rank = "" if passage["rank"] is None else f" (rank {passage['rank']})"
        verdict, score = passage["verdict"] + rank, f"{passage['score']:.4f}"
        table.add_row(str(passage["place"]), score, verdict, excerpt(passage["text"]))
    print_table(table)
    for rule, passages in pool["dropped"].items():
        out.print(f"dropped: {passages:,} {rule}")


def ask_grade(pair: dict[str, Any]) -> str:
    """Show a query, its known positives and a passage; return the key that is pressed."""
    from click import getchar

    errors.print(f"\nquery: {pair['query']}", style="bold", soft_wrap=True)
    for text in pair["positives"] or ():
        if text != pair["passage"]:
            errors.print(f"  known positive: {excerpt(text)}", soft_wrap=True)
    errors.print(f"passage: {pair['passage']}", soft_wrap=True)
    errors.print("3 relevant, 2 partial, 1 related, 0 irrelevant; s skip, any other key ends", style="dim")
    return getchar()


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line[:200] + " …" if len(line) > 200 else line


def _cell(value: Any) -> str:
    """Format a value for a table. Fractions have six digits, as more are noise in a float32; JSON has them all."""
    if isinstance(value, float) and abs(value) < 1e6:
        return f"{value:.6g}"
    return "" if value is None else str(value)


def show_sources(sources: Iterable["SourcePreview"], as_json: bool) -> None:
    """Print the columns of sources, and the pairs and rejects of their samples, one after the other."""
    if as_json:
        echo_json([asdict(source) for source in sources])
        return
    for source in sources:
        _show_source(asdict(source))


def _show_source(source: dict[str, Any]) -> None:
    files = source["files"]
    out.print(f"{source['name']}: {files:,} file{'s' * (files != 1)}", style="bold")
    if source["columns"]:
        table = Table("column", "type")
        for name, kind in source["columns"].items():
            table.add_row(name, kind)
        print_table(table)
    if source["error"]:
        out.print(source["error"], soft_wrap=True)
        return
    left_out = f", {source['left_out']:,} left out by where" if source["left_out"] else ""
    out.print(f"{source['rows']:,} rows tried: {source['kept']:,} pairs{left_out}; nothing written")
    for query, positive in source["pairs"]:
        out.print(f"  query: {excerpt(query)}", soft_wrap=True)
        out.print(f"  positive: {excerpt(positive)}", soft_wrap=True)
    for reason, (number, example) in source["rejected"].items():
        out.print(f"  rejected: {reason} {number:,}, first {excerpt(example)}", soft_wrap=True)


def show_draft(draft: "Draft", as_json: bool) -> None:
    """Print the sources of a drafted recipe with their first pairs, the files that none reads, and what to run next."""
    print_value(asdict(draft), as_json, _show_draft)


def _show_draft(draft: dict[str, Any]) -> None:
    for source in draft["sources"]:
        files = len(source["paths"])
        kind = "evaluation set, " if source["section"] == "evaluation" else ""
        out.print(f"{source['name']}: {kind}{source['read']}, {source['task']}, {source['format']}", style="bold")
        out.print(f"  {files:,} file{'s' * (files != 1)}: {', '.join(source['files'])}", soft_wrap=True)
        out.print(f"  {source['why']}", soft_wrap=True)
        for query, positive in source["pairs"]:
            if query:
                out.print(f"  query: {excerpt(query)}", soft_wrap=True)
            out.print(f"  positive: {excerpt(positive)}", soft_wrap=True)
        for reason, (number, example) in source["rejected"].items():
            out.print(f"  rejected: {reason} {number:,}, first {excerpt(example)}", soft_wrap=True)
    reasons: dict[str, list[str]] = {}
    for path, reason in draft["unplaced"].items():
        reasons.setdefault(reason, []).append(path)
    if reasons:
        out.print("not read:", style="bold")
    for reason, paths in reasons.items():
        out.print(f"  {', '.join(paths)}: {reason}", soft_wrap=True)
    recipe, corpus = draft["recipe"], draft["corpus"]
    out.print(f"{recipe} is written. Read it, correct what it guesses wrongly, then run", style="bold")
    commands = [f"conan ingest {corpus} --recipe {recipe} --dry-run", f"conan check {recipe} {corpus}"]
    commands.append(
        f"conan run {recipe} {corpus}" if draft["can_train"] else f"conan ingest {corpus} --recipe {recipe}"
    )
    for command in commands:
        out.print(f"  {command}", soft_wrap=True)
    if draft["can_train"]:
        out.print("and, to see whether the trained model is better than the one it started from,", style="bold")
        out.print(f"  conan evaluate {corpus} finetune --baseline MODEL", soft_wrap=True)


def show_dry_run(tried: "DryRun", as_json: bool) -> None:
    """Print how many pairs of a sample each rule would reject, with examples."""
    print_value(asdict(tried), as_json, _show_dry_run)


def _show_dry_run(tried: dict[str, Any]) -> None:
    rows, kept, rejected = (f"{tried[key]:,}" for key in ("rows", "kept", "rejected"))
    out.print(
        f"{rows} of {tried['corpus_rows']:,} pairs: {kept} kept, {rejected} rejected; nothing written", style="bold"
    )
    table = Table("rule", *(Column(name, justify="right") for name in ("rejected", "share", "failing")))
    for losses in tried["rules"]:
        table.add_row(losses["rule"], f"{losses['first']:,}", f"{losses['share']:.2%}", f"{losses['fails']:,}")
    print_table(table)
    for losses in tried["rules"]:
        for example in losses["examples"]:
            out.print(
                f"{losses['rule']} {example['detail']}  {example['source']} {example['pair_id'][:8]}", style="bold"
            )
            for side in ("query", "positive"):
                out.print(f"  {side}: {' '.join(example[side].split())}", soft_wrap=True)


_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def show_findings(findings: list[Finding], as_json: bool) -> None:
    """Print a line for each finding of `conan doctor`, with its cure."""
    if as_json:
        echo_json([asdict(finding) for finding in findings])
        return
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = Text(f"{finding.level:8}", style=_STYLES[finding.level])
        cure = f" → {finding.cure}" if finding.cure else ""
        out.print(level, f"{finding.check:{width}}  {finding.found}{cure}", soft_wrap=True)
