"""The catalog's views, on an empty corpus and after each stage of the sample."""

from pathlib import Path

import duckdb
import polars as pl
import pytest
from conan_embedding.pipeline.convert.stage import convert
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.corpus.folder import FOLDERS, committed, read_footer
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.filter.stage import filter_pairs
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.pipeline.score.stage import score
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import FilterSettings, MineSettings, ScoreSettings

ONE = Engine(workers=1)
KINDS = ["pretrain", "retrieval", "sts"]
VIEWS = ["ingest", "filter", "dedup", "score", "convert", *KINDS, "rejected", "funnel", "rules", "runs"]
QUESTION = "北京的秋天为什么适合旅行？"
ANSWER = "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"


def rows(corpus: Path, sql: str) -> list[tuple]:
    return pl.from_arrow(catalog.query(corpus, sql)).rows()


def check(corpus: Path) -> None:
    """Check that every view can be read, and that counts agree with the footers."""
    with duckdb.connect(str(catalog.rebuild(corpus)), read_only=True) as connection:
        found = {view: connection.sql(f"FROM {view}").pl() for view in VIEWS}
    footers = [(folder, read_footer(shard)) for folder in FOLDERS for shard in committed(corpus, folder)]
    by_stage: dict[str, list] = {}
    for folder, footer in footers:
        by_stage.setdefault(folder.partition("/")[0], []).append(footer)
    kept = {stage: sum(footer.rows_out for footer in group) for stage, group in by_stage.items()}
    gone = {stage: sum(sum(footer.rejected.values()) for footer in group) for stage, group in by_stage.items()}
    thrown = {stage: count for stage, count in gone.items() if count}
    assert dict(found["funnel"].group_by("stage").agg(pl.col("rows").sum()).iter_rows()) == kept
    assert dict(found["rejected"].group_by("stage").len().iter_rows()) == thrown
    assert dict(found["rules"].group_by("stage").agg(pl.col("rows").sum()).iter_rows()) == thrown
    told = found["runs"].sort("folder", "shard").select("folder", "fingerprint", "rows_in", "rows_out", "seconds")
    assert told.rows() == [
        (folder, footer.fingerprint, footer.rows_in, footer.rows_out, footer.seconds)
        for folder, footer in sorted(footers, key=lambda each: each[0])
    ]


def test_an_empty_corpus(tmp_path: Path) -> None:
    check(tmp_path)
    for view in VIEWS:
        assert catalog.query(tmp_path, f"FROM {view}").num_rows == 0
    typed = dict(rows(tmp_path, "SELECT column_name, column_type FROM (DESCRIBE score)"))
    assert typed["negatives"] == "VARCHAR[]" and typed["score"] == "FLOAT" and typed["cluster_id"] == "BIGINT"


@pytest.fixture
def ingested_corpus(tmp_path: Path, pair, write_shards) -> Path:
    """Pairs of all tasks, some of which each stage rejects; the folder's name has a quote."""
    corpus = tmp_path / "it's a corpus"
    unlike = ["海边的城市冬天温暖", "山里的茶叶春天采收", "草原上的马群秋天迁徙", "河流在夏季常常泛滥"]
    pairs = [pair(f"{text}，这是为什么呢？", f"{text}，{ANSWER}") for text in unlike]
    pairs += [pair(QUESTION, ANSWER), pair(QUESTION, ANSWER + "！"), pair("嗯", ANSWER), pair(QUESTION, "")]
    pairs.append(pair("你喜欢旅行吗？", "作为一个AI语言模型，我没有旅行过，也没有喜好。", format="prompt_response"))
    labels = zip(unlike, [0, 1, 1, 3], strict=True)
    labelled = [pair(text, unlike[0], "sts", "sts", label=label) for text, label in labels]
    labelled += [pair(f"{text}吗", ANSWER, "exam", "retrieval", category="news") for text in unlike]
    labelled += [pair(text, "热冷"[place % 2], "topics", "classification") for place, text in enumerate(unlike)]
    labelled.append(pair(QUESTION, "独", "topics", "classification"))
    write_shards(corpus, "ingest", pairs, labelled)
    return corpus


