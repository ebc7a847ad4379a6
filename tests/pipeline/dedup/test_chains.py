"""Survivors of clusters whose rows don't all resemble the best one, against brute force."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
from conan_embedding.pipeline.dedup.blocks import hash_letters
from conan_embedding.pipeline.dedup.lsh import choose_bands, hash_bands
from conan_embedding.pipeline.dedup.minhash import (
    NO_LETTERS,
    Compared,
    choose_representatives,
    shingle_sets,
    signatures,
)
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from hypothesis import example, given
from hypothesis import strategies as st
from near_texts import HAN, outcome, recipe, similarity, text
from properties import max_examples

ONE = Engine(workers=1)


def compared(texts: Sequence[str], places: Sequence[int]) -> Compared:
    column = pa.array(texts, pa.large_string())
    return Compared(shingle_sets(column), hash_letters(column), np.array(places, np.int64))


def nothing(rows: int) -> Compared:
    """Return a side that doesn't count."""
    return compared([], [0] * rows)


def similarity_of(left: str, right: str) -> float:
    width = 3 if len(left) < 50 else 5
    one, two = ({each[i : i + width] for i in range(max(1, len(each) - width + 1))} for each in (left, right))
    return 1.0 if left == right else len(one & two) / len(one | two)


def greedy(pairs: Sequence[tuple[str, str]], threshold: float) -> tuple[list[int], list[float]]:
    """Return each row's earliest survivor that it resembles, and their similarity, by comparing all with all."""
    chosen, similarities = [], []
    for row, pair in enumerate(pairs):
        found = (
            (other, min(similarity_of(*sides) for sides in zip(pair, pairs[other], strict=True)))
            for other in range(row)
            if chosen[other] < 0
        )
        other, alike = next(((one, alike) for one, alike in found if alike >= threshold), (-1, 1.0))
        chosen.append(other)
        similarities.append(alike)
    return chosen, similarities


WINDOWS = st.integers(0, 60).map(lambda start: "".join(HAN[start : start + 60]))
SHORT = st.integers(0, 12).map(lambda start: "".join(HAN[start : start + 14]))


@max_examples(60)
@given(st.lists(st.tuples(WINDOWS, SHORT), min_size=1, max_size=30, unique=True), st.sampled_from([0.4, 0.7, 0.9]))
def test_representatives_are_those_of_brute_force(pairs: list[tuple[str, str]], threshold: float) -> None:
    sides = [list(dict.fromkeys(side)) for side in zip(*pairs, strict=True)]
    both = tuple(
        compared(distinct, [distinct.index(pair[number]) for pair in pairs]) for number, distinct in enumerate(sides)
    )
    one_bucket = np.zeros((len(pairs), 1), np.int64)
    chosen, similarities = choose_representatives(one_bucket, both, threshold, len(pairs))
    expected, alike = greedy(pairs, threshold)
    assert chosen.tolist() == expected
    np.testing.assert_allclose(similarities, alike, rtol=1e-12)


def test_only_rows_that_share_a_bucket_are_compared() -> None:
    texts = compared([text(1)] + [text(1)[:-1]] * 2, [0, 1, 2])
    buckets = np.array([[0, 2], [1, 3], [1, 2]])
    chosen, _ = choose_representatives(buckets, (texts, nothing(3)), 0.7, 8)
    assert chosen.tolist() == [-1, -1, 0]


def test_of_a_bucket_only_the_first_rows_are_compared() -> None:
    texts = [text(seed) for seed in range(5)]
    buckets = np.zeros((6, 1), np.int64)
    sides = compared([*texts, texts[3][:-1]], [0, 1, 2, 3, 4, 5]), nothing(6)
    assert choose_representatives(buckets, sides, 0.7, 4)[0].tolist() == [-1, -1, -1, -1, -1, 3]
    assert choose_representatives(buckets, sides, 0.7, 3)[0].tolist() == [-1] * 6


def test_short_texts_that_differ_in_signs_alone_stay() -> None:
    pair = ["5的绝对值是多少", "-5的绝对值是多少"]
    assert similarity_of(*pair) >= 0.7
    chosen, _ = choose_representatives(np.zeros((2, 1), np.int64), (compared(pair, [0, 1]), nothing(2)), 0.7, 8)
    assert chosen.tolist() == [-1, -1]
    long, *short = hash_letters(pa.array([text(1), "5", "-5", "15"], pa.large_string())).tolist()
    assert long == NO_LETTERS and short[0] == short[1] != short[2]


@max_examples(5)
@given(st.integers(0, 1000), st.sampled_from(["pair", "query", "positive"]))
@example(0, "pair")
def test_every_rejected_pair_resembles_its_survivor(
    tmp_path_factory, pair, write_shards, read, seed: int, on: str
) -> None:
    """Chains on both sides at once: windows over long texts, at random places."""
    dice = Random(seed)
    longs = [text(seed, 400), text(seed + 1, 400)]
    rows = [
        pair(*(long[start : start + 120] for long in longs if (start := dice.randrange(0, 200, 8)) >= 0))
        for _ in range(60)
    ]
    rows = list({row["pair_id"]: row for row in rows}.values())
    corpus: Path = tmp_path_factory.mktemp("corpus")
    write_shards(corpus, "filter", rows[::2], rows[1::2])
    dedup(corpus, recipe(on=on), ONE)
    kept, rejected = outcome(corpus, read)
    by_id = {row["pair_id"]: row for row in rows}
    details = dict(read(corpus, "dedup/rejected").select("pair_id", "detail").iter_rows())
    sides = ("query", "positive") if on == "pair" else (on,)
    for gone, (_, survivor) in rejected.items():
        alike = min(similarity(by_id[gone][side], by_id[survivor][side]) for side in sides)
        assert survivor in kept and alike >= 0.7 and details[gone] == f"{survivor}: {round(alike, 3)}"


def test_a_long_chain() -> None:
    """A window moves over one long text: each of 50,000 texts resembles its nine next neighbours on either side."""
    rows = 50_000
    long = "".join(Random(0).choices(HAN, k=rows + 60))
    column = pa.array([long[start : start + 60] for start in range(rows)], pa.large_string())
    order = np.random.default_rng(0).permutation(rows)
    column = column.take(pa.array(order))
    hashes = hash_bands(signatures(column), *choose_bands(0.92, 0.7))
    buckets = np.unique(hashes, return_inverse=True)[1].reshape(hashes.shape)
    side = Compared(shingle_sets(column), hash_letters(column), np.arange(rows))
    chosen, similarities = choose_representatives(buckets, (side, nothing(rows)), 0.7, 8)
    is_near = chosen >= 0
    assert similarities[is_near].min() >= 0.7
    apart = np.abs(order[is_near] - order[chosen[is_near]])
    assert apart.max() == 9  # 47 of 65 shingles are shared
    assert 0.03 < 1 - is_near.mean() < 0.09
