"""A small corpus cut out of a big one: the same pairs in every stage, against plain Python over all rows."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline import sample as cut_module
from conan_embedding.pipeline.convert.stage import convert
from conan_embedding.pipeline.corpus.catalog import query
from conan_embedding.pipeline.corpus.folder import HELD_OUT, committed, read_footer, rejects
from conan_embedding.pipeline.corpus.judgements import add, list_parts
from conan_embedding.pipeline.corpus.pools import read_candidates, read_passages, write_pools
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.mine.methods import ceiling_sql
from conan_embedding.pipeline.report.page import write_report
from conan_embedding.pipeline.sample import allotted, cut
from conan_embedding.pipeline.synthesize.stage import synthesize
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.pairs import CLUSTERED, PAIR, REJECTED_AT_INGEST, SCORED, rejected
from conan_embedding.schemas.recipe import Recipe

Row = dict[str, Any]

STAGES = {
    "ingest": (PAIR, REJECTED_AT_INGEST),
    "filter": (PAIR, rejected(PAIR)),
    "dedup": (CLUSTERED, rejected(PAIR)),
    "score": (SCORED, rejected(SCORED)),
    "evaluation": (PAIR, REJECTED_AT_INGEST),
}
KINDS = ["convert/pretrain", "convert/retrieval", "convert/sts"]
ONE = Engine(workers=1)
RECIPE = Recipe.model_validate({"convert": {"class_positives": 3}})


def write(corpus: Path, stage: str, shards: list[list[Row]], thrown: list[list[Row]]) -> None:
    for number, (rows, bad) in enumerate(zip(shards, thrown, strict=True)):
        schema, rejected_schema = STAGES[stage]
        path = corpus / stage / f"part-{number:05d}.parquet"
        with ShardWriter(
            path, schema, rejected_schema, stage=stage, version=1, fingerprint=f"{stage}{number}"
        ) as writer:
            writer.received(len(rows) + len(bad))
            writer.keep(pa.Table.from_pylist(rows, schema))
            writer.reject(pa.Table.from_pylist(bad, rejected_schema))


def make(corpus: Path, pair: Callable[..., Row], shards: int = 3, backwards: bool = False) -> None:
    """A finished corpus of six sources with the given number of shards, its rows in one order or the other."""
    rows = [pair(f"新闻{i}", f"正文{i}的内容", "news", format="title_content") for i in range(200)]
    rows += rows[:200:9]  # found twice
    rows += [pair(f"提问{i}", f"这是第{i}个回答。", "chat", format="prompt_response") for i in range(60)]
    rows += [pair(f"提问{i}", "好", "chat", format="prompt_response") for i in range(60, 70)]
    rows += [
        pair(f"考{i}", f"解{i}-{j}", "exam", "retrieval", negatives=[f"错{i}"]) for i in range(40) for j in range(3)
    ]
    rows += [pair(f"心情{i}", "喜怒哀"[i % 3], "mood", "classification", cluster_id=i % 3) for i in range(60)]
    rows += [pair(f"左{i}", f"右{i}", "sts", "sts", label=i / 30) for i in range(30)]
    rows += [pair("独", "一条", "tiny", format="input_output")]
    if backwards:
        rows.reverse()
    bad = [
        {"source": source, "format": "title_content", "file": "f", "line": line, "record": f"{line}"}
        | {"reason": reason, "detail": ""}
        for source, reason, count in (("news", "no_query", 40), ("news", "json", 1), ("chat", "json", 9))
        for line in range(count)
    ]

    def divided(rows: list[Row]) -> list[list[Row]]:
        size = -(-len(rows) // shards)
        return [rows[start : start + size] for start in range(0, size * shards, size)]

    write(corpus, "ingest", divided(rows), divided(bad))
    for stage in ("filter", "dedup", "score"):
        seen: set[str] = set()
        kept, thrown = [], []
        for row in rows:
            number = int(row["pair_id"], 16)
            gone = {
                "filter": number % 7 == 0,
                "dedup": row["pair_id"] in seen,
                "score": row["task"] == "pretrain" and number % 5 == 0,
            }[stage]
            seen.add(row["pair_id"])
            (thrown if gone else kept).append(row | ({"reason": stage, "detail": "d"} if gone else {}))
        write(corpus, stage, divided(kept), divided(thrown))
        rows = kept
    convert(corpus, RECIPE, ONE)
    save_recipe(corpus, RECIPE)
    write_made_pools(corpus)
    sets = [
        [pair(f"试{i}", f"答{i}", "test", "retrieval") for i in range(50)]
        + [pair("", f"草{i}", "test", "passage") for i in range(150)],
        [pair(f"甲{i}", f"乙{i}", "small", "sts", label=0.5) for i in range(5)],
    ]
    write(corpus, "evaluation", sets, [[], []])


_MADE: list[Path] = []


@pytest.fixture
def mined_corpus(tmp_path: Path, pair: Callable[..., Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished corpus, of this test alone; made once."""
    if not _MADE:
        _MADE.append(tmp_path_factory.mktemp("made") / "corpus")
        make(_MADE[0], pair)
    return Path(shutil.copytree(_MADE[0], tmp_path / "corpus"))


