"""Searching block by block, as on a cluster, finds what one search finds; the calls run here, in any order."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conan_embedding.pipeline.engine.calls import Call, Engine, Outcome, attempt
from conan_embedding.pipeline.engine.stage import StageError
from conan_embedding.pipeline.mine import search as searching
from conan_embedding.pipeline.mine import search_stored as module
from conan_embedding.pipeline.mine.search import NONE, Best, block_edges
from conan_embedding.pipeline.mine.search_stored import merge, search_stored
from searched_vectors import brute_force, drawn_rules, store, unit

CLUSTER = Engine(address="somewhere")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run calls of a cluster in this process, the last first; gives their names."""
    names: list[str] = []

    def run_calls(function: Callable[..., None], calls: Sequence[Call], engine: Engine) -> Iterator[Outcome]:
        assert engine.one_a_device
        for name, arguments in reversed(calls):
            names.append(name)
            yield name, attempt(function, *arguments)

    monkeypatch.setattr(module, "run_calls", run_calls)
    for name, size in (("QUERIES", 30), ("PASSAGES", 16), ("TOGETHER", 7)):
        for place in (module, searching):
            monkeypatch.setattr(place, name, size, raising=False)
    return names


def search_all(corpus: Path, engine: Engine, **more: Any) -> Best:
    dice = np.random.default_rng(8)
    queries, passages = unit(dice, 80, 24), unit(dice, 321, 24)
    rules = drawn_rules(dice, 80, 321, 40, np.where(dice.random(80) < 0.3, np.inf, dice.uniform(0, 0.5, 80)))
    stored = store(corpus, "queries", queries), store(corpus, "passages", passages)
    found = search_stored(corpus, *stored, rules, 12, engine, "searched", **more)
    best = Best(*map(np.concatenate, zip(*found, strict=True)))
    if more.get("index") is None:
        expected = brute_force(queries, passages, rules, 12)
        np.testing.assert_allclose(best.scores, expected.scores, atol=1e-6)
        assert (best.ids == expected.ids).mean() > 0.99
    return best


def test_all_are_compared_with_the_same_result_for_any_blocks(tmp_path: Path, ran: list[str]) -> None:
    """To the bit: a block has as many passages as are multiplied at a time, or a multiple of that."""
    alone = search_all(tmp_path, Engine())
    for block, blocks in ((400, 1), (112, 3), (50, 7), (1, 21)):
        seen: list[tuple[int, int]] = []
        engine = Engine(address="somewhere", progress=lambda name, done, total, rows: seen.append((done, total)))  # noqa: B023
        together = search_all(tmp_path, engine, block=block)
        assert all(one.tobytes() == other.tobytes() for one, other in zip(alone, together, strict=True))
        assert seen == [(done, blocks) for done in range(1, blocks + 1)]
    assert len(ran) == 1 + 3 + 7 + 21
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".npy"] == []


@pytest.mark.parametrize("index", ["IVF4,Flat", "SQ8"])
def test_each_block_has_the_index_that_it_has_on_one_machine(index: str, tmp_path: Path, ran: list[str]) -> None:
    alone, together = (search_all(tmp_path, engine, index=index, block=150) for engine in (Engine(), CLUSTER))
    assert all(one.tobytes() == other.tobytes() for one, other in zip(alone, together, strict=True))
    assert len(ran) == len(block_edges(321, 150)) - 1 == 3


def test_a_block_that_fails_is_named(tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".search.1.tmp"
    left.mkdir()
    monkeypatch.setattr(module, "find_keys", lambda *_: 1 / 0)
    with pytest.raises(StageError, match=r"keys-\d+: ZeroDivisionError"):
        search_all(tmp_path, CLUSTER)
    assert not list(tmp_path.glob(".*"))  # nor what a killed run has left


def test_a_node_that_does_not_share_the_folder_is_reported(
    tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "search_block", lambda *_: None)
    with pytest.raises(StageError, match="written on a node that does not share this folder"):
        search_all(tmp_path, CLUSTER)


@pytest.mark.parametrize("top_k", [1, 5])
def test_merging_keeps_the_greatest_keys(top_k: int) -> None:
    dice = np.random.default_rng(9)
    keys = dice.permutation(10**6)[: 40 * 3 * top_k].reshape(40, 3, top_k) - 500_000
    keys[dice.random(keys.shape) < 0.3] = NONE
    best = np.full((40, top_k), NONE)
    for block in range(3):
        merge(best, keys[:, block])
    assert (np.sort(best) == np.sort(keys.reshape(40, -1))[:, -top_k:]).all()
