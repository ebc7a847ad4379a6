"""The output of a command whose outcome is a typed record: `show_outcome` prints each type in its own way."""

from dataclasses import asdict
from functools import singledispatch
from typing import Any

import typer
import yaml
from rich.table import Column, Table

from .display import excerpt, out, print_table, print_value
from .schemas.outcomes import (
    Evaluated,
    Exported,
    JudgingPlan,
    Pushed,
    Summary,
    SynthesisPlan,
    Trained,
    TrainingPlan,
)


@singledispatch
def show_outcome(outcome: object, as_json: bool) -> None:
    """Print the outcome of a command; its type decides the layout."""
    raise TypeError(f"no way to print a {type(outcome).__name__}")


@show_outcome.register
def _(outcome: Summary, as_json: bool) -> None:
    print_value({**vars(outcome), "rejected": dict(outcome.rejected.most_common())}, as_json, _show_summary)


@show_outcome.register
def _(outcome: Trained, as_json: bool) -> None:
    value = {"stage": outcome.stage, "trained": outcome.trained, "model": outcome.model, **outcome.last_step}
    print_value(value, as_json, _show_training)


@show_outcome.register
def _(outcome: Evaluated, as_json: bool) -> None:
    judged = asdict(outcome.gate) | {"passed": not outcome.gate.failures} if outcome.gate else {}
    print_value({"stage": "evaluate", "metrics": outcome.metrics, **judged}, as_json, _show_metrics)


@show_outcome.register
def _(outcome: Exported, as_json: bool) -> None:
    value = {"stage": "export", "folder": outcome.folder, "warnings": outcome.warnings}
    print_value(value, as_json, lambda _: typer.echo("\n".join([f"export: {outcome.folder}", *outcome.warnings])))


@show_outcome.register
def _(outcome: Pushed, as_json: bool) -> None:
    print_value(asdict(outcome), as_json, _show_push)


@show_outcome.register
def _(outcome: TrainingPlan, as_json: bool) -> None:
    print_value(asdict(outcome), as_json, _show_plan)


@show_outcome.register
def _(outcome: JudgingPlan, as_json: bool) -> None:
    print_value(asdict(outcome), as_json, lambda _: _show_judging(outcome))


def _show_judging(plan: JudgingPlan) -> None:
    out.print(f"{plan.judge}: {plan.to_score:,} of {plan.pairs:,} pairs have no score yet")
    if plan.llm:
        cost = f"prompts of about {plan.tokens:,} tokens, and the answers; the budget is {plan.budget:,}"
        out.print(f"{plan.llm}: {plan.to_grade:,} undecided pairs, {cost}")


@show_outcome.register
def _(outcome: SynthesisPlan, as_json: bool) -> None:
    print_value(asdict(outcome), as_json, lambda _: _show_synthesis(outcome))


def _show_synthesis(plan: SynthesisPlan) -> None:
    for source in plan.sources:
        out.print(
            f"{source.source}: {source.requests:,} of {source.queries:,} queries to {source.passages:,} passages are "
            f"not written yet; up to {source.to_grade:,} grades, about {source.tokens:,} tokens in all; the budget has "
            f"{source.requests_left:,} requests and {source.tokens_left:,} tokens left",
            soft_wrap=True,
        )


def _show_push(pushed: dict[str, Any]) -> None:
    visible = "private" if pushed["private"] else "public"
    if pushed["url"] is None:
        typer.echo(f"would be sent to the {visible} {pushed['kind']} {pushed['repository']}:\n")
        table = Table("file", Column("bytes", justify="right"))
        for name, size in pushed["files"].items():
            table.add_row(name, f"{size:,}")
        out.print(table)
        typer.echo(f"\n{pushed['card']}")
    else:
        size = sum(pushed["files"].values())
        typer.echo(f"push: {len(pushed['files'])} files, {size:,} bytes, {visible}: {pushed['url']}")


