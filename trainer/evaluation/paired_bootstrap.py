"""The paired bootstrap: how sure a difference between two models on the same questions is.

The rows of a set (its questions, pairs or texts) are drawn with replacement, and the difference of the two models is
computed on each such resample; its quantiles bound the true difference (the percentile interval of Efron & Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 13). Sakai (SIGIR 2006) and Smucker et al. (CIKM 2007) use the bootstrap
for retrieval; the latter find that it agrees with the t-test and the randomization test.
"""

from collections.abc import Callable
from math import isnan
from typing import NamedTuple

import numpy as np

from .metrics import Floats, Integers

CONFIDENCE = 0.95
"""How sure a difference must be, on one side: the significance level of 5 % that is usual in retrieval."""
RESAMPLES = 10_000
"""Chosen here, for metrics that are means: p near 0.05 then varies by 0.002 with the seed. Sakai draws 1,000 resamples,
Smucker et al. 100,000."""
RECOMPUTED = 1_000
"""For metrics that are computed on each resample as a whole, as in Koehn (EMNLP 2004) and Sakai; p varies by 0.007."""
FEWEST = 5
"""The fewest rows that can show anything: four that all got worse have p = 1/16 in a sign test."""
SEED = 0

_DRAWN_AT_ONCE = 1 << 22
"""Chosen here: rows that are drawn at a time, 32 MB of indices."""


class Bounds(NamedTuple):
    """Bounds of a difference, from its resamples.

    It is above `low` with CONFIDENCE, and below `high` with CONFIDENCE. `p` is the share of resamples in which it is at
    least the margin that was asked about.
    """

    low: float
    high: float
    p: float


def bound(resamples: Floats, margin: float) -> Bounds:
    """Bound a difference by those of its resamples."""
    low, high = np.quantile(resamples, [1 - CONFIDENCE, CONFIDENCE])
    return Bounds(float(low), float(high), float((resamples >= margin).mean()))


def resample_mean(differences: Floats) -> Floats:
    """Return the mean of each of RESAMPLES resamples of differences [n], whose rows are questions, pairs or texts."""
    random, rows = np.random.default_rng(SEED), len(differences)
    means = np.empty(RESAMPLES)
    at_once = max(1, _DRAWN_AT_ONCE // rows)
    for start in range(0, RESAMPLES, at_once):
        drawn = random.integers(rows, size=(min(at_once, RESAMPLES - start), rows))
        means[start : start + at_once] = differences[drawn].mean(axis=1)
    return means


def resample(difference: Callable[[Integers], float], rows: int) -> Floats:
    """Return a difference, as a function of which rows are drawn, on each of RECOMPUTED resamples.

    Resamples on which it is NaN are left out, such as those without a single label 1.
    """
    random = np.random.default_rng(SEED)
    found = [difference(random.integers(rows, size=rows)) for _ in range(RECOMPUTED)]
    return np.array([each for each in found if not isnan(each)])
