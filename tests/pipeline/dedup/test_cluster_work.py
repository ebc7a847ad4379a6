"""How the work is divided, and what fails in it, changes nothing about the clusters."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clustered_texts import BANDS, ONE, ROWS, alike_pairs, components, corpus, found, labels, signed, similarity
from conan_embedding.pipeline.dedup import blocks, lsh
from conan_embedding.pipeline.dedup import clusters as clustering
from conan_embedding.pipeline.dedup.blocks import compute_similarities
from conan_embedding.pipeline.dedup.lsh import hash_bands
from conan_embedding.pipeline.dedup.minhash import signatures
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import StageError


@pytest.fixture(scope="module")
def mixed() -> list[str]:
    """Make texts of every length, some of them equal, some without letters."""
    texts = [*corpus(20, 120, 30), *corpus(200, 300, 12), "", "。。。", "。。。", "", "地"]
    texts += texts[:20]
    random.Random(1).shuffle(texts)
    return texts


SMALL = {"PART_ROWS": 40, "_EDGES": 5, "_SLICE": 4, "_BLOCK_BYTES": 3_000}


@pytest.mark.parametrize("shards", [1, 9])
@pytest.mark.parametrize("small", [{}, *({name: value} for name, value in SMALL.items()), SMALL])
def test_the_parts_of_the_work_change_nothing(
    tmp_path: Path, mixed: list[str], monkeypatch: pytest.MonkeyPatch, small: dict[str, int], shards: int
) -> None:
    bands = hash_bands(signatures(pa.array(mixed)), BANDS, ROWS).T
    coarse = [1 + len(text) // 10 << 40 for text in mixed]  # buckets whose leaders are similar to few of their members
    hashes = np.stack([*bands, np.array(coarse, np.uint64)])
    alike = [(a, b) for a, b in alike_pairs(mixed, 0.7) if (hashes[:, a] == hashes[:, b]).any()]
    alike += [(mixed.index(text), row) for row, text in enumerate(mixed)]
    for name, value in small.items():
        monkeypatch.setattr(clustering, name, value)
    monkeypatch.setattr(lsh, "PART_ROWS", clustering.PART_ROWS)
    result = found(signed(tmp_path, mixed, hashes, shards), len(hashes))
    assert labels(result) == components(len(mixed), alike)
    assert np.load(result.equals).tolist() == [mixed.index(text) for text in mixed]
    parts = sorted(tmp_path.glob("positive_band_00_*.npy"))
    assert len(parts) == 1 + len(mixed) // small.get("PART_ROWS", 10**9)
    of_distinct_texts = hashes[0, [mixed.index(text) for text in dict.fromkeys(mixed) if text]]
    edges = len(of_distinct_texts) - len(np.unique(of_distinct_texts))
    assert sum(np.load(part).shape[1] for part in parts) == edges
    assert (len(result.blocks) > 1) == ("_BLOCK_BYTES" in small and shards > 1)


def test_processes_change_nothing(tmp_path: Path, mixed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = found(signed(tmp_path / "one", mixed, shards=5))
    monkeypatch.setattr(clustering, "_FEW", 0)
    monkeypatch.setattr(clustering, "_BLOCK_BYTES", 20_000)
    both = found(signed(tmp_path / "two", mixed, shards=5), engine=Engine(workers=2))
    assert np.load(both.ids).tolist() == np.load(alone.ids).tolist()


def test_work_that_is_done_again_changes_nothing(
    tmp_path: Path, mixed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is repeated if a worker dies after its last write."""
    once = found(signed(tmp_path / "once", mixed))
    call_all = blocks.call_all

    def twice(*call: Any) -> None:
        call_all(*call)
        call_all(*call)

    for module in (blocks, clustering):
        monkeypatch.setattr(module, "call_all", twice)
    assert np.load(found(signed(tmp_path / "twice", mixed)).ids).tolist() == np.load(once.ids).tolist()


def test_few_rows_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object) -> None:
        raise AssertionError("a process")

    monkeypatch.setattr("conan_embedding.pipeline.engine.local._run_in_processes", no_process)
    assert labels(found(signed(tmp_path, ["天地人和春夏秋冬"] * 3), engine=Engine(workers=2))) == [0, 0, 0]


def test_similarities_of_any_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_BLOCK_BYTES", 4_000)
    texts = [*dict.fromkeys(corpus(20, 120, 25))]
    pairs = signed(tmp_path, texts, [[9 << 40] * len(texts)], shards=7)
    written = found(pairs, 1).blocks
    assert len(written) > 3
    left, right = np.random.default_rng(0).integers(0, len(texts), (2, 500))
    exact = np.array([similarity(texts[a], texts[b]) for a, b in zip(left, right, strict=True)])
    np.testing.assert_array_equal(compute_similarities(tmp_path, written, left, right, 0.0, ONE), exact)
    found_alike = compute_similarities(tmp_path, written, left, right, 0.5, ONE)
    np.testing.assert_array_equal(found_alike, np.where(exact >= 0.5, exact, 0))
    nothing = np.empty(0, np.int64)
    assert compute_similarities(tmp_path, written, nothing, nothing, 0.7, ONE).tolist() == []


def test_what_failed_is_named(tmp_path: Path) -> None:
    pairs = signed(tmp_path, ["天地人和"] * 2)
    pairs.filtered[0].write_bytes(b"damaged")
    with pytest.raises(StageError, match=r"filtered_0\.parquet: ArrowInvalid"):
        found(pairs)
