"""What --explain and --dry-run show, against what the filter does."""

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.corpus import shard_writer
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.filter import preview as module
from conan_embedding.pipeline.filter.preview import Explanation, Finding, dry_run, explain
from conan_embedding.pipeline.filter.rules import RULES
from conan_embedding.pipeline.filter.stage import filter_pairs
from conan_embedding.schemas.errors import CorpusError, RecipeError
from conan_embedding.schemas.settings import FilterSettings

ONE = Engine(workers=1)
QUESTION = "北京的秋天为什么适合旅行？"
ANSWER = "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"


def finding(explanation: Explanation, rule: str) -> Finding:
    return next(finding for finding in explanation.findings if finding.rule == rule)


def dirty(pair, rows: int = 200) -> list:
    """Make rows, many of which break a rule or several."""
    texts = [ANSWER, "", "好", "烫" * 12 + ANSWER, ANSWER * 4, "hello world, this is it", "www.example.com", "1" * 30]
    kinds = [("web", "web_page"), ("paper", "academic_paper")]
    return [
        pair(
            f"{QUESTION}{number}" if number % 7 else "嗯", texts[number % len(texts)], source=source, category=category
        )
        for number in range(rows)
        for source, category in [kinds[number % 3 == 0]]
    ]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_explain_says_every_rules_value(tmp_path: Path, pair, write_shards) -> None:
    row = pair(QUESTION, ANSWER + "电话 13812345678。" + "烫" * 6, negatives=["a@example.com"])
    write_shards(tmp_path, "ingest", [pair(QUESTION, "其他")], [pair(QUESTION, ANSWER), row])
    before = snapshot(tmp_path)
    found = explain(tmp_path, row["pair_id"], FilterSettings())
    assert (found.reason, found.detail) == ("mojibake", f"{round(6 / len(found.pair['positive']), 4)} > 0.01")
    assert found.pair["positive"] == ANSWER + "电话 [手机号]。" + "烫" * 6  # as it is judged
    assert found.pair["negatives"] == ["[邮箱]"] and found.pair["pair_id"] == row["pair_id"]
    assert [one.rule for one in found.findings] == list(RULES)
    length = finding(found, "positive_length")
    assert length == Finding(
        "positive_length", "positive", "min", 2, float(len(found.pair["positive"])), "passes", "chosen here"
    )
    assert finding(found, "mojibake").verdict == "fails"
    title = finding(found, "title_limit")  # a question has no title
    assert (title.value, title.threshold, title.verdict) == (None, 512, "does not apply")
    assert asdict(found)["findings"][0]["rule"] == "empty_side"
    assert snapshot(tmp_path) == before


def test_explain_knows_the_thresholds_in_force(tmp_path: Path, pair, write_shards) -> None:
    rows = {source: pair(QUESTION, ANSWER, source=source) for source in ("lctt", "csl", "kdconv")}
    write_shards(tmp_path, "ingest", list(rows.values()))
    settings = FilterSettings(
        rules={"positive_length": 50},
        categories={"web_page": {"positive_length": 40}},
        sources={"csl": {"positive_length": 20}, "kdconv": {"positive_length": False}},
    )
    lctt, csl, kdconv = (
        finding(explain(tmp_path, row["pair_id"], settings), "positive_length") for row in rows.values()
    )
    assert (lctt.threshold, lctt.verdict, lctt.value) == (40, "fails", len(ANSWER))
    assert (csl.threshold, csl.verdict) == (20, "passes")
    assert (kdconv.threshold, kdconv.verdict, kdconv.value) == (None, "off", None)
    off = FilterSettings(rules=dict.fromkeys(RULES, False))
    found = explain(tmp_path, rows["lctt"]["pair_id"], off)
    assert found.reason is None and {one.verdict for one in found.findings} == {"off"}


