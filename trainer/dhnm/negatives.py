"""DHNM of Conan-embedding-v2 (arXiv 2509.12892, eq. 6): each negative is judged, and replaced, by its own score.

    state = start_negatives(pool_sizes, n, provided_counts)
    observe_negatives(state, query_rows, scores)                                        # every step
    advance_negatives(state, query_rows, easy_negatives(state, query_rows), pool_sizes)  # every step

A step concerns a few of what may be millions of negatives, so the arrays are changed in place: copies of them all would
take most of the time. Ranks are positions in a query's pool, best first, from 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .windows import Flags, Integers

PROVIDED, ABSENT = -1, -2
"""Ranks of negatives that are in no pool: the one that came with the data, and one that the query lacks."""


@dataclass(frozen=True)
class Negatives:
    """The current negatives of each query. A query keeps the number of negatives that it starts with."""

    rank: npt.NDArray[np.int32]  # [queries, n] rank in the pool; -1: came with the data; -2: absent, always last
    replacements: npt.NDArray[np.int32]  # [queries, n] so far
    initial_score: npt.NDArray[np.float32]  # [queries, n] S0: the negative's first score, NaN before
    last_score: npt.NDArray[np.float32]  # [queries, n] S: its latest score, NaN before the first
    exhausted: Flags  # [queries, n] the negative was easy, but the pool had no further candidate
    next_rank: npt.NDArray[np.int32]  # [queries] the next candidate of the pool


def start_negatives(pool_sizes: npt.ArrayLike, n: int, provided_counts: npt.ArrayLike) -> Negatives:
    """Return the first negatives: those that came with the data, at most n, if any; else ranks [0, n) of the pool.

    A query has fewer than n if it came with fewer, or if its pool has fewer.
    """
    provided, slots = np.asarray(provided_counts, np.int32)[:, None], np.arange(n, dtype=np.int32)
    ranks = np.where(provided > 0, PROVIDED, slots).astype(np.int32)
    counts = np.where(provided > 0, provided, np.asarray(pool_sizes, np.int32)[:, None])
    unscored = np.full(ranks.shape, np.nan, np.float32)
    return Negatives(
        rank=np.where(slots < counts, ranks, np.int32(ABSENT)),
        replacements=np.zeros(ranks.shape, np.int32),
        initial_score=unscored,
        last_score=unscored.copy(),
        exhausted=np.zeros(ranks.shape, np.bool_),
        next_rank=np.where(provided > 0, 0, counts.clip(max=n))[:, 0].astype(np.int32),
    )


def observe_negatives(state: Negatives, query_rows: npt.ArrayLike, scores: npt.ArrayLike) -> None:
    """Record the cosines of a step's queries with their negatives, [rows, up to n]; NaN (no negative) is ignored.

    A query that occurs twice in a step has the same negatives, and so the same scores both times.
    """
    found = np.asarray(scores, np.float32)
    places = np.asarray(query_rows, np.int64)[:, None], np.arange(found.shape[1])
    initial, last = state.initial_score[places], state.last_score[places]
    state.initial_score[places] = np.where(np.isnan(initial), found, initial)
    state.last_score[places] = np.where(np.isnan(found), last, found)


def easy_negatives(
    state: Negatives, query_rows: npt.ArrayLike, factor: float = 1.2, ceiling: float = 0.7, floor: float = 0.4
) -> Flags:
    """Mark the negatives of these queries to be replaced, [rows, n]: |S0| < floor, or factor · S < S0 and S < ceiling.

    The first condition (eq. 6: 0.4) drops, at the first score, a negative that was never hard; the second (1.2 and 0.7)
    one that the model has learnt. A negative that has not been scored is not marked.
    """
    rows = np.asarray(query_rows, np.int64)
    initial, last = (scores[rows].astype(np.float64) for scores in (state.initial_score, state.last_score))
    easy: Flags = (np.abs(initial) < floor) | ((factor * last < initial) & (last < ceiling))
    return easy


def advance_negatives(
    state: Negatives,
    query_rows: npt.ArrayLike,
    easy: Flags,
    pool_sizes: npt.ArrayLike,
    repeats: Flags | None = None,
) -> Flags:
    """Replace easy negatives, each by the next candidate of its query's pool, and forget their scores.

    `easy` is [rows, n]; the mask of those replaced has its shape. As the pool is walked down once, no candidate comes
    twice. If it ends, the negative stays and is marked `exhausted`. `repeats` [rows, 2n] marks candidates that are
    passed over among a query's next 2n, at most n of them: those equal to a negative that came with the data. A query
    that occurs twice is advanced once.
    """
    rows = np.asarray(query_rows, np.int64)
    first = np.zeros((len(rows), 1), np.bool_)
    first[np.unique(rows, return_index=True)[1]] = True
    easy = easy & first
    ahead = np.maximum(easy.cumsum(axis=1) - 1, 0)  # whether it takes the next candidate, the one after, …
    if repeats is not None:
        ahead = np.take_along_axis(np.argsort(repeats, axis=1, kind="stable"), ahead, axis=1)
    ranks = state.next_rank[rows][:, None] + ahead
    replaced: Flags = easy & (ranks < np.asarray(pool_sizes)[rows][:, None])
    places = _places(rows, replaced)
    state.rank[places] = ranks[replaced]
    state.replacements[places] += 1
    state.initial_score[places] = state.last_score[places] = np.nan
    state.exhausted[_places(rows, easy & ~replaced)] = True
    moved = replaced.any(axis=1)
    state.next_rank[rows[moved]] = np.where(replaced, ranks, -1)[moved].max(axis=1) + 1
    return replaced


def _places(rows: Integers, marked: Flags) -> tuple[Integers, Integers]:
    """Return the query and the slot of each negative that is marked, to index the state with."""
    asked, slots = marked.nonzero()
    return rows[asked], slots
