"""Figures of evaluation: pure functions of arrays, each with mteb's value on the same arrays.

In the shapes n is queries, texts or pairs and k the ranks that were kept.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

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

    scores float32 [n, m] -> int64 [n, depth]. What is no number is worst.
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
    asked about all others; the figure is the mean. With none marked it is FOLDS-fold cross-validation. Returns the
    figure and the share of experiments that told each text's class, NaN where it was never asked.
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