def test_a_prefix_names_a_pair(tmp_path: Path, pair, write_shards) -> None:
    rows = [
        pair(QUESTION, ANSWER, pair_id=name + "0" * (32 - len(name))) for name in ("abcdef12", "abcdef13", "fedcba1")
    ]
    write_shards(tmp_path, "ingest", rows[:2], [rows[2], rows[2]])  # ingested twice, it is one pair
    settings = FilterSettings()
    assert explain(tmp_path, "fedcba", settings).pair["pair_id"] == rows[2]["pair_id"]
    assert explain(tmp_path, "ABCDEF13", settings).pair["pair_id"] == rows[1]["pair_id"]
    for name, message in (
        ("fedcb", "'fedcb' is too short: give 6 characters or more"),
        ("abcdef", rf"2 pair_ids begin with 'abcdef'; give more .*: {rows[0]['pair_id']}, {rows[1]['pair_id']}"),
        ("abcde.1", r"no pair_id begins with 'abcde\.1'"),
        ("000000", "no pair_id begins with '000000'"),
    ):
        with pytest.raises(CorpusError, match=message):
            explain(tmp_path, name, settings)
    with pytest.raises(CorpusError, match="run `conan ingest"):
        explain(tmp_path / "empty", "abcdef", settings)


def test_a_dry_run_of_all_rows_says_what_the_filter_does(tmp_path: Path, pair, write_shards) -> None:
    rows = dirty(pair)
    write_shards(tmp_path, "ingest", rows[:120], rows[120:], [])
    settings = FilterSettings(
        sources={"paper": {"han_ratio": False, "positive_length": 9}}, categories={"web_page": {"digit_ratio": 0.9}}
    )
    before = snapshot(tmp_path)
    found = dry_run(tmp_path, settings, sample=10_000)
    assert snapshot(tmp_path) == before
    summary = filter_pairs(tmp_path, settings, ONE)
    assert {losses.rule: losses.first for losses in found.rules if losses.first} == dict(summary.rejected)
    assert (found.corpus_rows, found.rows, found.kept) == (200, 200, summary.rows_out)
    assert found.kept + found.rejected == found.rows
    assert [losses.rule for losses in found.rules] == list(RULES)
    for losses in found.rules:
        assert losses.first <= losses.fails and losses.share == losses.first / 200
        assert len(losses.examples) == min(3, losses.first)
    short = next(losses for losses in found.rules if losses.rule == "query_length")
    assert short.fails == len([row for row in rows if row["query"] == "嗯"]) > short.first > 0
    assert {example.detail for example in short.examples} == {"1 < 2"}
    thrown = pl.concat(pl.read_parquet(shard) for shard in (tmp_path / "filter/rejected").glob("*.parquet"))
    known = {row["pair_id"]: row for row in thrown.iter_rows(named=True)}
    for losses in found.rules:
        for example in losses.examples:
            row = known[example.pair_id]
            assert (row["reason"], row["detail"], row["source"]) == (losses.rule, example.detail, example.source)
            assert row["query"].startswith(example.query) and row["positive"].startswith(example.positive)


def test_a_sample_is_drawn_in_proportion_and_again_the_same(
    tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "ROW_GROUP", 16)
    sizes = {"one": 130, "two": 7, "three": 263}
    shards = [
        [pair(f"{QUESTION}{number}", "好", source=source) for number in range(size)] for source, size in sizes.items()
    ]
    write_shards(tmp_path, "ingest", *shards)
    assert pq.read_metadata(tmp_path / "ingest" / "part-00002.parquet").num_row_groups == 17
    drawn = Counter()
    for seed in range(20):
        found = list(module._draw_sample(folders.shards(tmp_path, "ingest"), list(sizes.values()), 40, seed))
        again = list(module._draw_sample(folders.shards(tmp_path, "ingest"), list(sizes.values()), 40, seed))
        frame = pl.concat([one.with_columns(pl.col("source").cast(pl.String)) for one in found])
        assert frame.height == frame["pair_id"].n_unique() == 40
        assert [one["pair_id"].to_list() for one in found] == [one["pair_id"].to_list() for one in again]
        counts = Counter(frame["source"].to_list())
        assert abs(counts["one"] - 13) <= 1 and counts["two"] <= 1 and abs(counts["three"] - 26.3) <= 1.3
        drawn.update(frame["query"].to_list())
    assert drawn.total() == 800 and len(drawn) > 150  # another seed draws others
    first, second = (dry_run(tmp_path, FilterSettings(), 40, seed) for seed in (1, 2))
    assert first == dry_run(tmp_path, FilterSettings(), 40, 1) != second
    assert first.rejected == 40 and first.corpus_rows == 400


