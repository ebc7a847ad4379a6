"""DHNM against a slow reference that follows the paper query by query."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from conan_embedding.trainer.dhnm.windows import (
    Windows,
    advance,
    eligible,
    move,
    no_longer_hard,
    observe,
    start,
    visited,
)
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples


@dataclass
class Query:
    """One query of the reference: the paper's §2.2, with gaps resolved as the docstrings say."""

    pool: int
    n: int
    given: int
    replacements: int = 0
    exhausted: bool = False
    initial: float | None = None
    last: float | None = None
    visits: int = 0
    ever: bool = False

    def __post_init__(self) -> None:
        self.ranks = [] if self.given else [rank for rank in range(self.n) if rank < self.pool]

    def score(self, value: float) -> None:
        if not math.isnan(value):
            self.initial = value if self.initial is None else self.initial
            self.last = value
            self.visits += 1
            self.ever = True

    def check(self) -> None:
        if self.initial is None or self.last is None or self.initial <= 0:
            return
        if 1.15 * self.last < self.initial and abs(self.last) < 0.8:
            i = self.replacements + 1
            window = list(range((i - 1) * self.n + 10, i * self.n + 10))
            if window[-1] >= self.pool:
                self.exhausted = True
            else:
                self.replacements, self.ranks, self.initial, self.last, self.visits = i, window, None, None, 0


def assert_same(state: Windows, queries: list[Query]) -> None:
    assert state.round.tolist() == [query.replacements for query in queries]
    assert state.exhausted.tolist() == [query.exhausted for query in queries]
    windows = [list(range(lo, hi)) for lo, hi in zip(state.lo, state.hi, strict=True)]
    assert windows == [query.ranks for query in queries]
    assert state.visits.tolist() == [query.visits for query in queries]
    assert visited(state).tolist() == [query.ever for query in queries]
    for array, values in (
        (state.initial_score, [query.initial for query in queries]),
        (state.last_score, [query.last for query in queries]),
    ):
        assert np.array_equal(array, np.array(values, np.float64), equal_nan=True)


