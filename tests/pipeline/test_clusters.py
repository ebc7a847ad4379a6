"""Clusters and matches against brute force over sets of shingle strings."""

import itertools
import random
import time
from collections import defaultdict

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.clusters import (
    COMPARED,
    candidate_edges,
    components,
    jaccard,
    matches,
    near_duplicates,
    verified_edges,
)
from conan_embedding.pipeline.minhash import NO_BUCKET, band_hashes, signatures
from hypothesis import example, given, settings
from hypothesis import strategies as st

HAN = [chr(0x4E00 + i) for i in range(3000)]

QUICK = 30.0
"""Seconds: many times what linear work takes with compilation, and far under what quadratic work would."""


def shingles(text: str | None) -> set[str]:
    text = text or ""
    width = 3 if len(text) < 50 else 5
    return {text[i : i + width] for i in range(max(len(text) - width + 1, 1))} - {""}


def similarity(left: str | None, right: str | None) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b) if a | b else 0.0


def edited(text: str, share: float, dice: random.Random) -> str:
    """The text with a share of its characters replaced, doubled or dropped."""
    letters = list(text)
    for place in dice.sample(range(len(letters)), int(share * len(letters))):
        letters[place] = dice.choice([dice.choice(HAN), letters[place] * 2, ""])
    return "".join(letters)


def corpus(shortest: int, longest: int, originals: int) -> list[str]:
    """Random Chinese texts, each with up to four edited copies, shuffled."""
    dice = random.Random(7)
    texts = []
    for _ in range(originals):
        texts.append("".join(dice.choices(HAN, k=dice.randint(shortest, longest))))
        texts += [edited(texts[-1], dice.uniform(0, 0.08), dice) for _ in range(dice.randint(0, 4))]
    dice.shuffle(texts)
    return texts


def alike_pairs(texts: list[str], threshold: float) -> list[tuple[int, int]]:
    holders = defaultdict(list)
    for row, text in enumerate(texts):
        for shingle in shingles(text):
            holders[shingle].append(row)
    shared = {pair for rows in holders.values() for pair in itertools.combinations(rows, 2)}
    return sorted((a, b) for a, b in shared if similarity(texts[a], texts[b]) >= threshold)


def smallest_of_components(n: int, edges: list[tuple[int, int]]) -> list[int]:
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(n))
    smallest = {row: min(rows) for rows in nx.connected_components(graph) for row in rows}
    return [smallest[row] for row in range(n)]


def refines(fine: list[int], coarse: list[int]) -> bool:
    return len(set(zip(fine, coarse, strict=True))) == len(set(fine))


def buckets(band: np.ndarray) -> list[list[int]]:
    rows = defaultdict(list)
    for row, value in enumerate(band.tolist()):
        rows[value].append(row)
    return [bucket for value, bucket in rows.items() if value != NO_BUCKET]


def star(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows[1:], dtype=np.int64), np.full(len(rows) - 1, rows[0])


@given(st.lists(st.sampled_from([NO_BUCKET, 1, 2, 3, 2**63, 2**64 - 1]), max_size=40))
def test_candidate_edges_are_stars_to_the_smallest_row(band: list[int]) -> None:
    hashes = np.array(band, dtype=np.uint64)
    members, leaders = candidate_edges(hashes)
    expected = [(row, bucket[0]) for bucket in buckets(hashes) for row in bucket[1:]]
    assert list(zip(members.tolist(), leaders.tolist(), strict=True)) == sorted(expected)


def test_a_bucket_of_a_million_is_a_million_edges_at_once() -> None:
    start = time.perf_counter()
    members, leaders = candidate_edges(np.full(1_000_000, 9, dtype=np.uint64))
    labels = components(1_000_000, members, leaders)
    assert time.perf_counter() - start < QUICK
    np.testing.assert_array_equal(members, np.arange(1, 1_000_000))
    assert not leaders.any()
    assert not labels.any()


def test_a_bucket_of_equal_texts_is_verified_in_linear_time() -> None:
    texts = pa.array(["今天天气很好，我们去公园"] * 200_000)
    start = time.perf_counter()
    members, leaders = verified_edges(texts, *candidate_edges(np.full(len(texts), 9, dtype=np.uint64)))
    assert time.perf_counter() - start < QUICK
    np.testing.assert_array_equal(np.sort(members), np.arange(1, len(texts)))
    assert not leaders.any()


def test_a_bucket_of_unlike_texts_is_left_in_linear_time() -> None:
    tail = "".join(HAN[:7])
    texts = pa.array([HAN[row % 1000] + HAN[row // 1000] + tail for row in range(100_000)])
    start = time.perf_counter()
    members, _ = verified_edges(texts, *candidate_edges(np.full(len(texts), 9, dtype=np.uint64)), 0.9)
    assert time.perf_counter() - start < QUICK
    assert len(members) == 0


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_components_are_named_by_their_smallest_row(edges: list[tuple[int, int]]) -> None:
    members, leaders = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    assert components(20, members, leaders).tolist() == smallest_of_components(20, edges)


TEXT = st.none() | st.text("天地人", max_size=12) | st.sampled_from(["春" * 49, "春" * 50, "春夏" * 26])


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=10))
def test_jaccard_is_that_of_the_sets_of_shingles(pairs: list[tuple[str | None, str | None]]) -> None:
    column = pa.array([text for pair in pairs for text in pair], type=pa.string())
    left = np.arange(0, len(column), 2)
    expected = [similarity(a, b) for a, b in pairs]
    np.testing.assert_array_equal(jaccard(column, left, left + 1), expected)
    np.testing.assert_array_equal(jaccard(column, left + 1, left), expected)


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12), st.floats(0.05, 1))
@example(["天地人", "人地天", "天地人"], 1.0)
@example(["天地人天", "天地人", "天地"], 0.5)
def test_a_small_bucket_is_joined_as_by_brute_force(texts: list[str | None], threshold: float) -> None:
    pairs = itertools.combinations(range(len(texts)), 2)
    alike = [(a, b) for a, b in pairs if similarity(texts[a], texts[b]) >= threshold]
    edges = verified_edges(pa.array(texts, type=pa.string()), *star(list(range(len(texts)))), threshold)
    assert components(len(texts), *edges).tolist() == smallest_of_components(len(texts), alike)
    assert set(zip(*(side.tolist() for side in edges), strict=True)) <= {(b, a) for a, b in alike}


