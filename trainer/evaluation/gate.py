"""`conan evaluate --baseline --min --not-worse`: judge models by a baseline and by minimum values of metrics."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from ...schemas.errors import CorpusError, RecipeError
from ...schemas.outcomes import Comparison, Gate, LostRow
from ...schemas.registry import check_names
from .bm25 import BM25
from .evaluate import Judgement, list_metrics
from .evaluation_sets import EvaluationSet
from .metrics import HEADLINE, METRICS, Floats, Integers
from .paired_bootstrap import FEWEST, Bounds, bound, resample, resample_mean

LISTED = 10
"""How many rows a comparison lists, of those that lost most."""


@dataclass(frozen=True)
class Conditions:
    """Conditions that models are judged by.

    `minimums` are by metric. `not_worse` is how far a metric may be below that of `baseline`.
    """

    baseline: str | None = None
    minimums: dict[str, float] = field(default_factory=dict)
    not_worse: float | None = None


Judged = Mapping[tuple[str, str], Sequence[Judgement]]
"""Judgements by a model's name and by what follows it where vectors are cut, as in ("finetune", "@256")."""


def check_conditions(conditions: Conditions, models: Collection[str], sets: Sequence[EvaluationSet]) -> None:
    """Check, before any work, that there is something to judge.

    Raises:
        RecipeError: there is no model but the baseline, the baseline can't be evaluated on any set, or a metric is
            unknown or not one of any set.
    """
    if set(models) == {conditions.baseline}:
        raise RecipeError(
            f"--baseline {conditions.baseline}: no other model is evaluated; name the one to compare with it"
        )
    if conditions.baseline == BM25 and not any(one.task == "retrieval" for one in sets):
        raise RecipeError(f"--baseline {BM25}: it has metrics on retrieval sets only; add one, or name another model")
    check_names("metric", conditions.minimums, METRICS, "--min")
    known = {one.name: list_metrics(one) for one in sets} if conditions.minimums else {}
    for metric in conditions.minimums:
        if not any(metric in names for names in known.values()):
            has = "; ".join(f"{name} has {', '.join(names)}" for name, names in known.items())
            raise RecipeError(f"--min {metric}: no set has this metric: {has}")


def judge_models(conditions: Conditions, models: Collection[str], judged: Judged) -> Gate:
    """Compare each of `models` with the baseline on each set, and check the minimums.

    Compared are the headline metric of each set, and those that have a minimum. Cut vectors are compared with the
    baseline's at the same width, or with all of them if it has no such width.

    Raises:
        CorpusError: a metric is NaN.
    """
    comparisons: list[Comparison] = []
    failures: list[str] = []
    notes: list[str] = []
    wanted = {*HEADLINE.values(), *conditions.minimums}
    baseline = conditions.baseline
    for (name, cut), judgements in judged.items():
        if name not in models or name == baseline:
            continue
        paired = (baseline or "", cut) if (baseline, cut) in judged else (baseline or "", "")
        of_baseline = {each.set: each for each in judged.get(paired, [])}
        for one in judgements:
            failures += _find_too_low(name + cut, one, conditions.minimums)
            notes += [f"{one.set} has no {metric}" for metric in conditions.minimums if metric not in one.metrics]
            if baseline and one.set not in of_baseline:
                notes.append(f"{one.set} is not compared, as {baseline} has no metrics on it")
            elif baseline:
                comparisons += [
                    _compare((name + cut, "".join(paired)), (one, of_baseline[one.set]), metric, conditions.not_worse)
                    for metric in one.metrics
                    if metric in wanted
                ]
    if conditions.not_worse is not None:
        failures += [_say_how_much(each) for each in comparisons if each.verdict == "worse"]
    can_fail = conditions.minimums or conditions.not_worse is not None
    return Gate(comparisons, failures if can_fail else None, list(dict.fromkeys(notes)))


def _find_too_low(model: str, one: Judgement, minimums: Mapping[str, float]) -> Iterator[str]:
    for metric, least in minimums.items():
        if metric in one.metrics and (value := _value(model, one, metric)) < least:
            yield f"{one.set}: {metric} of {model} is {value:.4f}, below the minimum of {least:g}"


def _value(model: str, one: Judgement, metric: str) -> float:
    value = one.metrics[metric]
    if isnan(value):
        raise CorpusError(f"{one.set}: {metric} of {model} is NaN, so the model can't be judged by it")
    return value


