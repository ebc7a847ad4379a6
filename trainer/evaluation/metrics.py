"""Evaluation metrics: pure functions of arrays, with the same values as in mteb, and the table METRICS.

In shapes, n is the number of queries, texts or pairs, and k the number of ranks. Every metric in METRICS is computed on
every set of its task. Register your own in a plugin:

    METRICS.register("mrr@3", Metric("retrieval", lambda ranking: reciprocal_rank(ranking.gains, 3)))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ...schemas.registry import Registry

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

SEED = 42
EXPERIMENTS = 10
SAMPLES = 32
"""The most texts per class to train a classifier on, as in C-MTEB (arXiv 2309.07597)."""
FOLDS = 5
CLUSTERING_BATCH = 500
"""This, SEED, EXPERIMENTS and FOLDS are mteb's defaults."""


def best(scores: Floats, depth: int) -> Integers:
    """Return the indices of the `depth` highest scores in each row, best first: float32 [n, m] -> int64 [n, depth].

    Equal scores rank by index, NaN ranks last.
    """
    bits = (np.where(np.isnan(scores), -np.inf, scores) + np.float32(0)).astype(np.float32).view(np.uint32)
    # Read as integers, positive floats ascend with their value and negative floats descend (IEEE 754).
    descending = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF).astype(np.uint64)
    keys = descending << 32 | np.arange(scores.shape[1], dtype=np.uint64)
    first = np.sort(np.partition(keys, depth - 1, axis=1)[:, :depth], axis=1)
    return (first & 0xFFFFFFFF).astype(np.int64)


def ndcg(gains: Bools, answers: Integers, cut: int) -> Floats:
    """Compute nDCG@`cut` of each query, [n], with gain 1 and discount log2(rank + 1).

    `gains` [n, k] says which ranks hold a positive; `answers` [n] is the number of positives, at least 1.
    """
    discounts = 1 / np.log2(np.arange(2, cut + 2))
    ideal = np.cumsum(discounts)[np.minimum(answers, cut) - 1]
    found: Floats = gains[:, :cut] @ discounts[: gains.shape[1]] / ideal
    return found


def reciprocal_rank(gains: Bools, cut: int) -> Floats:
    """Compute 1 / rank of each query's first positive, or 0 if it ranks below `cut`. `gains` is as in `ndcg`."""
    head = gains[:, :cut]
    return np.where(head.any(axis=1), 1 / (head.argmax(axis=1) + 1), 0.0)


def recall(gains: Bools, answers: Integers, cut: int) -> Floats:
    """Compute the share of each query's positives in its first `cut` ranks. `gains`, `answers` are as in `ndcg`."""
    found: Floats = gains[:, :cut].sum(axis=1) / answers
    return found


def average_precision(owner: Integers, scores: Floats, wanted: Bools) -> Floats:
    """Compute the average precision of each query among its own candidates; the mean of these is MAP.

    Candidate i belongs to query `owner[i]` and is a positive if `wanted[i]`. `owner` is sorted, and every query from 0
    to owner[-1] has a positive. In ties, positives rank below negatives, so a model that gives all candidates the same
    score gains nothing.
    """
    order = np.lexsort((wanted, -scores, owner))
    right = wanted[order].astype(np.float64)  # owner[order] is owner
    before = np.searchsorted(owner, np.arange(owner[-1] + 2))
    hits = np.concatenate([[0.0], np.cumsum(right)])
    precision = (hits[1:] - hits[before[owner]]) / (np.arange(len(owner)) - before[owner] + 1)
    found: Floats = np.bincount(owner, precision * right) / np.diff(hits[before])
    return found


def best_accuracy(scores: Floats, labels: Bools) -> float:
    """Return the accuracy of the best threshold on the scores: label 1 above it, 0 below. scores [n], labels [n].

    Thresholds lie between two different scores, so the accuracy is 0 if all scores are equal.
    """
    order = np.argsort(-scores)
    labels = labels[order].astype(bool)
    right = np.cumsum(labels) + (~labels).sum() - np.cumsum(~labels)
    between = np.diff(scores[order]) != 0
    return float(right[:-1][between].max(initial=0) / len(labels))