def test_a_false_leader_hides_no_true_pair() -> None:
    dice = random.Random(0)
    unlike = ["".join(dice.choices(HAN, k=100)) for _ in range(COMPARED)]
    texts = pa.array([*unlike, *(text + "。" for text in unlike * 3)])
    labels = components(len(texts), *verified_edges(texts, *star(list(range(len(texts))))))
    assert labels.tolist() == list(range(COMPARED)) * 4


def test_a_true_leader_hides_no_true_pair() -> None:
    text = "".join(HAN[:200])
    chain = [text[start : start + 160] for start in (20, 0, 36)]  # the first is like both others
    further = text[40:200]  # like the third alone
    assert [similarity(further, other) >= 0.7 for other in chain] == [True, False, True]
    assert similarity(chain[1], chain[2]) < 0.7
    for texts in itertools.permutations([*chain, further]):
        labels = components(4, *verified_edges(pa.array(texts), *star([0, 1, 2, 3])))
        assert labels.tolist() == [0, 0, 0, 0]


def test_edges_come_out_the_same_in_any_order_and_from_any_number_of_bands() -> None:
    texts = pa.array(corpus(20, 60, 60))
    bands = [candidate_edges(band) for band in band_hashes(signatures(texts)).T]
    members, leaders = (np.concatenate(side) for side in zip(*bands, strict=True))
    order = np.random.default_rng(0).permutation(len(members))
    expected = verified_edges(texts, members, leaders)
    assert len(expected[0])
    np.testing.assert_array_equal(verified_edges(texts, members[order], leaders[order]), expected)
    np.testing.assert_array_equal(verified_edges(texts, members, leaders), expected)


@pytest.mark.parametrize(("shortest", "longest"), [(200, 600), (20, 60)])
def test_near_duplicates_against_brute_force(shortest: int, longest: int) -> None:
    texts = corpus(shortest, longest, 200)
    column = pa.array(texts)
    labels = near_duplicates(column)
    alike = alike_pairs(texts, 0.7)
    assert len(alike) > 200

    # No false pair: a cluster lies within a component of brute force. No bucket's pair is lost.
    assert refines(labels.tolist(), smallest_of_components(len(texts), alike))
    hashes = band_hashes(signatures(column))
    meeting = [(a, b) for a, b in alike if (hashes[a] == hashes[b]).any()]
    assert refines(smallest_of_components(len(texts), meeting), labels.tolist())

    def found(threshold: float) -> float:
        return float(np.mean([labels[a] == labels[b] for a, b in alike_pairs(texts, threshold)]))

    assert found(0.7) >= 0.92
    assert found(0.8) >= 0.99
    np.testing.assert_array_equal(labels, near_duplicates(pa.chunked_array([column[:7], column[7:]])))


def test_labels_are_the_smallest_rows_and_empty_texts_stand_alone() -> None:
    texts = ["", "一只敏捷的狐狸", None, "别的一句话", "一只敏捷的狐狸", "", None]
    assert near_duplicates(pa.array(texts)).tolist() == [0, 1, 2, 3, 1, 5, 6]
    assert near_duplicates(pa.array([], type=pa.string())).tolist() == []


def test_texts_on_either_side_of_fifty_characters_are_not_compared() -> None:
    text = "".join(HAN[:51])
    assert near_duplicates(pa.array([text[:49], text[:50], text])).tolist() == [0, 1, 1]


def test_matches_are_the_best_of_brute_force() -> None:
    texts = corpus(30, 120, 150)
    ours, theirs = [*texts[::2], "", None], [*texts[1::2], None, ""]
    left, right = band_hashes(signatures(pa.array(ours))), band_hashes(signatures(pa.array(theirs)))
    expected = []
    for row, text in enumerate(ours):
        meeting = np.flatnonzero(((right == left[row]) & (right != NO_BUCKET)).any(axis=1)).tolist()
        ranked = sorted((-similarity(text, theirs[other]), other) for other in meeting)
        if ranked and -ranked[0][0] >= 0.7:
            expected.append((row, ranked[0][1], -ranked[0][0]))
    result = matches(pa.array(ours), pa.array(theirs))
    assert list(zip(*(column.tolist() for column in result), strict=True)) == expected
    assert len(expected) > 50
    assert len(set(result[1].tolist())) < len(expected)


def test_equally_good_matches_name_the_smallest_row() -> None:
    text = "床前明月光，疑是地上霜"
    found = matches(pa.array(["无关", text]), pa.array(["别", text, text]))
    assert [column.tolist() for column in found] == [[1], [1], [1.0]]


def test_an_empty_column_matches_nothing() -> None:
    some, none = pa.array(["床前明月光"]), pa.array([], type=pa.string())
    for pair in [(some, none), (none, some), (none, none)]:
        assert [column.tolist() for column in matches(*pair)] == [[], [], []]