def test_after_each_stage(ingested_corpus: Path, bge: Path) -> None:
    recipe = Recipe()
    model = {"model": str(bge), "max_length": 32}
    stages = [
        lambda: filter_pairs(ingested_corpus, FilterSettings(), ONE),
        lambda: dedup(ingested_corpus, recipe, ONE),
        lambda: score(ingested_corpus, ScoreSettings(cutoff=0.995, **model), ONE),
        lambda: score(ingested_corpus, ScoreSettings(cutoff=-1, **model), ONE),
        lambda: convert(ingested_corpus, recipe, ONE),
        lambda: mine(ingested_corpus, MineSettings(method="topk", **model), ONE),
    ]
    check(ingested_corpus)
    for stage in stages:
        stage()
        check(ingested_corpus)
    assert {stage for (stage,) in rows(ingested_corpus, "SELECT DISTINCT stage FROM rejected")} == {
        "filter",
        "dedup",
        "convert",
    }
    reasons = dict(rows(ingested_corpus, "SELECT reason, sum(rows)::BIGINT FROM rules GROUP BY 1"))
    assert reasons.keys() == {
        "query_length", "empty_side", "exact_duplicate", "refusal", "label_range", "lonely_class"
    }  # fmt: skip
    tasks = dict(rows(ingested_corpus, "SELECT task, count(*) FROM convert GROUP BY 1"))
    assert tasks == {"pretrain": 5, "retrieval": 8, "sts": 3}
    joined = rows(ingested_corpus, "SELECT len(passage_ids) FROM pools.candidates JOIN pools.queries USING (query_id)")
    assert len(joined) == 8


def test_the_funnel_counts_pairs_and_bytes(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "dedup", [pair("甲", "乙丙"), pair("丁", "a"), pair("x", "y", "b")])
    origin = {"source": "exam", "category": "news"}
    record = origin | {"query": "甲", "positives": ["乙", "cd"], "cluster_ids": [1, 2], "negatives": ["丙"]}
    write_shards(tmp_path, "convert/retrieval", [record | {"pair_ids": ["1", "2", "3"]}])
    write_shards(tmp_path, "convert/sts", [origin | {"pair_ids": ["4"], "text_a": "甲", "text_b": "b", "label": 0.5}])
    assert rows(tmp_path, "FROM funnel") == [
        ("dedup", "b", "web_page", 1, 2),
        ("dedup", "web", "web_page", 2, 3 * 4 + 1),
        ("convert", "exam", "news", 4, 3 + 3 + 2 + 3 + 1),
    ]


def test_the_catalog_is_made_anew(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair("甲", "乙")])
    (tmp_path / f".{catalog.FILE}.1.tmp").write_bytes(b"of a run that was killed")
    place = catalog.rebuild(tmp_path)
    with duckdb.connect(str(place), read_only=True) as connection:
        assert connection.execute("SELECT query FROM filter").fetchall() == [("甲",)]
    place.write_bytes(b"not a database")
    write_shards(tmp_path, "filter", [pair("丙", "丁")], [pair("戊", "己")])
    assert rows(tmp_path, "SELECT query FROM filter ORDER BY ALL") == [("丙",), ("戊",)]
    with duckdb.connect(str(catalog.rebuild(tmp_path)), read_only=True) as connection:
        assert connection.execute("SELECT query FROM filter ORDER BY ALL").fetchall() == [("丙",), ("戊",)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [catalog.FILE, "filter"]


def test_folders_that_look_like_columns_are_none(tmp_path: Path, pair, write_shards) -> None:
    """Folders named as Hive partitions are."""
    write_shards(tmp_path / "source=abc" / "lang=zh", "filter", [pair("甲", "乙")])
    with duckdb.connect(str(catalog.rebuild(tmp_path / "source=abc" / "lang=zh")), read_only=True) as connection:
        found = connection.execute("FROM filter")
        columns = [name for name, *_ in found.description]
        assert "lang" not in columns
        assert dict(zip(columns, found.fetchone(), strict=True))["source"] == "web"


def test_relative_paths(tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, "filter", [pair("甲", "乙")])
    monkeypatch.chdir(tmp_path)
    place = catalog.rebuild(Path())
    monkeypatch.chdir("/")
    with duckdb.connect(str(tmp_path / place), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM filter").fetchone() == (1,)


@pytest.mark.parametrize("sql", ["SELEC 1", "FROM nowhere", "SELECT no_column FROM ingest", "CREATE TABLE t (i INT)"])
def test_broken_sql(sql: str, tmp_path: Path) -> None:
    with pytest.raises(catalog.QueryError):
        catalog.query(tmp_path, sql)


def test_statements_without_a_result(tmp_path: Path) -> None:
    assert catalog.query(tmp_path, "SET threads = 1").num_rows == 0
    assert catalog.query(tmp_path, "").num_columns == 0


def test_a_broken_shard_is_named(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair("甲", "乙")])
    (tmp_path / "filter" / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=r"part-00001\.parquet: not a Conan shard"):
        catalog.query(tmp_path, "FROM filter")