def test_every_row_is_as_likely(tmp_path: Path, pair, write_shards) -> None:
    rows = [pair(f"{QUESTION}{number}", ANSWER) for number in range(10)]
    write_shards(tmp_path, "ingest", rows[:4], rows[4:])
    found = folders.shards(tmp_path, "ingest")
    drawn = Counter(
        name
        for seed in range(400)
        for frame in module._draw_sample(found, [4, 6], 3, seed)
        for name in frame["pair_id"].to_list()
    )
    assert sorted(drawn) == sorted(row["pair_id"] for row in rows)
    expected = 400 * 3 / 10
    assert all(abs(count - expected) < 60 for count in drawn.values())


def test_places_in_parts() -> None:
    parts = module._split_places(np.array([0, 2, 3, 9]), [3, 0, 5, 2])
    assert [part.tolist() for part in parts] == [[0, 2], [], [0], [1]]


def test_only_the_row_groups_that_are_drawn_from_are_read(
    tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "ROW_GROUP", 10)
    write_shards(tmp_path, "ingest", [pair(f"{QUESTION}{number}", ANSWER) for number in range(100)])
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options):
        read.append(group)
        assert "negatives" not in options["columns"]
        return whole(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert dry_run(tmp_path, FilterSettings(), 3).rows == 3
    assert len(read) == 3 and set(read) < set(range(10))


def test_a_dry_run_masks_first_and_cuts_what_it_shows(tmp_path: Path, pair, write_shards) -> None:
    row = pair(QUESTION, "13812345678 " + "hello " * 60, source="one")
    write_shards(tmp_path, "ingest", [row])
    found = dry_run(tmp_path, FilterSettings(rules={"positive_limit": 100}), 10)
    [example] = next(losses.examples for losses in found.rules if losses.rule == "positive_limit")
    assert example.positive.startswith("[手机号] hello") and len(example.positive) == 100
    assert example.detail == f"{len('[手机号] ' + 'hello ' * 60)} > 100"


def test_lists_and_unknown_names(tmp_path: Path, pair, write_shards) -> None:
    (tmp_path / "words.txt").write_text("香山")
    row = pair(QUESTION, ANSWER)
    write_shards(tmp_path, "ingest", [row])
    settings = FilterSettings(blocked_words=str(tmp_path / "words.txt"))
    assert finding(explain(tmp_path, row["pair_id"], settings), "blocked_words").verdict == "fails"
    assert dry_run(tmp_path, settings, 5).rules[-1].first == 1
    for settings in (FilterSettings(sources={"wed": {"han_ratio": 1}}), FilterSettings(rules={"han_rato": 1})):
        with pytest.raises(RecipeError, match="did you mean"):
            explain(tmp_path, row["pair_id"], settings)
        with pytest.raises(RecipeError, match="did you mean"):
            dry_run(tmp_path, settings, 5)


def test_classifiers_are_explained_and_counted(
    tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """They also judge pairs that another rule rejects. The model is a stub; test_classifiers.py has real ones."""
    from conan_embedding.pipeline.filter import classifiers

    monkeypatch.setattr(
        classifiers, "predict", lambda texts, settings, weights: texts.str.contains("红叶").cast(pl.Float64)
    )
    monkeypatch.setattr(
        classifiers, "load_classifier", lambda *_: classifiers.Classifier(None, None, ("clean", "advert"), True)
    )
    rows = [pair(QUESTION, ANSWER), pair(QUESTION, "立即购买，全场包邮。"), pair(QUESTION, "好吃不贵")]
    write_shards(tmp_path, "ingest", rows)
    settings = FilterSettings.model_validate(
        {"classifiers": {"advert": {"model": os.fspath(tiny_model), "label": "clean"}}}
    )
    found = dry_run(tmp_path, settings, 10)
    advert = found.rules[-1]
    assert (advert.rule, advert.first, advert.fails) == ("advert", 1, 2)
    assert [example.detail for example in advert.examples] == ["0 < 0.5"]
    explained = [explain(tmp_path, row["pair_id"], settings) for row in rows]
    assert [one.reason for one in explained] == [None, "boilerplate", "advert"]
    assert [finding(one, "advert").value for one in explained] == [1, 0, 0]
