"""The mine stage against NumPy over all queries and passages."""

import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.corpus.pools import FILE, read_candidates
from conan_embedding.pipeline.encoder import encoder as encoders
from conan_embedding.pipeline.mine import search
from conan_embedding.pipeline.mine import stage as module
from conan_embedding.pipeline.mine.methods import METHODS
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.settings import MineSettings
from mined_pools import ONE, ORIGIN, brute_force, found, settings, vectors


@pytest.mark.parametrize("method", METHODS)
def test_pools_are_those_of_brute_force(
    method: str, tmp_path: Path, bge: Path, records, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = vectors(monkeypatch)
    for name, size in (("QUERIES", 50), ("PASSAGES", 40), ("TOGETHER", 7)):  # some blocks
        monkeypatch.setattr(search, name, size)
    write_shards(tmp_path, "convert/retrieval", records[::2], records[1::2], [])
    summary = mine(tmp_path, settings(bge, method=method), ONE)
    expected = brute_force(records, known, method, 8)
    pools, scores = found(tmp_path)
    assert pools == expected
    for query, texts in pools.items():
        assert np.allclose(scores[query], [known[query] @ known[text] for text in texts], atol=1e-6)
        assert scores[query] == sorted(scores[query], reverse=True)
    short = sum(len(texts) < 8 for texts in expected.values())
    assert summary.notes["short_pools"] == short
    assert (summary.rows_in, summary.notes["queries"]) == (190, 190)
    assert short > 0 if method == "topk-marginpos" else True


def test_a_deep_pool_is_found_below_everything_that_is_dropped(
    tmp_path: Path, bge: Path, records, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = vectors(monkeypatch)
    write_shards(tmp_path, "convert/retrieval", records)
    mine(tmp_path, settings(bge, method="topk-abs", margin=-0.2, top_k=3), ONE)
    pools, _ = found(tmp_path)
    texts = {text for record in records for text in record["positives"]}
    for query, pool in pools.items():
        assert len(pool) <= 3 and all(known[query] @ known[text] < -0.2 for text in pool)
        if len(pool) < 3:
            low = sum(known[query] @ known[text] < -0.2 for text in texts)
            assert low - len(pool) <= 12  # the rest are in its own clusters: at most three of four


def test_the_tables(tmp_path: Path, bge: Path, records, write_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    known = vectors(monkeypatch)
    write_shards(tmp_path, "convert/retrieval", records)
    mine(tmp_path, settings(bge), ONE)
    with duckdb.connect(str(tmp_path / FILE), read_only=True) as connection:
        run = connection.execute("SELECT method, margin, top_k, model_fingerprint, run_id FROM runs").fetchall()
        positives = connection.execute(
            "SELECT queries.text, passages.text, score FROM positives JOIN queries USING (query_id) "
            "JOIN passages USING (passage_id)"
        ).fetchall()
        clusters = dict(connection.execute("SELECT text, cluster_id FROM passages").fetchall())
        candidate_runs = connection.execute("SELECT DISTINCT run_id FROM candidates").fetchall()
    assert run[0][:4] == ("topk-percpos", 0.95, 8, module.weights_fingerprint(bge))
    assert candidate_runs == [(run[0][4],)]
    expected = {(record["query"], text) for record in records for text in record["positives"]}
    assert len(positives) == len(expected)
    assert {(query, text) for query, text, _ in positives} == expected
    assert all(abs(score - known[query] @ known[text]) < 1e-6 for query, text, score in positives)
    least: dict[str, int] = {}
    for record in records:
        for text, cluster in zip(record["positives"], record["cluster_ids"], strict=True):
            least[text] = min(cluster, least.get(text, cluster))
    assert clusters == least


def test_queries_and_passages_of_pretraining(tmp_path: Path, bge: Path, write_shards, monkeypatch) -> None:
    vectors(monkeypatch)
    tasks = {
        "convert/retrieval": [
            ORIGIN | {"pair_ids": ["r"], "query": "问", "positives": ["甲"], "cluster_ids": [1], "negatives": []}
        ],
        "convert/pretrain": [
            ORIGIN | {"pair_ids": [text], "query": f"题{text}", "positive": text, "cluster_id": cluster}
            for text, cluster in (("甲二", 1), ("乙", 2), ("丙", 3))
        ],
    }
    for folder, rows in tasks.items():
        write_shards(tmp_path, folder, rows)
    mine(tmp_path, settings(bge, method="topk", passages=["retrieval", "pretrain"]), ONE)
    pools, _ = found(tmp_path)
    assert {query: set(pool) for query, pool in pools.items()} == {"问": {"乙", "丙"}}
    mine(tmp_path, settings(bge, method="topk", passages=["retrieval"], queries=["pretrain"]), ONE)
    pools, _ = found(tmp_path)
    assert {query: set(pool) for query, pool in pools.items()} == {
        "题甲二": {"乙", "丙"},
        "题乙": {"甲", "甲二", "丙"},
        "题丙": {"甲", "甲二", "乙"},
    }


def test_passages_without_a_query_are_searched(tmp_path: Path, bge: Path, write_shards, monkeypatch) -> None:
    vectors(monkeypatch)
    asked = ORIGIN | {"pair_ids": ["r"], "query": "问", "positives": ["甲"], "cluster_ids": [1], "negatives": []}
    write_shards(tmp_path, "convert/retrieval", [asked])
    mine(tmp_path, settings(bge, method="topk"), ONE)
    assert found(tmp_path)[0] == {"问": []}
    alone = [("甲二", 1), ("甲", 1), ("乙", 2), ("丙", 3)]  # the first is a near-duplicate of the positive
    passages = [ORIGIN | {"pair_ids": [text], "text": text, "cluster_id": cluster} for text, cluster in alone]
    write_shards(tmp_path, "convert/passages", passages)
    mine(tmp_path, settings(bge, method="topk"), ONE)
    pools, _ = found(tmp_path)
    assert {query: set(pool) for query, pool in pools.items()} == {"问": {"乙", "丙"}}
    with duckdb.connect(str(tmp_path / FILE), read_only=True) as connection:
        run = connection.execute("SELECT passages, passages_from FROM runs").fetchall()
    assert run == [(4, ["passages", "retrieval"])]
    mine(tmp_path, settings(bge, method="topk", passages=["retrieval"]), ONE)
    assert found(tmp_path)[0] == {"问": []}


def test_an_index_by_name(tmp_path: Path, bge: Path, records, write_shards, monkeypatch) -> None:
    known = vectors(monkeypatch)
    write_shards(tmp_path, "convert/retrieval", records)
    monkeypatch.setattr(search, "APPROXIMATE_DEPTH", 1000)  # deeper than there are passages
    mine(tmp_path, settings(bge, index="Flat"), ONE)
    assert found(tmp_path)[0] == brute_force(records, known, "topk-percpos", 8)
    mine(tmp_path, settings(bge, index="IVF4,Flat", top_k=3), ONE)
    pools, _ = found(tmp_path)
    expected = brute_force(records, known, "topk-percpos", 1000)
    assert all(set(pool) <= set(expected[query]) for query, pool in pools.items())
    assert sum(map(len, pools.values())) > 300


def test_a_second_run_does_nothing(tmp_path: Path, bge: Path, records, write_shards, monkeypatch) -> None:
    def near(folder: Path, **more) -> MineSettings:
        return settings(folder, **{"method": "topk-abs", "margin": 2.0} | more)

    write_shards(tmp_path, "convert/retrieval", records)
    first = mine(tmp_path, near(bge), ONE)
    before = (tmp_path / FILE).stat().st_mtime_ns
    loaded = encoders.loaded
    monkeypatch.setattr(encoders, "loaded", lambda *_: pytest.fail("the model was loaded"))
    again = mine(tmp_path, near(bge, batch_tokens=64), ONE)
    assert (again.rows_in, again.notes) == (first.rows_in, first.notes)
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    moved = shutil.move(bge, tmp_path / "moved")
    mine(tmp_path, near(Path(moved)), ONE)
    assert (tmp_path / FILE).stat().st_mtime_ns == before

    monkeypatch.setattr(encoders, "loaded", loaded)
    pools = found(tmp_path)[1]
    mine(tmp_path, near(Path(moved), margin=-2), ONE)
    assert all(pools.values()) and not any(found(tmp_path)[1].values())
    write_shards(tmp_path, "convert/retrieval", records[:10])
    assert mine(tmp_path, near(Path(moved), margin=-2), ONE).rows_in == 10


def test_a_folder_with_a_quote_and_no_records(tmp_path: Path, bge: Path, records, write_shards) -> None:
    corpus = tmp_path / "it's a corpus"
    write_shards(corpus, "convert/retrieval", records[:5])
    assert mine(corpus, settings(bge), ONE).rows_in == 5
    write_shards(corpus, "convert/retrieval", [])
    assert mine(corpus, settings(bge), ONE).rows_in == 0
    assert read_candidates(corpus).is_empty()


def test_what_a_run_says_of_itself(tmp_path: Path, bge: Path, records, write_shards) -> None:
    write_shards(tmp_path, "convert/retrieval", records)
    mine(tmp_path, settings(bge, max_length=4, method="topk-shifted", margin=3), ONE)
    columns = "method, margin, top_k, index, queries_from, passages_from, queries, passages, truncated"
    (run,) = catalog.query(tmp_path, f"SELECT {columns} FROM pools.runs").to_pylist()
    texts = {text for row in records for text in row["positives"]}
    queries = {row["query"] for row in records}
    assert run == {
        "method": "topk-shifted",
        "margin": 3,
        "top_k": 8,
        "index": "Flat",
        "queries_from": ["retrieval"],
        "passages_from": ["retrieval"],
        "queries": len(queries),
        "passages": len(texts),
        "truncated": sum(len(text) > 2 for text in texts | queries),  # [CLS] and [SEP] are two of four
    }


@pytest.mark.parametrize("margin", [2.5, -1])
def test_ranks_are_whole(margin: float, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.margin: topk-shifted skips whole ranks"):
        mine(tmp_path, MineSettings(model="m", method="topk-shifted", margin=margin), ONE)


@pytest.mark.parametrize("method", METHODS)
def test_a_query_s_own_text_is_never_its_negative(method: str, tmp_path: Path, bge: Path, write_shards) -> None:
    """Neither as it is nor in other punctuation, as another's positive or as a passage without a query."""
    rows = [
        {"query": "怎样泡茶？", "positives": ["用八十度的水"], "cluster_ids": [1]},
        {"query": "泡茶", "positives": ["怎样泡茶？"], "cluster_ids": [2]},
        {"query": "水温", "positives": ["八十度"], "cluster_ids": [3]},
        {"query": "茶", "positives": ["叶"], "cluster_ids": [4]},
    ]
    records = [ORIGIN | {"pair_ids": [row["query"]], "negatives": []} | row for row in rows]
    write_shards(tmp_path, "convert/retrieval", records)
    alone = [("怎样泡茶", 5), ("泡茶的水", 6), ("泡茶的水温", 6)]
    passages = [ORIGIN | {"pair_ids": [text], "text": text, "cluster_id": cluster} for text, cluster in alone]
    write_shards(tmp_path, "convert/passages", passages)
    mine(tmp_path, settings(bge, method=method, margin={"topk-shifted": 0}.get(method, 2)), ONE)
    pool = found(tmp_path)[0]["怎样泡茶？"]
    assert not {"怎样泡茶？", "怎样泡茶", "用八十度的水"} & set(pool)
    if method in ("topk", "topk-shifted", "topk-abs"):
        assert set(pool) == {"八十度", "叶", "泡茶的水", "泡茶的水温"}


def test_an_index_is_checked_before_anything_is_encoded(
    tmp_path: Path, bge: Path, records, write_shards, monkeypatch
) -> None:
    write_shards(tmp_path, "convert/retrieval", records)
    monkeypatch.setattr(encoders, "encode", lambda *_: pytest.fail("texts were encoded"))
    for index, message in (("IVF4Flat", "could not parse"), ("PQ7", "32 dimensions"), ("IVF999,Flat", "999 lists")):
        with pytest.raises(RecipeError, match=rf"mine\.index: .*{message}"):
            mine(tmp_path, settings(bge, index=index), ONE)