def _show_summary(summary: dict[str, Any]) -> None:
    seconds = f"{summary['seconds']:.1f} s" + (f", {summary['skipped']} shards unchanged" if summary["skipped"] else "")
    out.print(f"{summary['stage']} ({seconds})", style="bold")
    table = Table("", Column("rows", justify="right"))
    table.add_row("in", f"{summary['rows_in']:,}")
    for reason, rows in summary["rejected"].items():
        table.add_row(f"  rejected: {reason}", f"{rows:,}")
    table.add_row("out", f"{summary['rows_out']:,}", style="bold")
    print_table(table)
    for name, note in {"empty_sources": summary["empty_sources"], **summary["notes"]}.items():
        if note:
            out.print(f"{name.replace('_', ' ')}: {_in_words(note)}", soft_wrap=True)


def _in_words(note: Any) -> str:
    """Write a note of a stage: a text, a number, or lists and counts by name."""
    if isinstance(note, dict):
        return ", ".join(f"{name} {_in_words(value)}" for name, value in note.items())
    if isinstance(note, list | tuple):
        return ", ".join(map(_in_words, note))
    return f"{note:,}" if isinstance(note, int) else str(note)


def _show_metrics(evaluated: dict[str, Any]) -> None:
    rows = evaluated["metrics"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    out.print("evaluate", style="bold")
    table = Table(
        "set", Column("metric", no_wrap=True), *(Column(model, justify="right", overflow="fold") for model in models)
    )
    for one, metric in dict.fromkeys((row["set"], row["metric"]) for row in rows):
        values = {row["model"]: row["value"] for row in rows if (row["set"], row["metric"]) == (one, metric)}
        table.add_row(one, metric, *(f"{values[model]:.4f}" if model in values else "" for model in models))
    if any(row.get("precision") in ("int8", "binary") for row in rows):
        sizes = {row["model"]: row["bytes_per_vector"] for row in rows}
        table.add_section()
        table.add_row("", "bytes/vector", *(f"{size:,}" if (size := sizes[model]) else "" for model in models))
    print_table(table)
    if "passed" in evaluated:
        _show_gate(evaluated)


def _show_gate(judged: dict[str, Any]) -> None:
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("difference", "90 % interval", "p"))
    table = Table("set", "metric", "model", "baseline", *numbers, "verdict")
    for each in judged["comparisons"]:
        tested = each["p"] is not None
        interval = f"{each['low']:+.4f} to {each['high']:+.4f}" if tested else ""
        verdict = "lower, but not significantly" if tested and each["verdict"] == "lower" else each["verdict"]
        table.add_row(
            *(each[name] for name in ("set", "metric", "model", "baseline")),
            *(f"{each['difference']:+.4f}", interval, f"{each['p']:.4f}" if tested else ""),
            f"{verdict}; {each['note']}" if each["note"] else verdict,
        )
    if judged["comparisons"]:
        print_table(table)
    for each in judged["comparisons"]:
        if each["verdict"] == "worse":
            _show_lost(each)
    for note in judged["notes"]:
        out.print(f"note: {note}", soft_wrap=True)
    for failure in judged["failures"] or ():
        out.print(f"failed: {failure}", style="bold", soft_wrap=True)
    if judged["failures"] == []:
        out.print("passed", style="bold")


def _show_lost(comparison: dict[str, Any]) -> None:
    out.print(f"{comparison['set']}: what lost most {comparison['metric']}", style="bold", soft_wrap=True)
    models = (Column(comparison[name], justify="right", overflow="fold") for name in ("model", "baseline"))
    table = Table(*models, Column("text", no_wrap=True, overflow="ellipsis", ratio=1), expand=out.is_terminal)
    for lost in comparison["lost"]:
        table.add_row(f"{lost['value']:.4f}", f"{lost['baseline_value']:.4f}", excerpt(lost["query"]))
    print_table(table)


def _show_training(trained: dict[str, Any]) -> None:
    if not trained["trained"]:
        typer.echo(f"{trained['stage']}: already trained; model in {trained['model']}")
    else:
        loss = f"loss {trained['loss']:.4f}, " if "loss" in trained else ""
        typer.echo(f"{trained['stage']}: {trained.get('step', 0):,} steps, {loss}model in {trained['model']}")


def _show_plan(plan: dict[str, Any]) -> None:
    for name, value in plan.items():
        if isinstance(value, list):
            for line in value:
                out.print(f"{name.removesuffix('s')}: {line}", soft_wrap=True)
        elif isinstance(value, dict):
            out.print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip(), soft_wrap=True)
        else:
            out.print(f"{name.replace('_', ' ').replace(' mb', ', MB')}: {value:,}")