def _say_how_much(one: Comparison) -> str:
    return (
        f"{one.set}: {one.metric} of {one.model} is {-one.difference:.4f} below that of {one.baseline} "
        f"({one.value:.4f}, {one.baseline_value:.4f}), with 95 % confidence at least {-(one.high or 0):.4f}"
    )


def _compare(
    names: tuple[str, str], judgements: tuple[Judgement, Judgement], metric: str, not_worse: float | None
) -> Comparison:
    """Compare a metric of a model and the baseline, given as pairs of names and judgements."""
    margin = -(not_worse or 0.0)
    value, baseline_value = (_value(name, one, metric) for name, one in zip(names, judgements, strict=True))
    bounds, note = None, ""
    rows = _values_per_row(names, judgements, metric)
    if rows is None:
        count, note = judgements[0].results.height, f"{metric} belongs to the whole set, so rows can't be drawn from it"
    elif (count := int(np.isfinite(rows[0]).sum())) < FEWEST:
        note = f"{count} rows are too few to tell, expected {FEWEST} or more"
    else:
        bounds = _bound(judgements, metric, margin)
    difference = value - baseline_value
    verdict: Literal["worse", "lower", "not worse", "better"] = "better" if bounds and bounds.low > 0 else "not worse"
    if difference < margin:
        verdict = "worse" if bounds and bounds.high < margin else "lower"
    return Comparison(
        model=names[0],
        baseline=names[1],
        set=judgements[0].set,
        metric=metric,
        value=value,
        baseline_value=baseline_value,
        difference=difference,
        rows=count,
        low=bounds and bounds.low,
        high=bounds and bounds.high,
        p=bounds and bounds.p,
        verdict=verdict,
        note=note,
        lost=[] if rows is None else _find_lost(judgements[0], *rows),
    )


def _values_per_row(
    names: tuple[str, str], judgements: tuple[Judgement, Judgement], metric: str
) -> tuple[Floats, Floats] | None:
    """Return what each row of a set adds to a metric, for a model and the baseline; None if that can't be told.

    Sentence pairs have no values of their own, as Spearman's correlation and others depend on all pairs at once. Their
    value here is 1 less the distance between a pair's rank by cosine and its rank by label, as a share of all pairs:
    what Spearman's correlation squares and sums.

    Raises:
        CorpusError: the metric applies to other rows of the model than of the baseline.
    """
    model, baseline = judgements
    if metric in model.each:
        values = model.each[metric], baseline.each[metric]
        if (np.isnan(values[0]) != np.isnan(values[1])).any():
            raise CorpusError(
                f"{model.set}: {metric} is NaN for other questions of {names[0]} than of {names[1]}, so the two can't "
                "be compared"
            )
        return values
    if METRICS[metric].task != "sts":
        return None
    ranks = rankdata(model.results["label"])
    near = [1 - np.abs(rankdata(one.results["score"]) - ranks) / len(ranks) for one in judgements]
    return near[0], near[1]


def _bound(judgements: tuple[Judgement, Judgement], metric: str, margin: float) -> Bounds:
    """Bound the difference of a metric that is the mean of its rows, or one of sentence pairs."""
    model, baseline = judgements
    if metric in model.each:
        differences = model.each[metric] - baseline.each[metric]
        return bound(resample_mean(differences[np.isfinite(differences)]), margin)
    compute, labels = METRICS[metric].compute, model.results["label"].to_numpy()
    scores = [one.results["score"].to_numpy() for one in judgements]

    def difference(rows: Integers) -> float:
        values: list[Any] = [compute(each[rows], labels[rows]) for each in scores]
        return np.nan if None in values else float(values[0]) - float(values[1])

    return bound(resample(difference, len(labels)), margin)


def _find_lost(model: Judgement, values: Floats, baseline_values: Floats) -> list[LostRow]:
    """List the rows of a set that lost most, the worst first."""
    lost = np.nan_to_num(values - baseline_values)
    worst = [int(row) for row in np.argsort(lost, kind="stable")[:LISTED] if lost[row] < 0]
    texts = ("query", "positive") if "positive" in model.results.columns else ("query",)
    return [
        LostRow(query_id, " / ".join(sides), float(values[row]), float(baseline_values[row]))
        for row, (query_id, *sides) in zip(worst, model.results[worst].select("query_id", *texts).rows(), strict=True)
    ]
