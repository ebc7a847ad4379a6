"""Metrics of evaluation: pure functions of arrays, each with mteb's value on the same arrays, and the table of them.

In the shapes n is queries, texts or pairs and k the ranks that were kept. A metric in the table METRICS is computed on
every set of its task. Register yours in a plugin:

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
"""Texts of each class that a classifier learns from, as in C-MTEB's tasks (arXiv 2309.07597)."""
FOLDS = 5
CLUSTERING_BATCH = 500
"""With SEED, EXPERIMENTS and FOLDS: mteb's defaults."""


def best(scores: Floats, depth: int) -> Integers:
    """The places of the `depth` highest scores of each row, best first; of equal scores the first is better.

    scores float32 [n, m] -> int64 [n, depth]. NaN ranks last.
    """
    bits = (np.where(np.isnan(scores), -np.inf, scores) + np.float32(0)).astype(np.float32).view(np.uint32)
    # As integers, bits of positive floats ascend with them and those of negative ones descend (IEEE 754).
    descending = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF).astype(np.uint64)
    keys = descending << 32 | np.arange(scores.shape[1], dtype=np.uint64)
    first = np.sort(np.partition(keys, depth - 1, axis=1)[:, :depth], axis=1)
    return (first & 0xFFFFFFFF).astype(np.int64)


def ndcg(gains: Bools, answers: Integers, cut: int) -> Floats:
    """nDCG of each query at rank `cut`: gain 1, discount log2(rank + 1).

    gains [n, k] says which ranks hold an answer, answers [n] how many passages answer: one or more.
    """
    discounts = 1 / np.log2(np.arange(2, cut + 2))
    ideal = np.cumsum(discounts)[np.minimum(answers, cut) - 1]
    found: Floats = gains[:, :cut] @ discounts[: gains.shape[1]] / ideal
    return found


def reciprocal_rank(gains: Bools, cut: int) -> Floats:
    """1 / rank of each query's first answer, 0 where it is beyond `cut`. gains as in `ndcg`."""
    head = gains[:, :cut]
    return np.where(head.any(axis=1), 1 / (head.argmax(axis=1) + 1), 0.0)


def recall(gains: Bools, answers: Integers, cut: int) -> Floats:
    """The share of each query's answers that stand at rank `cut` or before. gains, answers as in `ndcg`."""
    found: Floats = gains[:, :cut].sum(axis=1) / answers
    return found


def average_precision(owner: Integers, scores: Floats, wanted: Bools) -> Floats:
    """Average precision of each query among its own candidates; their mean is MAP.

    Candidate i is one of query owner[i]; owner is sorted and every query from 0 to owner[-1] has a wanted candidate.
    Of equal scores the wanted one is worse, so that a model that says nothing gains nothing.
    """
    order = np.lexsort((wanted, -scores, owner))
    right = wanted[order].astype(np.float64)  # owner[order] is owner
    before = np.searchsorted(owner, np.arange(owner[-1] + 2))
    hits = np.concatenate([[0.0], np.cumsum(right)])
    precision = (hits[1:] - hits[before[owner]]) / (np.arange(len(owner)) - before[owner] + 1)
    found: Floats = np.bincount(owner, precision * right) / np.diff(hits[before])
    return found


def best_accuracy(scores: Floats, labels: Bools) -> float:
    """The share of pairs that the best threshold between two scores tells rightly: label 1 above it, 0 below.

    0 where all scores are equal. scores [n], labels [n].
    """
    order = np.argsort(-scores)
    labels = labels[order].astype(bool)
    right = np.cumsum(labels) + (~labels).sum() - np.cumsum(~labels)
    between = np.diff(scores[order]) != 0
    return float(right[:-1][between].max(initial=0) / len(labels))


def classification(vectors: Floats, classes: npt.NDArray[Any], learnt: Bools) -> tuple[float, Floats]:
    """Accuracy of logistic regression on frozen vectors: [n, D], of classes [n].

    It learns from at most SAMPLES texts of a class, EXPERIMENTS times over, among the texts marked `learnt` [n], and is
    asked about all others; the accuracy is the mean. With none marked it is FOLDS-fold cross-validation. Returns the
    accuracy and the share of experiments that told each text's class, NaN where it was never asked.
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
        # mteb shuffles the same list again and again, from the same state.
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
    """Marks the first SAMPLES of each class."""
    nth = pl.DataFrame({"class": classes}).select(pl.int_range(pl.len()).over("class"))
    return (nth.to_series() < SAMPLES).to_numpy()


def v_measure(vectors: Floats, classes: npt.NDArray[Any]) -> float:
    """How well k-means in mini-batches, with as many clusters as there are classes, finds the classes of vectors."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    clusters = MiniBatchKMeans(
        n_clusters=len(np.unique(classes)), batch_size=CLUSTERING_BATCH, n_init="auto", random_state=SEED
    ).fit(vectors)
    return float(v_measure_score(classes, clusters.labels_))


class Ranking(NamedTuple):
    """What a model made of a retrieval set: the best ranks of each query, and the candidates that queries name.

    `gains` bool [n, k] says which ranks hold an answer, `answers` int64 [n] how many passages answer. Candidate i is a
    passage that query `owner[i]` names, with its score, an answer where `wanted[i]`; sorted by owner.
    """

    gains: Bools
    answers: Integers
    owner: Integers
    scores: Floats
    wanted: Bools


@dataclass(frozen=True)
class Metric:
    """A metric of one kind of evaluation set.

    `compute` takes the Ranking of a retrieval set; the cosines and labels of sentence pairs, both [n]; or the vectors
    [n, D], classes [n] and marks of what may be learnt from [n] of labelled texts. It returns one value for each query,
    text or pair, NaN where it does not apply, of which the mean counts; or one number; or the number and such values;
    or None where it does not apply at all.
    """

    task: Literal["retrieval", "sts", "classification"]
    compute: Callable[..., "Floats | float | tuple[float, Floats] | None"]


METRICS: Registry[Metric] = Registry("metric")


def compute_metrics(task: str, *inputs: Any) -> tuple[dict[str, float], dict[str, Floats]]:
    """The value of every metric of a task that applies, and by name the values of each query, text or pair."""
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
    """Average precision of the queries that name negatives, as in reranking: NaN for the others."""
    queries = len(ranking.answers)
    reranked = np.bincount(ranking.owner, ~ranking.wanted, minlength=queries) > 0
    if not reranked.any():
        return np.full(queries, np.nan)
    return np.where(reranked, average_precision(ranking.owner, ranking.scores, ranking.wanted), np.nan)


def _spearman(scores: Floats, labels: Floats) -> float:
    """Rank correlation, 0 where all scores or all labels are equal."""
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
