"""Exact search under rules against NumPy over all scores, for any size of blocks; FAISS above a limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from conan_embedding.pipeline.mine import search as module
from conan_embedding.pipeline.mine.search import (
    Best,
    Rules,
    check_index,
    check_index_syntax,
    default_index,
    search,
)
from conan_embedding.schemas.errors import RecipeError
from searched_vectors import Vectors, brute_force, drawn_rules, unit


def search_all(
    queries: Vectors, passages: Vectors, rules: Rules, top_k: int, index: str | None = None, **more: Any
) -> Best:
    found = search(queries.__getitem__, passages.__getitem__, rules, top_k, index, **more)
    return Best(*map(np.concatenate, zip(*found, strict=True)))


def in_blocks(monkeypatch: pytest.MonkeyPatch, queries: int, passages: int, together: int) -> None:
    for name, size in (("QUERIES", queries), ("PASSAGES", passages), ("TOGETHER", together)):
        monkeypatch.setattr(module, name, size)


def test_exact_is_brute_force() -> None:
    dice = np.random.default_rng(0)
    queries, passages = unit(dice, 5000, 64), unit(dice, 5000, 64)
    ceiling = np.where(dice.random(5000) < 0.1, np.inf, dice.uniform(-0.2, 0.4, 5000))
    rules = drawn_rules(dice, 5000, 5000, 60, ceiling)
    found, expected = (
        search_all(queries, passages, rules, 50, None),
        brute_force(queries, passages, rules, 50),
    )
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    # Products of other shapes differ in their last bits, so neighbours with almost equal scores may change places.
    close = np.abs(np.diff(expected.scores, axis=1)) < 1e-6
    close = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)), constant_values=True)
    assert ((found.ids == expected.ids) | close).all()
    assert (found.ids == expected.ids).mean() > 0.97


@pytest.mark.parametrize("blocks", [(1, 20, 1), (7, 3, 2), (64, 200, 64), (1000, 130, 33), (1000, 1000, 1000)])
@pytest.mark.parametrize("top_k", [1, 9, 400])
def test_equal_scores_are_by_number_whatever_the_blocks(
    blocks: tuple[int, int, int], top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, *blocks)
    dice = np.random.default_rng(1)
    # Whole numbers: products are exact and often equal, some negative, some 0.
    queries, passages = (dice.integers(-2, 3, (count, 4)).astype(np.float32) for count in (90, 300))
    rules = drawn_rules(dice, 90, 300, 20, dice.integers(-3, 9, 90))
    found, expected = (
        search_all(queries, passages, rules, top_k, None),
        brute_force(queries, passages, rules, top_k),
    )
    width = expected.ids.shape[1]
    assert (found.ids[:, :width] == expected.ids).all() and (found.ids[:, width:] == -1).all()
    assert (found.scores[:, :width] == expected.scores).all() and (found.scores[:, width:] == -np.inf).all()


@pytest.mark.parametrize("limit", [10_000, 77])
def test_an_index_of_all_is_brute_force(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of one list is asked for every passage, in one shard or in several."""
    in_blocks(monkeypatch, 50, 40, 7)
    monkeypatch.setattr(module, "APPROXIMATE_DEPTH", 100)
    dice = np.random.default_rng(2)
    queries, passages = (dice.integers(-2, 3, (count, 4)).astype(np.float32) for count in (90, 300))
    rules = drawn_rules(dice, 90, 300, 20, dice.integers(-3, 9, 90))
    found, expected = (
        search_all(queries, passages, rules, 9, "IVF1,Flat", block=limit, folder=tmp_path),
        brute_force(queries, passages, rules, 9),
    )
    assert (found.ids == expected.ids).all() and (found.scores == expected.scores).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("top_k", [20, 600])
