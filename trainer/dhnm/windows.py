"""Dynamic hard negative mining (DHNM, paper §2.2): which queries need new negatives, and which ranks come next.

Pure functions of arrays with one entry per query. Ranks are positions in a query's pool, best first, from 0.

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
    """The current window of each query. Immutable: functions return a new one."""

    round: Integers  # replacements so far
    lo: Integers  # the current window is ranks [lo, hi);
    hi: Integers  # an empty one means the negatives that came with the data
    initial_score: Floats  # s0: mean score of the negatives when first scored in this round, NaN before
    last_score: Floats  # s: latest mean score in this round, NaN before the first
    visits: Integers  # steps of this round that scored the query's negatives
    exhausted: Flags  # the query was flagged, but its pool had no further window


def start(pool_sizes: npt.ArrayLike, n: int, provided_counts: npt.ArrayLike) -> Windows:
    """Return the windows of round 0: the negatives that came with the data, if any, else ranks [0, n) of the pool.

    Only in round 0 may a window be shorter than n: a pool with fewer candidates gives all that it has.
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
    """Record the mean cosine between each query of a step and its negatives; NaN (no negatives) is ignored.

    The first score of a round is s0; the latest is s. A query that occurs twice in a step has the same negatives and
    so the same score both times, and counts as one visit.
    """
    rows, scores = np.asarray(query_rows, np.int64), np.asarray(mean_scores, np.float64)
    rows, scores = rows[~np.isnan(scores)], scores[~np.isnan(scores)]
    initial, last, visits = state.initial_score.copy(), state.last_score.copy(), state.visits.copy()
    initial[rows] = np.where(np.isnan(initial[rows]), scores, initial[rows])
    last[rows] = scores
    visits[rows] = state.visits[rows] + 1
    return replace(state, initial_score=initial, last_score=last, visits=visits)


def visited(state: Windows) -> Flags:
    """Mark the queries that have been scored, in this round or an earlier one."""
    return (state.visits > 0) | (state.round > 0)


def eligible(state: Windows) -> Flags:
    """Mark the queries with at least two visits in this round: the first score is s0, so only a later one can be lower.

    If a query is drawn only once in a run, its negatives are never replaced. (With a factor below 1, one visit would
    be enough.)
    """
    return state.visits > 1


def no_longer_hard(state: Windows, factor: float = 1.15, ceiling: float = 0.8) -> Flags:
    """Mark the queries whose negatives have become easy: factor · s < s0 and |s| < ceiling (paper §2.2: 1.15 and 0.8).

    Queries with s0 <= 0 are never marked; the paper's rule alone would mark them even if the score had not changed.
    Queries not yet scored in this round are not marked either.
    """
    initial, last = state.initial_score, state.last_score
    return (factor * last < initial) & (np.abs(last) < ceiling) & (initial > 0)


def advance(state: Windows, flagged: Flags, pool_sizes: npt.ArrayLike, n: int, offset: int = 10) -> Windows:
    """Move flagged queries to their next window and reset their scores.

    The i-th replacement takes ranks [(i - 1) · n + offset, i · n + offset), half open (paper §2.2: offset 10). A window
    must fit into the pool entirely: otherwise the query keeps its window and scores and is marked `exhausted`.
    """
    hi = (state.round + 1) * n + offset
    return move(state, flagged, hi <= np.asarray(pool_sizes), hi - n, hi)


def move(state: Windows, flagged: Flags, there: Flags, lo: npt.ArrayLike, hi: npt.ArrayLike) -> Windows:
    """Give flagged queries the window [lo, hi) if it is `there`; else they keep theirs and become `exhausted`."""
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
