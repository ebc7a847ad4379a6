"""What each update is made of, against plain loops over the same records."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.corpus import CorpusError
from conan_embedding.schemas.pairs import CATEGORIES as CATEGORY_NAMES
from conan_embedding.schemas.recipe import RecipeError
from conan_embedding.schemas.settings import Mixing, PretrainSettings
from conan_embedding.trainer.batches import (
    PAPER_SHARES,
    FinetuneData,
    Sources,
    check_mixing,
    draws,
    finetune_update,
    given_counts,
    pretrain_update,
    read_finetune,
    read_pairs,
    source_weights,
    steps_of,
    visits,
)
from conan_embedding.trainer.negatives import Windows, advance, start

Shards = Callable[[Path, str], list[Path]]

NAMES = ["large"] * 400 + ["middle"] * 100 + ["single"]


def sources_of(names: Sequence[str], **categories: str) -> Sources:
    """Sources as they are read: in the order of their names; of the category news where none is given."""
    known = sorted(set(names))
    numbers = np.array([known.index(name) for name in names])
    return Sources(numbers, known, [categories.get(name, "news") for name in known])


SOURCES = sources_of(NAMES)


def plain_draws(names: Sequence[str], total: int, power: float, seed: int, run: int = 1) -> list[int]:
    """What draws gave before sources had weights of their own: by size to a power."""
    known, source_of = np.unique(np.asarray(names), return_inverse=True)
    records = [np.flatnonzero(source_of == source) for source in range(len(known))]
    generator = np.random.default_rng(seed)
    weights = np.array([len(each) for each in records], np.float64) ** power
    drawn = np.repeat(generator.choice(len(known), -(-total // run), p=weights / weights.sum()), run)[:total]
    result = np.empty(total, np.int64)
    for source, own in enumerate(records):
        places = np.flatnonzero(drawn == source)
        order = generator.permuted(np.tile(own, (-(-len(places) // len(own)), 1)), axis=1).ravel()
        result[places] = order[: len(places)]
    return result.tolist()


@pytest.mark.parametrize("run", [1, 7])
@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
def test_a_power_alone_draws_what_it_always_drew(power: float, run: int) -> None:
    assert draws(SOURCES, 3000, Mixing(power=power), 5, run).tolist() == plain_draws(NAMES, 3000, power, 5, run)


CATEGORIES = {"a": "news", "b": "news", "c": "web_page", "d": "instruction"}
SIZES = {"a": 900, "b": 100, "c": 400, "d": 1}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("factors", [{}, {"b": 3.0, "c": 0.5}, {"a": 0.0}])
@pytest.mark.parametrize("shares", [None, "paper", {"news": 2, "web_page": 1, "instruction": 0, "academic_paper": 5}])
def test_weights_of_sources(shares: Any, factors: dict[str, float], power: float) -> None:
    paper = {"news": 27.3, "web_page": 4.6, "instruction": 11.7}
    expected = {}
    for name, size in SIZES.items():
        within = sum(SIZES[other] ** power for other in SIZES if CATEGORIES[other] == CATEGORIES[name])
        share = (paper if shares == "paper" else shares)[CATEGORIES[name]] / within if shares else 1
        expected[name] = share * size**power * factors.get(name, 1)
    mixing = Mixing(power=power, categories=shares, sources=factors)
    sources = Sources(np.zeros(0, np.int64), list(SIZES), list(CATEGORIES.values()))
    weights = source_weights(list(SIZES.values()), sources, mixing)
    assert weights / weights.sum() == pytest.approx(np.array(list(expected.values())) / sum(expected.values()))


def test_the_papers_shares_are_of_all_categories() -> None:
    assert set(PAPER_SHARES) == set(CATEGORY_NAMES)
    assert sum(PAPER_SHARES.values()) == pytest.approx(100)


def test_draws_follow_the_weights() -> None:
    names = [name for name, size in SIZES.items() for _ in range(size)]
    mixing = Mixing(categories={"news": 3, "web_page": 1, "instruction": 1}, sources={"d": 0})
    drawn = Counter(names[row] for row in draws(sources_of(names, **CATEGORIES), 30_000, mixing, seed=0).tolist())
    for name, share in {"a": 0.75 * 0.75, "b": 0.75 * 0.25, "c": 0.25}.items():
        assert abs(drawn[name] / 30_000 - share) < 4 * np.sqrt(share / 30_000)
    assert drawn["d"] == 0


def test_a_mixing_that_does_not_fit_is_said() -> None:
    sources = sources_of(["weibo", "zhihu", "xwlb"], weibo="social_media", zhihu="social_media")
    with pytest.raises(RecipeError, match=r"no share for social_media.*weibo, zhihu"):
        draws(sources, 5, Mixing(categories={"news": 1}), 0)
    with pytest.raises(RecipeError, match="negative"):
        draws(sources, 5, Mixing(sources={"weibo": -1}), 0)
    with pytest.raises(RecipeError, match="nothing to draw of weibo, xwlb, zhihu"):
        draws(sources, 5, Mixing(sources={"weibo": 0, "zhihu": 0, "xwlb": 0}), 0)
    pairs = sources_of(["stsb"])
    check_mixing(Mixing(sources={"weibo": 2, "stsb": 0.5}), sources, pairs)
    with pytest.raises(RecipeError, match="a source wiebo; did you mean weibo"):
        check_mixing(Mixing(sources={"wiebo": 2}), sources, pairs)
    with pytest.raises(RecipeError, match="there are stsb, weibo, xwlb, zhihu"):
        check_mixing(Mixing(sources={"q": 2}), sources, pairs)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_no_record_comes_back_before_its_source_is_used_up(power: float) -> None:
    drawn = draws(SOURCES, 3000, Mixing(power=power), seed=4)
    for source in set(NAMES):
        records = [row for row in drawn.tolist() if NAMES[row] == source]
        size = NAMES.count(source)
        for begin in range(0, len(records), size):
            assert len(set(records[begin : begin + size])) == len(records[begin : begin + size])


@pytest.mark.parametrize(("power", "shares"), [(0.0, [1, 1, 1]), (0.5, [20, 10, 1]), (1.0, [400, 100, 1])])
def test_sources_mix_by_their_size_to_a_power(power: float, shares: list[int]) -> None:
    drawn = Counter(NAMES[row] for row in draws(SOURCES, 30_000, Mixing(power=power), seed=0).tolist())
    for source, share in zip(["large", "middle", "single"], shares, strict=True):
        expected = share / sum(shares)
        assert abs(drawn[source] / 30_000 - expected) < 4 * np.sqrt(expected / 30_000)


def test_draws_follow_the_seed_alone() -> None:
    assert np.array_equal(draws(SOURCES, 700, Mixing(), 1), draws(SOURCES, 700, Mixing(), 1))
    assert not np.array_equal(draws(SOURCES, 700, Mixing(), 1), draws(SOURCES, 700, Mixing(), 2))
    assert draws(sources_of(["one"]), 5, Mixing(), 0).tolist() == [0] * 5
    assert len(draws(SOURCES, 0, Mixing(), 0)) == 0


def test_orders_of_later_rounds_differ() -> None:
    drawn = draws(sources_of(["a"] * 50), 150, Mixing(power=1), 0).reshape(3, 50)
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])


@pytest.mark.parametrize("length", [0, 1, 200])
def test_visits_count_earlier_draws(length: int) -> None:
    drawn = np.random.default_rng(0).integers(0, 30, length)
    seen: Counter[int] = Counter()
    expected = []
    for row in drawn.tolist():
        expected.append(seen[row])
        seen[row] += 1
    assert visits(drawn).tolist() == expected


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (PretrainSettings(steps=7), 7),
        (PretrainSettings(), 10),
        (PretrainSettings(epochs=2.5), 25),
        (PretrainSettings(epochs=0.001), 1),
    ],
)
def test_steps_are_given_or_follow_from_epochs(settings: PretrainSettings, steps: int) -> None:
    assert steps_of(settings, records=101, batch=10) == steps


def test_pairs_of_any_stage_are_read(tmp_path: Path) -> None:
    tasks = ["retrieval", "sts", "pretrain", "classification"]
    columns = {"query": ["甲", "乙", "丙", "丁"], "positive": list("abcd"), "source": ["y", "y", "x", "x"]}
    columns["category"] = ["news", "news", "web_page", "web_page"]
    early = pl.DataFrame({**columns, "task": tasks}).with_columns(pl.col("task", "source").cast(pl.Categorical))
    early.write_parquet(tmp_path / "filter.parquet")
    early.with_columns(cluster_id=pl.Series([4, 5, 6, 7])).write_parquet(tmp_path / "dedup.parquet")
    late = pl.DataFrame({**columns, "cluster_id": [1, 1, 2, 3], "pair_ids": [["p"]] * 4})
    late.write_parquet(tmp_path / "convert.parquet")

    of_filter = read_pairs([tmp_path / "filter.parquet"])
    assert of_filter.queries.to_pylist() == ["甲", "丙"]
    assert of_filter.positives.to_pylist() == ["a", "c"]
    assert of_filter.clusters.tolist() == [-1, -1]
    assert of_filter.sources.of_records.tolist() == [1, 0]
    assert (of_filter.sources.names, of_filter.sources.categories) == (["x", "y"], ["web_page", "news"])
    assert read_pairs([tmp_path / "dedup.parquet"]).clusters.tolist() == [4, 6]
    of_convert = read_pairs([tmp_path / "convert.parquet", tmp_path / "convert.parquet"])
    assert of_convert.queries.to_pylist() == ["甲", "乙", "丙", "丁"] * 2
    assert of_convert.clusters.tolist() == [1, 1, 2, 3] * 2

    early.filter(pl.col("task").cast(pl.String) == "sts").write_parquet(tmp_path / "none.parquet")
    with pytest.raises(CorpusError, match="no pairs"):
        read_pairs([tmp_path / "none.parquet"])


def test_an_update_for_pretraining_is_its_rows(made_corpus: Path, shards: Shards) -> None:
    data = read_pairs(shards(made_corpus, "pretrain"))
    rows = np.array([7, 0, 6])
    update = pretrain_update(data, rows)
    assert [update.texts[row] for row in update.query_rows] == [data.queries[int(row)].as_py() for row in rows]
    assert [update.texts[row] for row in update.positive_rows] == [data.positives[int(row)].as_py() for row in rows]
    groups = update.groups[update.positive_rows].tolist()
    assert groups[0] == groups[2] != groups[1]  # rows 6 and 7 are of one cluster
    assert update.negative_rows.shape == (3, 0)


def read(corpus: Path, shards: Shards, *kinds: str) -> FinetuneData:
    return read_finetune(corpus, {kind: shards(corpus, kind) for kind in kinds}, shards(corpus, "sts"))


def test_records_meet_their_pools(made_corpus: Path, shards: Shards) -> None:
    data = read(made_corpus, shards, "retrieval")
    records = pl.concat([pl.read_parquet(shard) for shard in shards(made_corpus, "retrieval")])
    assert data.queries.to_pylist() == records["query"].to_list()  # here queries are numbered as they are written
    assert data.query_ids.tolist() == list(range(40))
    assert data.positives.to_pylist() == records["positives"].to_list()
    assert data.clusters.to_pylist() == records["cluster_ids"].to_list()
    assert data.given.to_pylist() == records["negatives"].to_list()
    assert given_counts(data).tolist() == [2 if i % 5 == 0 else 0 for i in range(40)]
    assert data.sources.of_records.tolist() == [0] * 30 + [1] * 10
    assert (data.sources.names, data.sources.categories) == (["big", "small"], ["news", "news"])
    assert (data.sentence_sources.names, data.sentence_sources.categories) == (["sts"], ["news"])
    assert data.pool_sizes.tolist() == list(range(40))
    assert len(data.passages) == 160
    scored = pl.read_parquet(shards(made_corpus, "sts")[0])
    assert data.left.to_pylist() == scored["text_a"].to_list()
    assert data.right.to_pylist() == scored["text_b"].to_list()
    assert data.labels.tolist() == scored["label"].to_list()


def test_records_of_one_query_become_one(tmp_path: Path, write: Any, shards: Shards) -> None:
    first = {"source": "b", "query": "问", "positives": ["一", "二"], "cluster_ids": [1, 2], "negatives": ["坏", "三"]}
    second = {"source": "a", "query": "问", "positives": ["三"], "cluster_ids": [3], "negatives": ["差", "坏", "一"]}
    write.shard(tmp_path, "retrieval", [first])
    write.shard(tmp_path, "retrieval", [second], number=1)
    write.shard(tmp_path, "pretrain", [{"source": "c", "query": "问", "positive": "四", "cluster_id": 4}])
    write.mined(tmp_path, {0: ("五", 5)}, {"问": [0]})
    data = read(tmp_path, shards, "retrieval", "pretrain")
    assert data.queries.to_pylist() == ["问"]
    assert data.positives.to_pylist() == [["三", "一", "二", "四"]]  # by source
    assert data.clusters.to_pylist() == [[3, 1, 2, 4]]
    assert data.given.to_pylist() == [["差", "坏"]]  # once each, and nothing that another record calls an answer
    assert len(data.labels) == 0


def test_what_pools_lack_is_said(corpus: Path, write: Any, shards: Shards) -> None:
    pair = {"source": "c", "query": "没有挖过", "positive": "四", "cluster_id": 4}
    write.shard(corpus, "pretrain", [pair])
    with pytest.raises(CorpusError, match=r"1 of 41 queries have no pool.*mine"):
        read(corpus, shards, "retrieval", "pretrain")
    queries = read(corpus, shards, "retrieval").queries.to_pylist()
    write.mined(corpus, {1: ("五", 5), 2: ("六", 6)}, {query: [] for query in queries})
    with pytest.raises(CorpusError, match="numbered from 0"):
        read(corpus, shards, "retrieval")
    write.shard(corpus, "retrieval", [])
    write.shard(corpus, "retrieval", [], number=1)
    with pytest.raises(CorpusError, match="no queries"):
        read(corpus, shards, "retrieval")


def negatives_of(data: FinetuneData, windows: Windows, rows: list[int], visit: int = 0) -> list[list[str]]:
    update = finetune_update(data, windows, np.array(rows), np.arange(2), 4, np.full(len(rows), visit))
    assert [update.texts[row] for row in update.query_rows] == [data.queries[row].as_py() for row in rows]
    for row, text in zip(rows, update.positive_rows, strict=True):
        positives = data.positives[row].as_py()
        assert update.texts[text] == positives[visit % len(positives)]
    assert [update.texts[row] for row in update.left_rows] == data.left[:2].to_pylist()
    assert update.labels.tolist() == data.labels[:2].tolist()
    return [[update.texts[row] for row in each if row >= 0] for each in update.negative_rows]


def test_negatives_are_those_of_the_windows(made_corpus: Path, shards: Shards) -> None:
    data = read(made_corpus, shards, "retrieval")
    windows = start(data.pool_sizes, 4, given_counts(data))
    texts = data.passages.to_pylist()
    pools = [[texts[i] for i in each] for each in np.split(data.pool_passages, data.pool_starts[1:-1])]
    rows = [0, 1, 3, 10, 39]  # given and no pool; one candidate; three; given and a pool; many
    expected = [data.given[0].as_py(), pools[1], pools[3], data.given[10].as_py(), pools[39][:4]]
    assert negatives_of(data, windows, rows) == expected
    assert [len(each) for each in expected] == [2, 1, 3, 2, 4]

    moved = advance(windows, np.ones(40, np.bool_), data.pool_sizes, 4)
    moved = advance(moved, np.arange(40) == 39, data.pool_sizes, 4)
    expected = [data.given[0].as_py(), pools[1], pools[3], data.given[10].as_py(), pools[39][14:18]]
    assert negatives_of(data, moved, rows) == expected  # a pool that is too short keeps its window
    assert negatives_of(data, moved, [25]) == [pools[25][10:14]]


def test_a_query_shows_its_positives_in_turn(made_corpus: Path, shards: Shards) -> None:
    data = read(made_corpus, shards, "retrieval")
    windows = start(data.pool_sizes, 4, given_counts(data))
    assert len(data.positives[2]) == 2
    for visit in range(4):
        negatives_of(data, windows, [2, 30], visit)


def test_clusters_come_along(tmp_path: Path, write: Any, shards: Shards) -> None:
    record = {"source": "a", "query": "问", "positives": ["答"], "cluster_ids": [9], "negatives": []}
    write.shard(tmp_path, "retrieval", [record])
    write.mined(tmp_path, {0: ("近似的答", 9), 1: ("别的", 3)}, {"问": [0, 1]})
    data = read(tmp_path, shards, "retrieval")
    windows = start(data.pool_sizes, 4, given_counts(data))
    update = finetune_update(data, windows, np.array([0]), np.zeros(0, np.int64), 4, np.array([0]))
    groups = update.groups[update.negative_rows[0]].tolist()
    own = update.groups[update.positive_rows[0]].item()
    assert [group == own for group in groups] == [True, False]


def test_queries_without_any_negatives_are_an_update_too(tmp_path: Path, write: Any, shards: Shards) -> None:
    record = {"source": "a", "query": "问", "positives": ["答"], "cluster_ids": [9], "negatives": []}
    write.shard(tmp_path, "retrieval", [record])
    write.mined(tmp_path, {}, {"问": []})
    data = read(tmp_path, shards, "retrieval")
    windows = start(data.pool_sizes, 4, given_counts(data))
    update = finetune_update(data, windows, np.array([0, 0]), np.zeros(0, np.int64), 4, np.array([0, 1]))
    assert update.negative_rows.shape == (2, 0)


def test_draws_in_runs_share_their_source() -> None:
    sources = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 5)
    drawn = draws(sources_of(sources.tolist()), total=95, mixing=Mixing(), seed=3, run=10)
    assert len(drawn) == 95
    for first in range(0, 95, 10):
        assert len(set(sources[drawn[first : first + 10]])) == 1
    of_a = drawn[sources[drawn] == "a"]
    assert len(set(of_a[:50].tolist())) == min(50, len(of_a))  # still none before its source is used up