def test_what_an_index_does_not_find_is_not_put_in(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit there are four shards with an index each; the vectors of one shard at most are read at a time."""
    monkeypatch.setattr(module, "FLAT_LIMIT", 1000)
    monkeypatch.setattr(module, "RECALL", 0.5)
    built: list[int] = []

    def factory(width: int, name: str, metric: int, *, real: Callable = faiss.index_factory) -> faiss.Index:
        assert name == default_index(3500, 1000) == "IVF118,Flat"
        built.append(width)
        return real(width, name, metric)

    monkeypatch.setattr(faiss, "index_factory", factory)
    dice = np.random.default_rng(3)
    centres = unit(dice, 40, 24)
    places = dice.integers(0, 40, 3500)
    passages = centres[places] + 0.3 * unit(dice, 3500, 24)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    queries = passages[::50] + 0.2 * unit(dice, 70, 24)
    rules = drawn_rules(dice, 70, 3500, 100, np.full(70, 0.99))
    taken: list[int] = []

    def rows(places: np.ndarray) -> Vectors:
        taken.append(len(places))
        return passages[places]

    found = Best(*map(np.concatenate, zip(*search(queries.__getitem__, rows, rules, top_k, block=1000), strict=True)))
    expected = brute_force(queries, passages, rules, 3500)
    assert built == [24] * 4 and max(taken) <= 1000
    recall = []
    for ids, scores, allowed in zip(found.ids, found.scores, expected.ids, strict=True):
        there = ids[ids >= 0]
        assert set(there) <= set(allowed[allowed >= 0]) and len(set(there)) == len(there)
        assert (np.diff(scores[ids >= 0]) <= 0).all() and (ids[len(there) :] == -1).all()
        assert (np.abs(scores[ids >= 0]) <= 1).all()
        recall.append(np.isin(allowed[:20], there).mean())
    assert 0.6 < np.mean(recall) < 1
    assert (found.ids[:, -1] < 0).any() == (top_k == 600)


def test_nothing_to_search() -> None:
    nothing, some = np.empty((0, 0), np.float32), np.ones((3, 2), np.float32)
    empty, starts = np.zeros(0, np.int64), np.zeros(4, np.int64)
    rules = Rules(np.full(3, np.inf, np.float32), starts, empty, np.zeros(1, np.int64), empty)
    assert search_all(some, nothing, rules, 2).ids.tolist() == [[-1, -1]] * 3
    rules = Rules(np.zeros(0, np.float32), starts[:1], empty, starts, empty)
    assert list(search(nothing.__getitem__, some.__getitem__, rules, 2)) == []


def test_a_score_that_is_no_number_is_no_candidate() -> None:
    queries = np.eye(2, dtype=np.float32)
    passages = np.array([[np.nan, 0.5], [0.25, np.nan], [0.5, -0.5]], np.float32)
    nobody = np.zeros(0, np.int64)
    rules = Rules(np.full(2, np.inf, np.float32), np.zeros(3, np.int64), nobody, np.zeros(4, np.int64), nobody)
    found = search_all(queries, passages, rules, 3, None)
    assert found.ids.tolist() == [[2, -1, -1], [2, -1, -1]]  # 0 × NaN is NaN, too


def test_progress_ends_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 4, 5, 3)
    seen: list[tuple[int, int]] = []
    vectors = np.ones((9, 2), np.float32)
    nobody, starts = np.zeros(0, np.int64), np.zeros(10, np.int64)
    rules = Rules(np.full(9, np.inf, np.float32), starts, nobody, starts, nobody)
    for index in (None, "IVF1,Flat"):
        search_all(vectors, vectors, rules, 2, index, progress=lambda *done: seen.append(done))
    assert seen == [(done, 6) for done in range(1, 7)] + [(1, 2), (2, 2)]


def test_the_default_index_finds_enough_even_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clusters in the data, neighbours are spread over many lists: as many are searched as it takes."""
    monkeypatch.setattr(module, "FLAT_LIMIT", 2500)
    dice = np.random.default_rng(4)
    passages, queries = unit(dice, 5000, 32), unit(dice, 300, 32)
    rules = drawn_rules(dice, 300, 5000, 5000, np.full(300, 2.0))
    found = search_all(queries, passages, rules, 100, block=2500).ids
    expected = brute_force(queries, passages, rules, 100).ids
    shared = [len(np.intersect1d(one, other)) for one, other in zip(found, expected, strict=True)]
    assert np.mean(shared) >= 95


@pytest.mark.parametrize("factory", ["PQ8x4", "PCA8,Flat", "SQ4", "IVF4,PQ8x4fs"])
def test_the_rules_see_true_scores_whatever_the_index(factory: str) -> None:
    """Scores of a compressing index differ from the true ones by a tenth here: enough to break each rule."""
    dice = np.random.default_rng(5)
    passages, queries = unit(dice, 600, 16), unit(dice, 80, 16)
    rules = drawn_rules(dice, 80, 600, 900, np.sort(queries @ passages.T, axis=1)[:, -20])
    found = search_all(queries, passages, rules, 30, factory)
    expected = brute_force(queries, passages, rules, 30)
    scores = np.einsum("qd,qkd->qk", queries, passages[found.ids])
    there = found.ids >= 0
    np.testing.assert_allclose(found.scores[there], scores[there], atol=1e-6)
    assert (found.scores < rules.ceiling[:, None])[there].all()
    assert (np.diff(found.scores, axis=1)[there[:, 1:]] <= 0).all()
    shared = [len(np.intersect1d(one, other)) for one, other in zip(found.ids, expected.ids, strict=True)]
    assert np.mean(shared) > 0.9 * 30  # ten times as many were asked for


@pytest.mark.parametrize(
    ("factory", "width", "passages", "message"),
    [
        ("IVF4096Flat", 16, 10**6, r"mine\.index: FAISS can't build 'IVF4096Flat' .* could not parse index string"),
        ("PQ7", 16, 10**6, "vectors with 16 dimensions, .* should be a multiple of the number of subquantizers"),
        ("LSH", 16, 10**6, "by inner product: 'metric == METRIC_L2'"),
        ("IVF4096,Flat", 16, 900, "IVF4096,Flat has 4,096 lists, more than the 900 passages"),
        ("OPQ4,IVF901,PQ4", 16, 900, "has 901 lists"),
    ],
)
def test_an_index_that_can_not_be_is_refused(factory: str, width: int, passages: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_index(factory, width, passages)


def test_what_can_be_built_is_not_refused() -> None:
    for factory in ("Flat", "IVF900,Flat", "PCA8,IVF30,SQ8", "HNSW32", "OPQ8,IVF4,PQ8x4"):
        check_index(factory, 16, 900)
        check_index_syntax(factory, "mine.index")
    check_index_syntax("PQ7", "mine.index")  # whether it fits depends on the model
    with pytest.raises(RecipeError, match=r"^recipe\.yaml:3: mine\.index: FAISS can't read 'IVF,,Flat'; expected a"):
        check_index_syntax("IVF,,Flat", "recipe.yaml:3: mine.index")


def test_what_an_index_can_not_be_trained_on_is_said() -> None:
    dice = np.random.default_rng(6)
    vectors, starts, nobody = unit(dice, 100, 16), np.zeros(101, np.int64), np.zeros(0, np.int64)
    rules = Rules(np.full(100, np.inf, np.float32), starts, nobody, starts, nobody)
    with pytest.raises(RecipeError, match=r"mine\.index: FAISS can't build 'PQ8' .* Number of training points"):
        search_all(vectors, vectors, rules, 2, "PQ8")
