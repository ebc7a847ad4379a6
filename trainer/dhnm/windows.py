"""Dynamic hard negative mining (paper §2.2): which queries need new negatives, and which ranks come next.

Pure functions over arrays with one entry a query; ranks are positions in a query's pool, best first, from 0.

    state = start(pool_sizes, n, provided_counts)
    state = observe(state, query_rows, mean_scores)            # every step
    state = advance(state, no_longer_hard(state), pool_sizes, n)   # every 100 steps
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """Where each query stands in its pool. Functions return a new one and leave the old as it was."""

    round: Integers  # replacements so far
    lo: Integers  # the window in use is ranks [lo, hi);
    hi: Integers  # an empty one means the negatives that came with the data
    initial_score: Floats  # s0: mean score when first seen in this round, NaN until then
    last_score: Floats  # s: latest mean score in this round, NaN until then
    visits: Integers  # steps of this round that scored it
    exhausted: Flags  # once asked for a window that its pool no longer has


def start(pool_sizes: npt.ArrayLike, n: int, provided_counts: npt.ArrayLike) -> Windows:
    """Round 0: the negatives that came with the data where there are any, else ranks [0, n) of the pool.

    Here alone a window may be short: a pool of fewer than n candidates gives those it has.
    """
    sizes = np.asarray(pool_sizes, np.int64)
    nothing_scored = np.full(len(sizes), np.nan)
    return Windows(
        round=np.zeros(len(sizes), np.int64),
        lo=np.zeros(len(sizes), np.int64),
        hi=np.where(np.asarray(provided_counts) > 0, 0, np.minimum(sizes, n)),
        initial_score=nothing_scored,
        last_score=nothing_scored,
        visits=np.zeros(len(sizes), np.int64),
        exhausted=np.zeros(len(sizes), np.bool_),
    )


def observe(state: Windows, query_rows: npt.ArrayLike, mean_scores: npt.ArrayLike) -> Windows:
    """Record the mean cosine of the negatives of the queries in a step; NaN (no negatives) is passed over.

    The first score of a round is its s0, every score its s. A query that comes twice in one step has the same
    negatives and thus the same score both times: it counts as one visit.
    """
    rows, scores = np.asarray(query_rows, np.int64), np.asarray(mean_scores, np.float64)
    rows, scores = rows[~np.isnan(scores)], scores[~np.isnan(scores)]
    initial, last, visits = state.initial_score.copy(), state.last_score.copy(), state.visits.copy()
    initial[rows] = np.where(np.isnan(initial[rows]), scores, initial[rows])
    last[rows] = scores
    visits[rows] = state.visits[rows] + 1
    return replace(state, initial_score=initial, last_score=last, visits=visits)


def visited(state: Windows) -> Flags:
    """Which queries a step has scored, in this round or an earlier one."""
    return (state.visits > 0) | (state.round > 0)


def eligible(state: Windows) -> Flags:
    """Which queries can have become easy: a round's first score is its s0, so it takes a second visit to fall below.

    A query that the data visits once in a run never is. (A factor below 1 needs no second visit.)
    """
    return state.visits > 1


def no_longer_hard(state: Windows, factor: float = 1.15, ceiling: float = 0.8) -> Flags:
    """Whose negatives have become easy: factor · s < s0 and |s| < ceiling (paper §2.2: 1.15 and 0.8).

    A round that began at s0 <= 0 never ends: the paper's rule alone would fire there with nothing changed. Nor
    does one that no step has scored yet.
    """
    initial, last = state.initial_score, state.last_score
    return (factor * last < initial) & (np.abs(last) < ceiling) & (initial > 0)


def advance(state: Windows, flagged: Flags, pool_sizes: npt.ArrayLike, n: int, offset: int = 10) -> Windows:
    """Move flagged queries to their next window; s0 starts anew.

    The i-th replacement takes ranks [(i - 1) · n + offset, i · n + offset), half open (paper §2.2: offset 10).
    Windows are whole: a pool that ends before one does is used up, and its query keeps the window and the scores
    it has and is marked `exhausted`.
    """
    hi = (state.round + 1) * n + offset
    return move(state, flagged, hi <= np.asarray(pool_sizes), hi - n, hi)


def move(state: Windows, flagged: Flags, there: Flags, lo: npt.ArrayLike, hi: npt.ArrayLike) -> Windows:
    """Give flagged queries the window [lo, hi) where it is `there`; the others keep theirs and are `exhausted`."""
    moved = flagged & there
    return Windows(
        round=np.where(moved, state.round + 1, state.round),
        lo=np.where(moved, lo, state.lo),
        hi=np.where(moved, hi, state.hi),
        initial_score=np.where(moved, np.nan, state.initial_score),
        last_score=np.where(moved, np.nan, state.last_score),
        visits=np.where(moved, 0, state.visits),
        exhausted=state.exhausted | (flagged & ~there),
    )
