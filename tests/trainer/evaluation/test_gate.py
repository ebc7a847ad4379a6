"""Models judged by a baseline and minimums, with exact verdicts, and how the command ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import Conan
from conan_embedding.schemas.errors import CorpusError, RecipeError
from conan_embedding.schemas.outcomes import Comparison
from conan_embedding.trainer.evaluation import paired_bootstrap
from conan_embedding.trainer.evaluation.evaluate import Judgement, list_metrics
from conan_embedding.trainer.evaluation.evaluation_sets import EvaluationSet
from conan_embedding.trainer.evaluation.gate import Conditions, check_conditions, judge_models
from conan_embedding.trainer.evaluation.metrics import METRICS


def retrieval(values: list[float], name: str = "own", metric: str = "ndcg@10") -> Judgement:
    results = pl.DataFrame({"query_id": [f"id {row}" for row in range(len(values))]})
    results = results.with_columns(query=pl.format("q{}", pl.int_range(pl.len())))
    each = np.array(values)
    return Judgement(name, 8, "float32", {metric: float(np.nanmean(each))}, results, {metric: each})


def pairs(scores: list[float], labels: list[float]) -> Judgement:
    results = pl.DataFrame({"label": labels, "score": scores}).with_columns(query_id=pl.lit("i"), query=pl.lit("a"))
    found = METRICS["spearman"].compute(np.array(scores), np.array(labels))
    return Judgement("pairs", 8, "float32", {"spearman": found}, results.with_columns(positive=pl.lit("b")), {})


def compare(model: Judgement, baseline: Judgement, not_worse: float | None = None) -> Comparison:
    judged = {("base", ""): [baseline], ("model", ""): [model]}
    (found,) = judge_models(Conditions("base", {}, not_worse), ["model"], judged).comparisons
    return found


def test_a_model_that_is_worse_fails_and_the_questions_that_lost_most_are_listed() -> None:
    before = [1.0] * 20
    after = [0.0, 0.5, 0.25] + [0.9] * 15 + [1.0, 1.0]
    judged = {("base", ""): [retrieval(before)], ("model", ""): [retrieval(after)]}
    gate = judge_models(Conditions("base", {}, 0.05), ["model"], judged)
    (found,) = gate.comparisons
    assert (found.verdict, found.rows, found.value, found.baseline_value) == ("worse", 20, np.mean(after), 1)
    assert found.difference == pytest.approx(-0.1875)
    assert found.p is not None and found.p < 0.05  # the share of resamples at -0.05 or above
    assert [(lost.query_id, lost.query, lost.value) for lost in found.lost[:4]] == [
        ("id 0", "q0", 0.0), ("id 2", "q2", 0.25), ("id 1", "q1", 0.5), ("id 3", "q3", 0.9),
    ]  # fmt: skip
    assert len(found.lost) == 10
    assert gate.failures == [
        "own: ndcg@10 of model is 0.1875 below that of base (0.8125, 1.0000), with 95 % confidence at least "
        f"{-(found.high or 0):.4f}"
    ]
    assert judge_models(Conditions("base"), ["model"], judged).failures is None  # a comparison alone can't fail


def test_a_lower_mean_that_chance_explains_does_not_fail_and_is_told() -> None:
    before, after = [1.0, 0.0] * 10, [0.0, 1.0] * 9 + [0.0, 0.0]
    found = compare(retrieval(after), retrieval(before), 0.005)
    assert found.difference == pytest.approx(-0.05)
    assert (found.verdict, found.note) == ("lower", "")
    assert found.high is not None and found.high > 0
    assert compare(retrieval(after), retrieval(before), 0.06).verdict == "not worse"
    assert compare(retrieval(before), retrieval(after)).verdict == "not worse"


def test_a_model_is_better_if_chance_does_not_explain_it() -> None:
    before, after = [0.0] * 10, [1.0] * 3 + [0.0] * 7
    found = compare(retrieval(after), retrieval(before), 0.005)
    assert (found.verdict, found.difference) == ("better", pytest.approx(0.3))
    assert found.low is not None and found.low > 0
    few = compare(retrieval(after[:4]), retrieval(before[:4]))
    assert (few.verdict, few.low) == ("not worse", None)


def test_the_margin_is_what_the_true_difference_must_be_below() -> None:
    """All questions lose 0.1, so every resample does."""
    model, baseline = retrieval([0.5] * 9), retrieval([0.6] * 9)
    assert compare(model, baseline, 0.09).verdict == "worse"
    assert compare(model, baseline, 0.11).verdict == "not worse"


@pytest.mark.parametrize("rows", [1, 4])
def test_too_few_questions_can_not_fail(rows: int) -> None:
    found = compare(retrieval([0.0] * rows), retrieval([1.0] * rows), 0.0)
    assert (found.verdict, found.p, found.high) == ("lower", None, None)
    assert found.note == f"{rows} rows are too few to tell, expected 5 or more"
    assert compare(retrieval([0.0] * 5), retrieval([1.0] * 5), 0.0).verdict == "worse"


def test_equal_models_are_not_worse() -> None:
    found = compare(retrieval([0.3] * 7), retrieval([0.3] * 7), 0.0)
    assert (found.verdict, found.low, found.high, found.p, found.lost) == ("not worse", 0, 0, 1, [])


def test_questions_to_which_a_metric_does_not_apply_are_left_out() -> None:
    before, after = [1.0] * 6 + [np.nan] * 3, [0.5] * 6 + [np.nan] * 3
    found = compare(retrieval(after, metric="spearman"), retrieval(before, metric="spearman"), 0.1)
    assert (found.rows, found.verdict, len(found.lost)) == (6, "worse", 6)
    with pytest.raises(CorpusError, match=r"own: ndcg@10 is NaN for other questions of model than of base"):
        compare(retrieval([*after, 1.0]), retrieval([*before, np.nan]))


def test_sentence_pairs_are_compared_by_spearman_and_lose_by_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_bootstrap, "RECOMPUTED", 100)
    labels = [float(row) for row in range(40)]
    turned = labels[::-1][:20] + labels[20:]
    turned[:20] = labels[:20][::-1]
    found = compare(pairs(turned, labels), pairs(labels, labels), 0.01)
    assert (found.metric, found.rows, found.verdict, found.baseline_value) == ("spearman", 40, "worse", 1)
    assert (found.lost[0].query, found.lost[0].baseline_value, found.lost[0].value) == ("a / b", 1, 1 - 19 / 40)


def test_a_metric_of_the_whole_set_is_compared_without_an_interval() -> None:
    results = pl.DataFrame({"query_id": ["1"], "query": ["a"]})
    one = Judgement("classes", 8, "float32", {"v_measure": 0.5}, results, {})
    two = Judgement("classes", 8, "float32", {"v_measure": 0.25}, results, {})
    judged = {("base", ""): [one], ("model", ""): [two]}
    gate = judge_models(Conditions("base", {"v_measure": 0.2}, 0.01), ["model"], judged)
    (found,) = gate.comparisons
    assert (found.difference, found.p, found.verdict, gate.failures) == (-0.25, None, "lower", [])
    assert found.note == "v_measure belongs to the whole set, so rows can't be drawn from it"


def test_minimums_hold_for_every_model_and_width_and_sets_without_the_metric_are_told() -> None:
    judged = {
        ("base", ""): [retrieval([0.1])],
        ("model", ""): [retrieval([0.8]), pairs([1, 2, 3], [1, 2, 3])],
        ("model", "@4"): [retrieval([0.7])],
    }
    gate = judge_models(Conditions("base", {"ndcg@10": 0.8}), ["model", "base"], judged)
    assert gate.failures == ["own: ndcg@10 of model@4 is 0.7000, below the minimum of 0.8"]
    assert gate.notes == ["pairs has no ndcg@10", "pairs is not compared, as base has no metrics on it"]
    assert [(each.model, each.baseline) for each in gate.comparisons] == [("model", "base"), ("model@4", "base")]
    judged["base", "@4"] = [retrieval([0.1])]
    gate = judge_models(Conditions("base"), ["model"], judged)
    assert [each.baseline for each in gate.comparisons] == ["base", "base@4"]


def test_a_metric_that_is_nan_is_refused() -> None:
    nothing = Judgement("own", 8, "float32", {"ndcg@10": float("nan")}, pl.DataFrame({"query_id": []}), {})
    judged = {("base", ""): [retrieval([1.0])], ("model", ""): [nothing]}
    for conditions in (Conditions("base"), Conditions(None, {"ndcg@10": 0.1})):
        with pytest.raises(CorpusError, match="own: ndcg@10 of model is NaN, so the model can't be judged by it"):
            judge_models(conditions, ["model"], judged)


def test_what_can_not_be_judged_is_refused_before_any_work() -> None:
    frame = pl.DataFrame({"query_id": ["1"], "query": ["q"], "positives": [["a"]], "negatives": [["n"]]})
    asked = EvaluationSet("own", "retrieval", frame)
    labelled = pl.DataFrame({"query_id": ["1", "2"], "text_a": "a", "text_b": "b", "label": [0.0, 1.0]})
    every = ["ndcg@10", "mrr@10", "recall@10", "recall@100"]
    assert list_metrics(asked) == [*every, "map"]
    without = pl.Series([[]], dtype=pl.List(pl.String))
    bare = EvaluationSet("own", "retrieval", frame.with_columns(negatives=without))
    assert list_metrics(bare) == every
    assert list_metrics(EvaluationSet("p", "sts", labelled)) == ["spearman", "ap", "best_accuracy"]
    graded = EvaluationSet("p", "sts", labelled.with_columns(label=pl.lit(0.5)))
    assert list_metrics(graded) == ["spearman"]
    check_conditions(Conditions("base", {"map": 0.5}), ["model", "base"], [asked, graded])
    for conditions, models, message in (
        (Conditions(None, {"ndcg@5": 0.5}), ["model"], "--min: no metric is called 'ndcg@5'; did you mean 'ndcg@10'"),
        (Conditions(None, {"map": 0.5}), ["model"], "--min map: no set has this metric: own has ndcg@10, .*; p has sp"),
        (Conditions("base"), ["base"], "--baseline base: no other model is evaluated"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_conditions(conditions, models, [bare, graded])
    with pytest.raises(RecipeError, match="--baseline bm25: it has metrics on retrieval sets only"):
        check_conditions(Conditions("bm25"), ["model"], [graded])


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    rows = [{"query": f"一丁{c}", "positives": [f"一丁{c}七"]} for c in "万丈三上下不与"]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "own.jsonl"


def test_the_command_ends_with_4_if_a_model_fails(conan: Conan, tiny: Path, sets: Path) -> None:
    def run(*more: str) -> tuple[int, Any]:
        code, out, _ = conan("evaluate", tiny, "--sets", sets, "--json", *more)
        return code, json.loads(out) if out else None

    code, found = run("--baseline", "bm25", "--not-worse", "1", "--min", "ndcg@10=-1")
    assert (code, found["passed"], found["failures"]) == (0, True, [])
    (compared,) = found["comparisons"]
    assert (compared["baseline"], compared["set"], compared["rows"]) == ("bm25", "own", 7)
    assert [row["model"] for row in found["metrics"]][:1] == ["bm25"]
    code, found = run("--min", "ndcg@10=1.1")
    assert (code, found["passed"], len(found["failures"])) == (4, False, 1)
    assert run()[1].keys() == {"stage", "metrics"}
    for wrong in (
        ["--not-worse", "0.1"],
        ["--min", "ndcg@10"],
        ["--min", "ndcg@10=nan"],
        ["--min", "=0.5"],
        ["--min", "ndcg@5=0.5"],
        ["--baseline", "bm25", "--not-worse", "-1"],
        ["--baseline", str(tiny)],
    ):
        assert run(*wrong)[0] == 2, wrong
