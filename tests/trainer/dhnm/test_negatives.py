"""DHNM v2 against a slow reference that follows eq. 6 negative by negative."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from conan_embedding.trainer.dhnm.negatives import (
    ABSENT,
    PROVIDED,
    Negatives,
    advance_negatives,
    easy_negatives,
    observe_negatives,
    start_negatives,
)
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples

NAN = float("nan")


@dataclass
class Negative:
    """One negative of the reference: a rank of the pool, or None if it came with the data."""

    rank: int | None
    initial: float | None = None
    last: float | None = None
    replacements: int = 0
    exhausted: bool = False


@dataclass
class Query:
    """One query of the reference, with its negatives and the ranks that none of them has had."""

    pool: list[str]
    n: int
    given: list[str]
    negatives: list[Negative] = field(default_factory=list)

    def __post_init__(self) -> None:
        ranks = [None] * len(self.given) if self.given else [*range(len(self.pool))]
        self.negatives = [Negative(rank) for rank in ranks[: self.n]]
        had = {self.pool[each.rank] for each in self.negatives if each.rank is not None} | {*self.given[: self.n]}
        self.left = [rank for rank, text in enumerate(self.pool) if text not in had]

    def step(self, scores: list[float]) -> None:
        """Score every negative, and replace those that eq. 6 says."""
        for negative, score in zip(self.negatives, scores, strict=False):
            if math.isnan(score):
                continue
            negative.initial = score if negative.initial is None else negative.initial
            negative.last = score
        for negative in self.negatives:
            s0, s = negative.initial, negative.last
            if s0 is None or s is None:
                continue
            if abs(s0) < 0.4 or (1.2 * s < s0 and s < 0.7):
                if self.left:
                    negative.rank, negative.replacements = self.left.pop(0), negative.replacements + 1
                    negative.initial = negative.last = None
                else:
                    negative.exhausted = True


def assert_same(state: Negatives, queries: list[Query]) -> None:
    for row, query in enumerate(queries):
        count, negatives = len(query.negatives), query.negatives
        assert state.rank[row, count:].tolist() == [ABSENT] * (query.n - count)
        assert state.rank[row, :count].tolist() == [PROVIDED if each.rank is None else each.rank for each in negatives]
        assert state.replacements[row, :count].tolist() == [each.replacements for each in negatives]
        assert state.exhausted[row, :count].tolist() == [each.exhausted for each in negatives]
        for array, values in (
            (state.initial_score, [each.initial for each in negatives]),
            (state.last_score, [each.last for each in negatives]),
        ):
            assert np.array_equal(array[row, :count], np.array(values, np.float32), equal_nan=True)


@max_examples(60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_random_trajectories_equal_the_reference(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    sizes, provided = random.integers(0, 40, 12), random.choice([0, 0, 1, 3, 9], 12)
    queries = [
        Query(pool, n, [*random.choice(["a", "b", "c", *pool], count, replace=False)] if count else [])
        for pool, count in zip([[str(rank) for rank in range(size)] for size in sizes], provided, strict=True)
        if count <= len(pool) + 3
    ]
    sizes = np.array([len(query.pool) for query in queries])
    state = start_negatives(sizes, n, [len(query.given) for query in queries])
    assert_same(state, queries)
    for _ in range(30):
        rows = random.choice(len(queries), size=5)  # a query may occur twice, with the same scores
        values = random.choice([-0.9, -0.5, -0.3, 0.0, 0.39, 0.4, 0.5, 0.6, 0.69, 0.7, 0.84, 0.95, NAN], (12, n))
        values = np.float32(values + random.choice([0.0, 0.01], (12, n)))
        for row, query in enumerate(queries):
            values[row, len(query.negatives) :] = NAN
        widest = max(len(queries[row].negatives) for row in rows)
        observe_negatives(state, rows, values[rows, :widest])
        repeats = np.zeros((5, 2 * n), np.bool_)
        for place, row in enumerate(rows):
            after = int(state.next_rank[row])
            ahead = queries[row].pool[after : after + 2 * n]
            repeats[place, : len(ahead)] = [text in queries[row].given[:n] for text in ahead]
        advance_negatives(state, rows, easy_negatives(state, rows), sizes, repeats)
        for row in sorted({*rows.tolist()}):
            queries[row].step(values[row].tolist())
        assert_same(state, queries)


def scored(*trajectory: float) -> Negatives:
    """Return a query with one negative, which had these scores."""
    state = start_negatives([100], 1, [0])
    for score in trajectory:
        observe_negatives(state, [0], [[score]])
    return state


@pytest.mark.parametrize(
    ("trajectory", "easy"),
    [
        pytest.param((0.39,), True, id="never hard, at the first score already"),
        pytest.param((0.39, 0.9), True, id="never hard, however hard it has become"),
        pytest.param((0.4,), False, id="at the floor"),
        pytest.param((-0.39,), True, id="the floor is on the absolute value"),
        pytest.param((-0.5,), True, id="a negative score is below the first one by the factor"),
        pytest.param((-0.5, -0.3), False, id="the first score was not below the floor, and this one is higher"),
        pytest.param((0.9, 0.71), False, id="1.2 S is below S0, but S above the ceiling"),
        pytest.param((0.9, 0.69), True, id="1.2 S is below S0, and S below the ceiling"),
        pytest.param((0.6, 0.51), False, id="fell by too little"),
        pytest.param((0.6, 0.3, 0.6), False, id="only the latest score counts"),
        pytest.param((0.6, NAN), False, id="not in the step"),
        pytest.param((), False, id="not scored yet"),
    ],
)
def test_the_literal_rule(trajectory: tuple[float, ...], easy: bool) -> None:
    assert easy_negatives(scored(*trajectory), [0]).tolist() == [[easy]]


def test_thresholds_can_be_set_and_are_not_reached() -> None:
    state = scored(0.75, 0.5)
    assert easy_negatives(state, [0], factor=1.49, ceiling=0.51, floor=0.75).all()
    assert not easy_negatives(state, [0], factor=1.5, ceiling=0.51, floor=0.75).any()
    assert not easy_negatives(state, [0], factor=1.49, ceiling=0.5, floor=0.75).any()
    assert easy_negatives(state, [0], factor=1.5, ceiling=0.51, floor=0.76).all()


def test_easy_negatives_alone_are_replaced_in_the_order_of_the_pool() -> None:
    state = start_negatives([6, 100], 4, [0, 0])
    observe_negatives(state, [1, 0], [[0.1, 0.8, 0.8, 0.1], [0.1, 0.8, 0.1, 0.1]])
    replaced = advance_negatives(state, [1, 0], easy_negatives(state, [1, 0]), [6, 100])
    assert replaced.tolist() == [[True, False, False, True], [True, False, True, False]]
    assert state.rank.tolist() == [[4, 1, 5, 3], [4, 1, 2, 5]]
    assert state.exhausted.tolist() == [[False, False, False, True], [False] * 4]
    assert state.next_rank.tolist() == [6, 6]
    assert np.isnan(state.initial_score).tolist() == [[True, False, True, False], [True, False, False, True]]


def test_a_query_twice_in_a_step_is_advanced_once() -> None:
    state = start_negatives([100], 2, [0])
    observe_negatives(state, [0, 0], [[0.1, 0.8]] * 2)
    easy = easy_negatives(state, [0, 0])
    assert advance_negatives(state, [0, 0], easy, [100]).tolist() == [[True, False], [False, False]]
    assert (state.rank.tolist(), state.next_rank.tolist()) == ([[2, 1]], [3])


def test_a_step_without_queries_changes_nothing() -> None:
    state = start_negatives([9], 2, [0])
    nobody = np.zeros(0, np.int64)
    observe_negatives(state, nobody, np.zeros((0, 0)))
    assert advance_negatives(state, nobody, easy_negatives(state, nobody), [9]).shape == (0, 2)
    assert np.isnan(state.last_score).all()