def write_made_pools(corpus: Path) -> None:
    """For every query of convert some random passages; one query has none."""
    random = Random(0)
    queries = sorted(
        set(all_rows(corpus, "convert/retrieval")["query"]) | set(all_rows(corpus, "convert/pretrain")["query"])
    )
    passages = [f"段{i}" for i in range(3000)]
    pools = [random.sample(range(3000), number % 5) for number in range(len(queries))]
    ids = list(range(len(queries)))
    run = {"run_id": "r", "model_fingerprint": "m", "method": "topk", "margin": 1.0, "top_k": 4, "fingerprint": "f"}
    tables = {
        "runs": pa.Table.from_pylist([run | {"created_at": np.datetime64("2025-01-01", "us").item()}]),
        "passages": pa.table({"passage_id": range(3000), "text": passages, "cluster_id": [7 * i for i in range(3000)]}),
        "queries": pa.table({"query_id": ids, "text": queries}),
        "positives": pa.table(
            {"query_id": ids, "passage_id": [2999 - i for i in ids], "score": [0.25 * (i % 4) for i in ids]}
        ),
        "candidates": pa.table(
            {
                "query_id": ids,
                "run_id": ["r"] * len(ids),
                "passage_ids": pa.array(pools, pa.list_(pa.int64())),
                "scores": pa.array([[i / 8 for i in range(len(pool))] for pool in pools], pa.list_(pa.float32())),
            }
        ),
    }
    write_pools(corpus, tables, ceiling_sql())