def classification(vectors: Floats, classes: npt.NDArray[Any], learnt: Bools) -> tuple[float, Floats]:
    """Compute the accuracy of logistic regression on frozen vectors [n, D] with classes [n].

    EXPERIMENTS times, it trains on at most SAMPLES texts per class, drawn from the texts marked in `learnt` [n], and
    predicts all others. If none are marked, it runs a FOLDS-fold cross-validation, again with at most SAMPLES texts per
    class. Returns the mean accuracy and, for each text, the share of experiments that predicted its class, [n] (NaN if
    it was never tested).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    if learnt.any():
        experiments = [(np.flatnonzero(learnt), np.flatnonzero(~learnt))] * EXPERIMENTS
    else:
        experiments = list(KFold(FOLDS, shuffle=True, random_state=SEED).split(vectors))
    order = np.arange(len(experiments[0][0]))
    accuracies, right = [], np.zeros((len(experiments), len(vectors))) + np.nan
    for experiment, (known, asked) in enumerate(experiments):
        # As in mteb, each experiment shuffles the list of the one before, from the same random state.
        np.random.RandomState(SEED).shuffle(order)
        rows = known[order]
        rows = rows[_first_of_each(classes[rows])]
        model = LogisticRegression(max_iter=100, random_state=SEED).fit(vectors[rows], classes[rows])
        right[experiment, asked] = model.predict(vectors[asked]) == classes[asked]
        accuracies.append(right[experiment, asked].mean())
    times = np.isfinite(right).sum(axis=0)
    shares = np.where(times, np.nansum(right, axis=0) / np.maximum(times, 1), np.nan)
    return float(np.mean(accuracies)), shares


def _first_of_each(classes: npt.NDArray[Any]) -> Bools:
    """Mark the first SAMPLES texts of each class."""
    nth = pl.DataFrame({"class": classes}).select(pl.int_range(pl.len()).over("class"))
    return (nth.to_series() < SAMPLES).to_numpy()


def v_measure(vectors: Floats, classes: npt.NDArray[Any]) -> float:
    """Compute how well the clusters of mini-batch k-means, one per class, match the classes."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    clusters = MiniBatchKMeans(
        n_clusters=len(np.unique(classes)), batch_size=CLUSTERING_BATCH, n_init="auto", random_state=SEED
    ).fit(vectors)
    return float(v_measure_score(classes, clusters.labels_))


class Ranking(NamedTuple):
    """A model's output on a retrieval set: the first k ranks of each query, and the scores of its own candidates.

    `gains` bool [n, k] says which ranks hold a positive, `answers` int64 [n] how many positives there are. Candidate i
    is a positive (if `wanted[i]`) or negative of query `owner[i]`, and has the score `scores[i]`; sorted by owner.
    """

    gains: Bools
    answers: Integers
    owner: Integers
    scores: Floats
    wanted: Bools


@dataclass(frozen=True)
class Metric:
    """A metric for evaluation sets of one task.

    `compute` takes, by task:

    - retrieval: a Ranking
    - sts: the cosines and the labels of the pairs, both [n]
    - classification: vectors [n, D], classes [n], and a mask [n] of the texts to train on

    It returns one value per query, pair or text (the metric is their mean; NaN values are left out), or a single
    number, or a number together with values per query, pair or text, or None if the metric does not apply to the set.
    """

    task: Literal["retrieval", "sts", "classification"]
    compute: Callable[..., "Floats | float | tuple[float, Floats] | None"]


METRICS: Registry[Metric] = Registry("metric")

HEADLINE = {"retrieval": "ndcg@10", "sts": "spearman", "classification": "accuracy"}
"""The headline metric of each task, as in C-MTEB (arXiv 2309.07597, §3)."""


def compute_metrics(task: str, *inputs: Any) -> tuple[dict[str, float], dict[str, Floats]]:
    """Compute all metrics of a task that apply: their values and, by metric, the values per query, pair or text."""
    metrics: dict[str, float] = {}
    each: dict[str, Floats] = {}
    for name, metric in METRICS.items():
        found = metric.compute(*inputs) if metric.task == task else None
        if isinstance(found, tuple):
            metrics[name], each[name] = found
        elif isinstance(found, np.ndarray):
            if not np.isnan(found).all():
                metrics[name], each[name] = float(found[~np.isnan(found)].mean()), found
        elif found is not None:
            metrics[name] = float(found)
    return metrics, each


def _reranking_precision(ranking: Ranking) -> Floats:
    """Compute the average precision of the queries that have negatives, as in reranking; NaN for the others."""
    queries = len(ranking.answers)
    reranked = np.bincount(ranking.owner, ~ranking.wanted, minlength=queries) > 0
    if not reranked.any():
        return np.full(queries, np.nan)
    return np.where(reranked, average_precision(ranking.owner, ranking.scores, ranking.wanted), np.nan)


def _spearman(scores: Floats, labels: Floats) -> float:
    """Compute the rank correlation, or 0 if all scores or all labels are equal."""
    from scipy.stats import spearmanr

    alike = scores.min() == scores.max() or labels.min() == labels.max()
    return 0.0 if alike else float(spearmanr(scores, labels).statistic)


def _binary_average_precision(scores: Floats, labels: Floats) -> float | None:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if _is_binary(labels) else None


def _is_binary(labels: Floats) -> bool:
    return set(labels.tolist()) == {0, 1}


# fmt: off
METRICS.register("ndcg@10", Metric("retrieval", lambda ranking: ndcg(ranking.gains, ranking.answers, 10)))
METRICS.register("mrr@10", Metric("retrieval", lambda ranking: reciprocal_rank(ranking.gains, 10)))
METRICS.register("recall@10", Metric("retrieval", lambda ranking: recall(ranking.gains, ranking.answers, 10)))
METRICS.register("recall@100", Metric("retrieval", lambda ranking: recall(ranking.gains, ranking.answers, 100)))
METRICS.register("map", Metric("retrieval", _reranking_precision))
METRICS.register("spearman", Metric("sts", _spearman))
METRICS.register("ap", Metric("sts", _binary_average_precision))
METRICS.register(
    "best_accuracy",
    Metric("sts", lambda scores, labels: best_accuracy(scores, labels == 1) if _is_binary(labels) else None),
)
METRICS.register("accuracy", Metric("classification", classification))
METRICS.register(
    "v_measure",
    Metric("classification", lambda vectors, classes, learnt: v_measure(vectors[~learnt], classes[~learnt])),
)
# fmt: on