@max_examples(150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_random_trajectories_equal_the_reference(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    pools = random.integers(0, 60, 12)
    provided_counts = random.integers(0, 3, 12)
    queries = [Query(int(pool), n, int(count)) for pool, count in zip(pools, provided_counts, strict=True)]
    state = start(pools, n, provided_counts)
    assert_same(state, queries)
    for _ in range(40):
        for _ in range(3):
            rows = random.choice(12, size=5)  # a query may occur twice, with one score
            of_query = random.choice([-0.9, -0.3, 0.0, 0.2, 0.5, 0.79, 0.8, 0.95, np.nan], 12)
            of_query = of_query + random.choice([0.0, 0.01], 12)
            state = observe(state, rows, of_query[rows])
            for row in set(rows.tolist()):
                queries[row].score(float(of_query[row]))
        flagged = no_longer_hard(state)
        assert not (flagged & ~eligible(state)).any()
        state = advance(state, flagged, pools, n)
        for query in queries:
            query.check()
        assert_same(state, queries)


def scored(*trajectories: tuple[float, ...]) -> Windows:
    """Return queries with large pools that had these scores in sequence."""
    state = start([1000] * len(trajectories), 4, [0] * len(trajectories))
    for row, trajectory in enumerate(trajectories):
        for score in trajectory:
            state = observe(state, [row], [score])
    return state


def test_given_negatives_come_first_and_then_the_pool() -> None:
    state = start([100, 100], 5, [2, 0])
    assert (state.lo.tolist(), state.hi.tolist()) == ([0, 0], [0, 5])
    state = advance(state, np.array([True, True]), [100, 100], 5)
    assert (state.lo.tolist(), state.hi.tolist()) == ([10, 10], [15, 15])


def test_windows_are_half_open_and_adjoin() -> None:
    state, flagged = start([100], 4, [0]), np.array([True])
    windows = []
    for _ in range(3):
        state = advance(state, flagged, [100], 4)
        windows.append((int(state.round[0]), int(state.lo[0]), int(state.hi[0])))
    assert windows == [(1, 10, 14), (2, 14, 18), (3, 18, 22)]


def test_a_small_pool_gives_what_it_has_at_the_start() -> None:
    state = start([0, 2, 4], 4, [0, 0, 0])
    assert state.hi.tolist() == [0, 2, 4]


@pytest.mark.parametrize(("pool", "fits"), [(13, False), (14, True)])
def test_a_window_is_whole_or_the_pool_is_used_up(pool: int, fits: bool) -> None:
    state = observe(start([pool], 4, [0]), [0], [0.7])
    after = advance(state, np.array([True]), [pool], 4)
    assert after.round.tolist() == [int(fits)]
    assert after.exhausted.tolist() == [not fits]
    assert (int(after.lo[0]), int(after.hi[0])) == ((10, 14) if fits else (0, 4))


def test_a_used_up_pool_keeps_its_window_and_scores() -> None:
    state = observe(observe(start([14], 4, [0]), [0], [0.7]), [0], [0.1])
    state = advance(state, no_longer_hard(state), [14], 4)
    state = observe(observe(state, [0], [0.6]), [0], [0.1])
    for _ in range(2):
        state = advance(state, no_longer_hard(state), [14], 4)
        assert (int(state.round[0]), int(state.lo[0]), int(state.hi[0])) == (1, 10, 14)
        assert (float(state.initial_score[0]), float(state.last_score[0])) == (0.6, 0.1)
    assert state.exhausted.sum() == 1


def test_the_first_score_of_a_round_is_its_initial_score() -> None:
    state = scored((0.7, 0.5, 0.1))
    assert (state.initial_score[0], state.last_score[0]) == (0.7, 0.1)
    state = advance(state, no_longer_hard(state), [1000], 4)
    assert np.isnan(state.initial_score[0]) and np.isnan(state.last_score[0])
    state = observe(state, [0], [0.55])
    assert (state.initial_score[0], state.last_score[0]) == (0.55, 0.55)


@pytest.mark.parametrize(
    ("trajectory", "flagged"),
    [
        pytest.param((0.6, 0.5), True, id="1.15 s is below s0"),
        pytest.param((0.575, 0.5), False, id="1.15 s equals s0"),
        pytest.param((0.6, 0.55), False, id="fell by too little"),
        pytest.param((0.6, 0.1, 0.7), False, id="only the latest score counts"),
        pytest.param((0.99, 0.81), False, id="easier, but still above the ceiling"),
        pytest.param((0.99, 0.8), False, id="at the ceiling"),
        pytest.param((0.99, 0.79), True, id="easier and below the ceiling"),
        pytest.param((0.6, -0.5), True, id="turned negative"),
        pytest.param((0.6, -0.8), False, id="the ceiling is on the absolute value"),
        pytest.param((-0.2,), False, id="a negative start with nothing changed"),
        pytest.param((-0.2, -0.5), False, id="a negative start never triggers"),
        pytest.param((0.0, -0.5), False, id="a start at zero never triggers"),
        pytest.param((), False, id="not scored yet"),
    ],
)
def test_the_literal_rule(trajectory: tuple[float, ...], flagged: bool) -> None:
    assert no_longer_hard(scored(trajectory)).tolist() == [flagged]


def test_a_query_that_is_not_flagged_stays() -> None:
    state = scored((0.6, 0.5), (0.6, 0.6))
    after = advance(state, no_longer_hard(state), [1000, 1000], 4)
    assert after.round.tolist() == [1, 0]
    assert (after.initial_score[1], after.last_score[1]) == (0.6, 0.6)


def test_queries_without_negatives_in_a_step_are_passed_over() -> None:
    state = observe(scored((0.6,), ()), [0, 1], [np.nan, np.nan])
    assert state.last_score[0] == 0.6 and np.isnan(state.last_score[1])


def test_a_query_twice_in_a_step_is_one_visit() -> None:
    state = observe(scored((), ()), [1, 0, 1], [0.6, 0.5, 0.6])
    assert (state.initial_score.tolist(), state.last_score.tolist()) == ([0.5, 0.6], [0.5, 0.6])
    assert state.visits.tolist() == [1, 1]
    state = observe(state, [1, 1], [0.1, 0.1])
    assert (state.initial_score[1], state.last_score[1], state.visits[1]) == (0.6, 0.1, 2)


def test_only_a_second_visit_can_show_that_negatives_are_easier() -> None:
    state = scored((), (0.9,), (0.9, np.nan), (0.9, 0.1))
    assert visited(state).tolist() == [False, True, True, True]
    assert eligible(state).tolist() == no_longer_hard(state).tolist() == [False, False, False, True]
    state = advance(state, no_longer_hard(state), [1000] * 4, 4)
    assert visited(state).tolist() == [False, True, True, True]
    assert not eligible(state).any()  # no step has scored the new negatives


def test_a_move_is_to_any_window_that_is_there() -> None:
    state = scored((0.6, 0.3), (0.6, 0.3), (0.6, 0.6))
    state = move(state, no_longer_hard(state), np.array([True, False, True]), 0, [5, 6, 7])
    assert (state.round.tolist(), state.lo.tolist(), state.hi.tolist()) == ([1, 0, 0], [0, 0, 0], [5, 4, 4])
    assert state.exhausted.tolist() == [False, True, False]
    assert np.isnan(state.last_score).tolist() == [True, False, False]


def test_a_state_is_never_changed_in_place() -> None:
    state = scored((0.6, 0.3))
    before = replace(state, **{name: array.copy() for name, array in vars(state).items()})
    observe(state, [0], [0.1])
    advance(state, np.array([True]), [1000], 4)
    for name, array in vars(before).items():
        assert np.array_equal(getattr(state, name), array, equal_nan=array.dtype.kind == "f")


def test_thresholds_can_be_set() -> None:
    state = scored((0.6, 0.5))
    assert not no_longer_hard(state, factor=1.3)[0]
    assert not no_longer_hard(state, ceiling=0.5)[0]
    after = advance(state, np.array([True]), [1000], 4, offset=0)
    assert (int(after.lo[0]), int(after.hi[0])) == (0, 4)