def all_rows(corpus: Path, folder: str, thrown: bool = False) -> pl.DataFrame:
    """Every row of a folder, or of its rejects."""
    files = [rejects(shard) if thrown else shard for shard in committed(corpus, folder)]
    frame = pl.concat([pl.read_parquet(file) for file in files])
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def same(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    def rows(frame: pl.DataFrame) -> list[str]:
        return sorted(map(repr, frame.rows()))

    return rows(left) == rows(right)


def test_every_stage_holds_the_same_pairs(mined_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summaries = {summary.stage: summary for summary in cut(mined_corpus, out, 100)}
    taken = all_rows(out, "ingest")["pair_id"]
    assert 100 <= len(taken) < 110  # the last pair of a stratum may have a copy
    rows_in = None
    for stage in ("ingest", "filter", "dedup", "score"):
        for thrown in (False, True):
            found, whole = all_rows(out, stage, thrown), all_rows(mined_corpus, stage, thrown)
            if (stage, thrown) != ("ingest", True):
                assert same(found, whole.filter(pl.col("pair_id").is_in(taken.implode())))
                assert found.height > 0
        footers = [read_footer(shard) for shard in committed(out, stage)]
        assert all(footer.stage == stage and footer.rows_in > 0 for footer in footers)
        assert rows_in in (None, sum(footer.rows_in for footer in footers))
        rows_in = sum(footer.rows_out for footer in footers)
        assert summaries[stage].rows_out == rows_in == all_rows(out, stage).height
    assert rows_in == sum(summaries[kind].rows_in for kind in KINDS)
    assert (out / "recipe.yaml").read_bytes() == (mined_corpus / "recipe.yaml").read_bytes()
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus", "out"]


def test_every_source_and_format_has_its_share(mined_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut(mined_corpus, out, 100)
    counts = [
        Counter(all_rows(place, "ingest").select("source", "format").iter_rows()) for place in (mined_corpus, out)
    ]
    expected = dict(
        zip(sorted(counts[0]), allotted(np.array([counts[0][name] for name in sorted(counts[0])]), 100), strict=True)
    )
    assert counts[1].keys() == counts[0].keys() and counts[1]["tiny", "input_output"] == 1
    for stratum, share in expected.items():
        assert share <= counts[1][stratum] <= share + (stratum[0] == "news")
    bad = Counter(all_rows(out, "ingest", thrown=True).select("source", "reason").iter_rows())
    assert bad.keys() == {("news", "no_query"), ("news", "json"), ("chat", "json")}
    assert sum(bad.values()) == round(50 * 100 / sum(counts[0].values()))


def test_records_are_of_their_pairs_that_are_there(mined_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut(mined_corpus, out, 100)
    taken = set(all_rows(out, "score")["pair_id"])
    for kind in KINDS:
        expected = []
        for record in all_rows(mined_corpus, kind).to_dicts():
            places = [place for place, one in enumerate(record["pair_ids"]) if one in taken]
            if record["source"] == "exam":
                for name in ("positives", "cluster_ids"):
                    record[name] = [record[name][place] for place in places]
            record["pair_ids"] = [record["pair_ids"][place] for place in places]
            expected += [record] if places else []
        assert same(all_rows(out, kind), pl.DataFrame(expected, all_rows(mined_corpus, kind).schema))
        whole = all_rows(mined_corpus, kind, thrown=True)
        assert same(all_rows(out, kind, thrown=True), whole.filter(pl.col("pair_id").is_in(list(taken))))
    exam = all_rows(out, "convert/retrieval").filter(source="exam")["pair_ids"].list.len()
    assert {1} < set(exam)  # some whole, some in part
    mood = all_rows(out, "convert/retrieval").filter(source="mood")
    assert set(mood["positives"].list.len()) == {3} and set(mood["pair_ids"].list.len()) == {1}


def pools(corpus: Path) -> dict[str, tuple[list[tuple[str, int]], list[float], list[tuple[str, float]]]]:
    """List each query's candidates (text, cluster) with their scores, and its positives with theirs."""
    found = read_candidates(corpus)
    ids = np.arange(3000)
    texts = {row[0]: row[1:] for row in read_passages(corpus, ids).rows()}
    with duckdb.connect(str(corpus / "pools.duckdb"), read_only=True) as connection:
        positives = connection.execute("SELECT query_id, passage_id, score FROM positives").fetchall()
    return {
        text: ([texts[one] for one in pool], scores, [(texts[p][0], s) for q, p, s in positives if q == number])
        for number, text, pool, scores in found.select("query_id", "query", "passage_ids", "scores").iter_rows()
    }


def test_pools_are_those_of_the_records(mined_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = cut(mined_corpus, out, 100)[-1]
    asked = {text for kind in KINDS[:2] for text in all_rows(out, kind)["query"]}
    before, after = pools(mined_corpus), pools(out)
    assert after == {text: pool for text, pool in before.items() if text in asked}
    named = {text for pool, _, positives in after.values() for text, _ in [*pool, *positives]}
    passages = read_passages(out, np.arange(3000))
    assert passages["passage_id"].to_list() == list(range(len(named)))
    assert set(passages["text"]) == named
    assert (summary.stage, summary.rows_out, summary.notes) == ("pools", len(asked), {"passages": len(named)})


def test_judgements_of_the_records_are_taken_over(mined_corpus: Path, tmp_path: Path) -> None:
    """Also that write_pools, and so mine, fills the view from what the store has."""
    before = pools(mined_corpus)
    judged = {(text, passage): place for place, (text, pool) in enumerate(before.items()) for (passage, _) in pool[0]}
    columns = ("query", "passage", "score")
    rows = [(query, passage, score) for (query, passage), score in judged.items()] + [("其他", "别", 0.5)]
    add(mined_corpus, "file-1", pl.DataFrame(rows, columns, orient="row"))
    for name in ("a", "b"):
        cut(mined_corpus, tmp_path / name, 100)
    asked = pools(tmp_path / "a").keys()
    found = query(
        tmp_path / "a",
        "SELECT q.text, p.text, score, judge FROM pools.judgements JOIN pools.queries q USING (query_id) "
        "JOIN pools.passages p USING (passage_id)",
    )
    expected = [(query, passage, score, "file-1") for (query, passage), score in judged.items() if query in asked]
    assert sorted(map(tuple, map(dict.values, found.to_pylist()))) == sorted(expected) != []
    stored = [[(part.name, pl.read_parquet(part).rows()) for part in list_parts(tmp_path / name)] for name in "ab"]
    assert stored[0] == stored[1] and len(stored[0][0][1]) == len(expected)


def content(corpus: Path) -> Iterator[list[str]]:
    for stage in [*STAGES, *KINDS]:
        for thrown in (False, True):
            yield sorted(map(repr, all_rows(corpus, stage, thrown).rows()))


def test_shards_decide_nothing_but_the_seed_does(mined_corpus: Path, tmp_path: Path, pair: Callable[..., Row]) -> None:
    make(tmp_path / "one", pair, shards=1, backwards=True)
    places = [tmp_path / name for name in "abcd"]
    for place, source, seed in zip(
        places, [mined_corpus, mined_corpus, tmp_path / "one", mined_corpus], [0, 0, 0, 1], strict=True
    ):
        cut(source, place, 60, seed)
    first, again, repacked, other = places
    for stage in STAGES:
        for left, right in zip(committed(first, stage), committed(again, stage), strict=True):
            assert left.name == right.name and read_footer(left).content == read_footer(right).content
    for stage in ("ingest", "filter", "score", "evaluation"):
        assert same(all_rows(first, stage), all_rows(repacked, stage))
        assert same(all_rows(first, stage, thrown=True), all_rows(repacked, stage, thrown=True))
    assert not same(all_rows(first, "ingest"), all_rows(other, "ingest"))


def test_a_corpus_smaller_than_the_sample_is_whole(mined_corpus: Path, tmp_path: Path) -> None:
    cut(mined_corpus, tmp_path / "out", 100_000)
    assert list(content(tmp_path / "out")) == list(content(mined_corpus))


def test_more_strata_than_rows(mined_corpus: Path, tmp_path: Path) -> None:
    cut(mined_corpus, tmp_path / "out", 1)
    assert set(Counter(all_rows(tmp_path / "out", "ingest")["source"])) == {
        "news",
        "chat",
        "exam",
        "mood",
        "sts",
        "tiny",
    }


def test_evaluation_sets_keep_questions_and_their_haystack(mined_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut(mined_corpus, out, 20)
    names = [all_rows(out, "evaluation").filter(source=source) for source in ("test", "small")]
    only = names[0]["task"] == "passage"
    assert (len(only), only.sum(), names[1].height) == (20, 15, 5)
    assert [read_footer(shard).stage for shard in committed(out, "evaluation")] == ["evaluation"] * 2


def test_held_out_questions_are_cut_as_evaluation_sets_are(mined_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(mined_corpus / "evaluation", mined_corpus / "holdout")
    (mined_corpus / HELD_OUT).parent.mkdir()
    (mined_corpus / HELD_OUT).write_text("the list of questions")
    out = tmp_path / "out"
    cut(mined_corpus, out, 20)
    assert same(all_rows(out, "holdout"), all_rows(out, "evaluation"))
    assert (out / HELD_OUT).read_text() == "the list of questions"


def test_later_stages_run_on_it(mined_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut(mined_corpus, out, 150)
    funnel = query(out, "SELECT stage, CAST(sum(rows) AS BIGINT) AS rows FROM funnel GROUP BY stage").to_pylist()
    assert {row["stage"]: row["rows"] for row in funnel}["score"] == all_rows(out, "score").height
    assert query(out, "SELECT count(*) AS rows FROM pools.candidates").to_pylist() != [{"rows": 0}]
    assert write_report([out], out / "report.html").stat().st_size > 1000
    kept = all_rows(out, "filter").height
    summary = dedup(out, RECIPE, ONE)
    assert (summary.rows_in, summary.skipped) == (kept, 0)
    assert convert(out, RECIPE, ONE).rows_in == all_rows(out, "score").height


def test_a_sample_asks_no_language_model(mined_corpus: Path, tmp_path: Path) -> None:
    """The stage ends by reading the sources, which would make the sample the whole corpus."""
    cut(mined_corpus, tmp_path / "out", 150)
    with pytest.raises(CorpusError, match="out is a sample"):
        synthesize(tmp_path / "out", RECIPE, ONE)


def test_stages_that_are_not_there_are_left_out(mined_corpus: Path, tmp_path: Path) -> None:
    for folder in ("convert", "score", "evaluation"):
        (mined_corpus / folder).rename(tmp_path / folder)
    assert [summary.stage for summary in cut(mined_corpus, tmp_path / "out", 50)] == ["ingest", "filter", "dedup"]
    assert not (tmp_path / "out" / "pools.duckdb").exists()  # nothing asks for them


def test_what_can_not_be_cut_is_said(mined_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="already exists"):
        cut(mined_corpus, out, 10)
    (out / "notes.txt").unlink()
    with pytest.raises(ValueError, match="1 or more"):
        cut(mined_corpus, out, 0)
    with pytest.raises(CorpusError, match="conan ingest"):
        cut(tmp_path / "nowhere", out, 10)
    (mined_corpus / "dedup" / ".incomplete").touch()
    with pytest.raises(CorpusError, match="interrupted"):
        cut(mined_corpus, out, 10)
    (mined_corpus / "dedup" / ".incomplete").unlink()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(cut_module, "write_pools", full)
    with pytest.raises(OSError, match="disk full"):
        cut(mined_corpus, out, 10)
    assert list(out.iterdir()) == []
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus", "out"]
    monkeypatch.undo()
    (tmp_path / ".out.1.tmp" / "ingest").mkdir(parents=True)  # a killed run's
    cut(mined_corpus, out, 10)  # an empty folder may be there
    assert committed(out, "ingest")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus", "out"]
