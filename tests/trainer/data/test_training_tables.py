"""Training data are the records and pools of a corpus, joined by query."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.trainer.data import training_tables
from conan_embedding.trainer.data.training_tables import (
    PairData,
    count_pairs,
    count_queries,
    count_sentences,
    provided_counts,
)
from training_data import Read, Shards, column


def test_pairs_of_any_stage_are_read(tmp_path: Path, pairs_of: Callable[..., PairData]) -> None:
    tasks = ["retrieval", "sts", "pretrain", "classification", "passage"]
    columns = {"query": ["甲", "乙", "丙", "丁", ""], "positive": list("abcde"), "source": ["y", "y", "x", "x", "x"]}
    columns["category"] = ["news", "news", "web_page", "web_page", "web_page"]
    early = pl.DataFrame({**columns, "task": tasks}).with_columns(pl.col("task", "source").cast(pl.Categorical))
    early.write_parquet(tmp_path / "filter.parquet")
    early.with_columns(cluster_id=pl.Series([4, 5, 6, 7, 8])).write_parquet(tmp_path / "dedup.parquet")
    late = early.head(4).drop("task").with_columns(cluster_id=pl.Series([1, 1, 2, 3]), pair_ids=pl.lit(["p"]))
    late.write_parquet(tmp_path / "convert.parquet")

    of_filter = pairs_of(tmp_path / "filter.parquet")
    assert column(of_filter.pairs, "query") == ["甲", "丙"]
    assert column(of_filter.pairs, "positive") == ["a", "c"]
    assert column(of_filter.pairs, "cluster_id") == [-1, -1]
    sources = of_filter.sources
    assert (sources.names, sources.categories, sources.sizes) == (["x", "y"], ["web_page", "news"], [1, 1])
    assert sources.rows.tolist() == [1, 0]
    assert column(pairs_of(tmp_path / "dedup.parquet").pairs, "cluster_id") == [4, 6]
    of_convert = pairs_of(tmp_path / "convert.parquet", tmp_path / "convert.parquet")
    assert column(of_convert.pairs, "query") == ["甲", "乙", "丙", "丁"] * 2
    assert column(of_convert.pairs, "cluster_id") == [1, 1, 2, 3] * 2
    assert of_convert.sources.rows.tolist() == [2, 3, 6, 7, 0, 1, 4, 5]
    assert count_pairs([tmp_path / "filter.parquet"]) == 2
    assert count_pairs([tmp_path / "convert.parquet"]) == 4

    early.filter(pl.col("task").cast(pl.String) != "retrieval").tail(2).write_parquet(tmp_path / "none.parquet")
    with pytest.raises(CorpusError, match="no pairs"):
        pairs_of(tmp_path / "none.parquet")


@pytest.mark.parametrize("window", [7, 100_000])
def test_records_meet_their_pools(
    shared_training_corpus: Path, shards: Shards, read: Read, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(training_tables, "WINDOW", window)
    data = read(shared_training_corpus, "retrieval")
    records = pl.concat([pl.read_parquet(shard) for shard in shards(shared_training_corpus, "retrieval")])
    assert column(data.queries, "query") == records["query"].to_list()  # numbered in this order
    assert data.query_ids.tolist() == list(range(40))
    assert column(data.queries, "positives") == records["positives"].to_list()
    assert column(data.queries, "clusters") == [[[one] for one in each] for each in records["cluster_ids"].to_list()]
    assert column(data.queries, "provided") == records["negatives"].to_list()
    assert provided_counts(data).tolist() == [2 if i % 5 == 0 else 0 for i in range(40)]
    assert data.sources.rows.tolist() == list(range(40))
    assert (data.sources.names, data.sources.categories) == (["big", "small"], ["news", "news"])
    assert data.sources.sizes == [30, 10]
    assert (data.sentence_sources.names, data.sentence_sources.categories) == (["sts"], ["news"])
    assert data.pool_sizes.tolist() == [len(pool) for pool in column(data.queries, "pool")] == list(range(40))
    assert len(data.passages) == 160
    scored = pl.read_parquet(shards(shared_training_corpus, "sts")[0])
    for name in ("text_a", "text_b", "label"):
        assert column(data.sentences, name) == scored[name].to_list()
    assert count_queries(shared_training_corpus, {"retrieval": shards(shared_training_corpus, "retrieval")}) == 40
    assert count_sentences(shards(shared_training_corpus, "sts")) == 30


def test_records_of_one_query_become_one(tmp_path: Path, write: Any, read: Read) -> None:
    first = {"source": "b", "query": "问", "positives": ["一", "二"], "cluster_ids": [1, 2], "negatives": ["坏", "三"]}
    second = {"source": "a", "query": "问", "positives": ["三"], "cluster_ids": [3], "negatives": ["差", "坏", "一"]}
    write.shard(tmp_path, "retrieval", [first])
    write.shard(tmp_path, "retrieval", [second], number=1)
    write.shard(tmp_path, "pretrain", [{"source": "c", "query": "问", "positive": "四", "cluster_id": 4}])
    write.mined(tmp_path, {0: ("五", 5)}, {"问": [0]})
    data = read(tmp_path, "retrieval", "pretrain")
    assert column(data.queries, "query") == ["问"]
    assert column(data.queries, "positives") == [["三", "一", "二", "四"]]  # by source
    assert column(data.queries, "clusters") == [[[3], [1], [2], [4]]]
    # Each once, in this order, without texts that are a positive in another record.
    assert column(data.queries, "provided") == [["差", "坏"]]
    assert (data.sources.names, data.sources.sizes) == (["a"], [1])
    assert len(data.sentences) == 0


def test_pairs_alone_may_serve_as_retrieval(tmp_path: Path, write: Any, read: Read) -> None:
    write.shard(tmp_path, "pretrain", [{"source": "c", "query": "问", "positive": "四", "cluster_id": 4}])
    write.mined(tmp_path, {0: ("五", 5)}, {"问": [0]})
    data = read(tmp_path, "pretrain")
    assert column(data.queries, "positives") == [["四"]]
    assert column(data.queries, "provided") == [[]]


def test_what_pools_lack_is_said(training_corpus: Path, write: Any, read: Read) -> None:
    pair = {"source": "c", "query": "没有挖过", "positive": "四", "cluster_id": 4}
    write.shard(training_corpus, "pretrain", [pair])
    with pytest.raises(CorpusError, match=r"1 of 41 queries have no pool.*mine"):
        read(training_corpus, "retrieval", "pretrain")
    queries = column(read(training_corpus, "retrieval").queries, "query")
    write.mined(training_corpus, {1: ("五", 5), 2: ("六", 6)}, {query: [] for query in queries})
    with pytest.raises(CorpusError, match="numbered from 0"):
        read(training_corpus, "retrieval")
    write.shard(training_corpus, "retrieval", [])
    write.shard(training_corpus, "retrieval", [], number=1)
    with pytest.raises(CorpusError, match="no queries"):
        read(training_corpus, "retrieval")


def test_pools_of_earlier_versions_are_mined_again(training_corpus: Path, read: Read) -> None:
    with duckdb.connect(str(training_corpus / "pools.duckdb")) as pools:
        pools.execute("DROP TABLE decisions")
    with pytest.raises(CorpusError, match=r"is of an earlier version; run `conan mine"):
        read(training_corpus, "retrieval")
