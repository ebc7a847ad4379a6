"""Metrics against mteb's own functions, scikit-learn's and plain loops, on random arrays with and without ties."""

from typing import Any

import numpy as np
import pytest
from conan_embedding.trainer.evaluation import metrics


def tied(random: np.random.Generator, rows: int, columns: int) -> Any:
    """Draw scores with many ties."""
    return (random.integers(-3, 4, (rows, columns)) / np.float32(3)).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(20, 50, 10), (5, 7, 7), (1, 1, 1), (30, 200, 100)])
def test_the_best_are_those_of_a_stable_sort(rows: int, columns: int, depth: int) -> None:
    random = np.random.default_rng(rows)
    for scores in (tied(random, rows, columns), random.normal(size=(rows, columns)).astype(np.float32)):
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        assert np.array_equal(metrics.best(scores, depth), wanted)


def test_zeros_of_either_sign_are_equal_and_what_is_no_number_is_last() -> None:
    scores = np.array([[np.nan, 0.0, -0.0, 0.0, -np.nan, -1.0, np.inf, -np.inf]], np.float32)
    assert metrics.best(scores, 6).tolist() == [[6, 1, 2, 3, 5, 0]]


@pytest.mark.parametrize(("passages", "most"), [(300, 20), (60, 60), (7, 3)])
@pytest.mark.parametrize("ties", [True, False])
def test_retrieval_metrics_are_mtebs(passages: int, most: int, ties: bool) -> None:
    theirs = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    random = np.random.default_rng(passages)
    queries = 40
    scores = tied(random, queries, passages) if ties else random.normal(size=(queries, passages)).astype(np.float32)
    answers = [random.choice(passages, random.integers(1, most + 1), replace=False) for _ in range(queries)]
    # In ties, trec_eval ranks the greatest name first.
    names = [f"{9999 - place}" for place in range(passages)]
    found = theirs.calculate_retrieval_scores(
        {str(i): dict(zip(names, map(float, row), strict=True)) for i, row in enumerate(scores)},
        {str(i): {names[place]: 1 for place in wanted} for i, wanted in enumerate(answers)},
        [10, 100],
    )

    ranked = metrics.best(scores, min(100, passages))
    gains = np.array([np.isin(row, wanted) for row, wanted in zip(ranked, answers, strict=True)])
    counts = np.array([len(wanted) for wanted in answers])
    assert metrics.ndcg(gains, counts, 10).mean() == pytest.approx(found.ndcg["NDCG@10"], abs=1e-5)  # mteb rounds it
    assert metrics.reciprocal_rank(gains, 10).mean() == pytest.approx(found.mrr["MRR@10"])
    assert metrics.recall(gains, counts, 10).mean() == pytest.approx(found.recall["Recall@10"], abs=1e-5)
    assert metrics.recall(gains, counts, 100).mean() == pytest.approx(found.recall["Recall@100"], abs=1e-5)


@pytest.mark.parametrize("ties", [True, False])
def test_average_precision_is_mtebs(ties: bool) -> None:
    theirs = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    random = np.random.default_rng(1)
    counts = random.integers(2, 30, 50)
    owner = np.repeat(np.arange(50), counts)
    scores = tied(random, 1, len(owner))[0] if ties else random.normal(size=len(owner)).astype(np.float32)
    wanted = random.random(len(owner)) < 0.3
    wanted[np.cumsum(counts) - 1] = True
    # mteb names the positives of reranking such that they come last in ties.
    names = [f"{'apositive' if right else 'negative'}_{place}" for place, right in enumerate(wanted)]
    results: dict[str, dict[str, float]] = {str(query): {} for query in range(50)}
    relevant: dict[str, dict[str, int]] = {str(query): {} for query in range(50)}
    for query, name, value, right in zip(owner, names, scores, wanted, strict=True):
        results[str(query)][name] = float(value)
        relevant[str(query)][name] = int(right)
    found = theirs.calculate_retrieval_scores(results, relevant, [1000])
    each = metrics.average_precision(owner, scores, wanted)
    assert each.tolist() == pytest.approx([found.all_scores[str(query)]["map_cut_1000"] for query in range(50)])


def test_a_model_that_says_nothing_gains_nothing_in_reranking() -> None:
    alike = metrics.average_precision(np.zeros(4, np.int64), np.ones(4), np.array([True, False, False, False]))
    assert alike.tolist() == [0.25]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [True, False])
def test_best_accuracy_is_mtebs(seed: int, ties: bool) -> None:
    mocks = pytest.importorskip("mteb.mocks.mock_tasks.pair_classification")
    random = np.random.default_rng(seed)
    scores = tied(random, 1, 60)[0] if ties else random.normal(size=60).astype(np.float32)
    labels = (random.random(60) < 0.2 + 0.2 * seed).astype(int)
    theirs = mocks.MockPairClassificationTask()._compute_metrics_values(scores.tolist(), labels, True)
    assert metrics.best_accuracy(scores, labels == 1) == pytest.approx(theirs["accuracy"])


def test_best_accuracy_by_hand() -> None:
    scores, labels = np.array([0.1, 0.2, 0.2, 0.9]), np.array([False, True, False, True])
    assert metrics.best_accuracy(scores, labels) == 0.75
    assert metrics.best_accuracy(np.ones(4), labels) == 0


def clouds(random: np.random.Generator, texts: int) -> tuple[Any, Any]:
    """Draw vectors around three centres, and their classes, one of which is rare."""
    classes = np.array(["甲", "乙", "丙"])[np.minimum(random.integers(0, 20, texts) // 9, 2)]
    centres = {name: random.normal(size=8) for name in ("甲", "乙", "丙")}
    vectors = np.array([centres[name] for name in classes]) + random.normal(size=(texts, 8)) * 1.5
    return vectors.astype(np.float32), classes


def test_a_class_is_told_by_its_neighbours() -> None:
    vectors, classes = clouds(np.random.default_rng(0), 303)
    accuracy, right = metrics.classification(vectors, classes, np.zeros(303, bool))
    assert accuracy == pytest.approx(right.mean(), abs=0.01)
    assert set(right.tolist()) == {0.0, 1.0}  # every text is tested once
    assert 0.6 < accuracy < 1
    learnt = np.arange(303) < 200
    accuracy, right = metrics.classification(vectors, classes, learnt)
    assert np.isnan(right[:200]).all()
    assert accuracy == pytest.approx(right[200:].mean())
    assert 0.6 < accuracy < 1


def test_at_most_so_many_of_a_class_are_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    seen = []

    class Model(linear_model.LogisticRegression):  # type: ignore[misc, name-defined]
        def fit(self, vectors: Any, classes: Any) -> Any:
            seen.append(dict(zip(*np.unique(classes, return_counts=True), strict=True)))
            return super().fit(vectors, classes)

    monkeypatch.setattr(linear_model, "LogisticRegression", Model)
    vectors, classes = clouds(np.random.default_rng(1), 400)
    metrics.classification(vectors, classes, np.arange(400) < 300)
    rare = int((classes[:300] == "丙").sum())
    assert seen == [{"甲": 32, "乙": 32, "丙": min(32, rare)}] * 10


def test_v_measure_of_clear_clusters_is_one() -> None:
    vectors = np.eye(3, dtype=np.float32)[np.arange(90) % 3]
    assert metrics.v_measure(vectors, np.array(list("甲乙丙"))[np.arange(90) % 3]) == pytest.approx(1)
    assert metrics.v_measure(vectors, np.array(list("甲乙"))[np.arange(90) // 45]) < 0.1
