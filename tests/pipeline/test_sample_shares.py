"""The share of each stratum in a sample."""

from fractions import Fraction

import numpy as np
from conan_embedding.pipeline.sample import allotted
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(1, 1500))
def test_shares_are_those_of_the_largest_remainder(sizes: list[int], rows: int) -> None:
    shares = allotted(np.array(sizes, np.int64), rows).tolist()
    if rows >= sum(sizes):
        assert shares == sizes
        return
    left, rest = max(0, rows - len(sizes)), sum(sizes) - len(sizes)
    exact = [Fraction((size - 1) * left, max(1, rest)) for size in sizes]
    expected = [int(share) for share in exact]
    for place in sorted(range(len(sizes)), key=lambda place: int(exact[place]) - exact[place])[: left - sum(expected)]:
        expected[place] += 1
    assert shares == [1 + share for share in expected]
    assert sum(shares) == max(rows, len(sizes))
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
