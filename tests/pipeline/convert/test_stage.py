"""The convert stage: what each task becomes, and that every pair is accounted for."""

from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest
from conan_embedding.pipeline.convert.stage import convert
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import Recipe

ONE = Engine(workers=1)
PROMPT, RESPONSE = "怎样做番茄炒蛋？", "先把鸡蛋打散炒熟，再放番茄，最后加盐。"


def recipe(**settings) -> Recipe:
    ranges = [{"name": "five", "files": "x", "read": "csv", "task": "sts", "label": "s", "label_range": [-1, 4]}]
    return Recipe.model_validate({"sources": ranges, "convert": settings})


def accounted(read, corpus: Path, kind: str) -> list[str]:
    """List the pairs that made records."""
    return sorted(read(corpus, f"convert/{kind}")["pair_ids"].explode(empty_as_null=False).to_list())


def test_only_responses_are_judged(tmp_path: Path, pair, write_shards, read) -> None:
    refusal = "作为一个AI语言模型，我没有做过菜。"
    rows = [
        pair(PROMPT, refusal, format="prompt_response"),
        pair(PROMPT, refusal, format="question_answer", source="forum"),
        pair(PROMPT, RESPONSE, format="prompt_response"),
    ]
    write_shards(tmp_path, "score", rows)
    summary = convert(tmp_path, recipe(), ONE)
    assert (summary.rows_in, summary.rows_out, summary.rejected) == (3, 2, {"refusal": 1})
    records = {record["pair_ids"][0]: record for record in read(tmp_path, "convert/pretrain").to_dicts()}
    assert records.keys() == {rows[1]["pair_id"], rows[2]["pair_id"]}
    for row in rows[1:]:
        for column in ("query", "positive", "cluster_id", "source", "category"):
            assert records[row["pair_id"]][column] == row[column]
    [thrown] = read(tmp_path, "convert/pretrain/rejected").to_dicts()
    assert thrown["pair_id"] == rows[0]["pair_id"] and thrown["detail"] == refusal


def test_a_query_and_all_its_positives_are_one_record(tmp_path: Path, pair, write_shards, read) -> None:
    rows = [
        pair("问", "甲", "exam", "retrieval", negatives=["丁", "乙", "丙"]),
        pair("另问", "戊", "exam", "retrieval"),
        pair("问", "乙", "exam", "retrieval", negatives=["丙", "己", "甲"]),
        pair("问", "甲", "other", "retrieval", negatives=["庚"]),
        pair("又问", "辛", "exam", "retrieval", negatives=["辛"]),
    ]
    write_shards(tmp_path, "score", rows[:2], rows[2:])
    summary = convert(tmp_path, recipe(), ONE)
    assert (summary.rows_in, summary.rows_out) == (5, 5)
    found = {(record["source"], record["query"]): record for record in read(tmp_path, "convert/retrieval").to_dicts()}
    assert len(found) == 4
    record = found["exam", "问"]
    assert record["positives"] == ["甲", "乙"]
    assert record["negatives"] == ["丁", "丙", "己"]
    assert record["pair_ids"] == [rows[0]["pair_id"], rows[2]["pair_id"]]
    assert record["cluster_ids"] == [rows[0]["cluster_id"], rows[2]["cluster_id"]]
    assert found["exam", "另问"]["negatives"] == found["exam", "又问"]["negatives"] == []
    assert found["other", "问"]["negatives"] == ["庚"]
    assert accounted(read, tmp_path, "retrieval") == sorted(row["pair_id"] for row in rows)


@pytest.fixture
def classes(pair) -> list[dict]:
    """Make three classes of one source and two of another, with some texts that can't be used."""
    named = [("news", "体育"), ("news", "财经"), ("news", "科技"), ("mood", "喜"), ("mood", "怒")]
    rows = [
        pair(f"第{number}篇", name, source, "classification", cluster_id=place)
        for place, (source, name) in enumerate(named)
        for number in range(place * 20, place * 20 + 10 + place)
    ]
    return [
        *rows,
        pair("独一篇", "冷门", "news", "classification"),
        pair("两可", "体育", "news", "classification"),
        pair("两可", "财经", "news", "classification"),
        *(pair(f"全是{number}", "唯一", "single", "classification") for number in range(3)),
        *(pair(f"剩下{number}", "多", "left", "classification") for number in range(3)),
        pair("剩一个", "少", "left", "classification"),
    ]


def test_classes_become_retrieval(tmp_path: Path, classes, write_shards, read) -> None:
    write_shards(tmp_path, "score", classes)
    summary = convert(tmp_path, recipe(class_negatives=3), ONE)
    records = read(tmp_path, "convert/retrieval").to_dicts()
    by_text = {(row["source"], row["query"]): row for row in classes}
    assert len(records) == 60
    for record in records:
        own = by_text[record["source"], record["query"]]
        [positive] = [by_text[record["source"], text] for text in record["positives"]]
        assert positive["positive"] == own["positive"] and positive is not own
        assert record["cluster_ids"] == [own["cluster_id"]]
        assert 1 <= len(record["negatives"]) <= 3
        assert len(set(record["negatives"])) == len(record["negatives"])
        for text in record["negatives"]:
            assert by_text[record["source"], text]["positive"] != own["positive"]

    thrown = read(tmp_path, "convert/retrieval/rejected")
    reasons = defaultdict(set)
    for row in thrown.to_dicts():
        reasons[row["reason"]].add((row["query"], row["positive"], row["detail"]))
    assert reasons["lonely_class"] == {("独一篇", "冷门", "class 冷门"), ("剩一个", "少", "class 少")}
    assert reasons["ambiguous_class"] == {("两可", name, "class 体育, 财经") for name in ("体育", "财经")}
    assert {query for query, _, _ in reasons["one_class"]} == {
        f"{kind}{i}" for kind in ("全是", "剩下") for i in range(3)
    }
    assert summary.rejected == {reason: len(found) for reason, found in reasons.items()}
    assert accounted(read, tmp_path, "retrieval") == sorted(
        {row["pair_id"] for row in classes} - set(thrown["pair_id"])
    )


def test_classes_do_not_depend_on_the_shards_but_on_the_seed(tmp_path: Path, classes, write_shards, read) -> None:
    for name, shards, seed in (
        ("a", [classes], 0),
        ("b", [classes[::-1][:30], [], classes[::-1][30:]], 0),
        ("c", [classes], 1),
    ):
        write_shards(tmp_path / name, "score", *shards)
        convert(tmp_path / name, recipe(seed=seed), ONE)
    frames = {name: read(tmp_path / name, "convert/retrieval").sort("source") for name in "abc"}
    assert frames["a"].equals(frames["b"])
    assert not frames["a"].equals(frames["c"])
    assert accounted(read, tmp_path / "a", "retrieval") == accounted(read, tmp_path / "c", "retrieval")


def test_labels_are_scaled(tmp_path: Path, pair, write_shards, read) -> None:
    labels = [-1.0, 4.0, 1.5, 4.1, -1.1, float("nan"), None]
    rows = [pair(f"甲{number}", f"乙{number}", "five", "sts", label=label) for number, label in enumerate(labels)]
    write_shards(tmp_path, "score", [*rows, pair("丙", "丁", "unlisted", "sts", label=0.25)])
    summary = convert(tmp_path, recipe(), ONE)
    records = read(tmp_path, "convert/sts")
    found = dict(records.select(pl.col("pair_ids").list.first(), "label").iter_rows())
    assert [found[row["pair_id"]] for row in rows[:3]] == pytest.approx([0, 1, 0.5])
    given = dict(records.select(pl.col("pair_ids").list.first(), "original_label").iter_rows())
    assert [given[row["pair_id"]] for row in rows[:3]] == labels[:3]
    assert records.filter(source="unlisted").select("text_a", "text_b", "label").rows() == [("丙", "丁", 0.25)]
    assert summary.rejected == {"label_range": 4}
    details = read(tmp_path, "convert/sts/rejected").sort("pair_id")["detail"]
    assert set(details) == {f"{value} is not in -1…4; set label_range" for value in ("4.1", "-1.1", "NaN", "null")}


def test_all_tasks_in_one_shard(tmp_path: Path, pair, write_shards, read) -> None:
    kinds = ["pretrain", "retrieval", "sts", "passages"]
    rows = [pair(f"{kind}{number}", RESPONSE, "mixed", kind, label=0.5) for kind in kinds[:3] for number in range(4)]
    rows += [pair("", f"{RESPONSE}{number}", "mixed", "passage") for number in range(4)]
    rows += [pair(f"文{number}", "甲乙"[number % 2], "mixed", "classification") for number in range(4)]
    write_shards(tmp_path, "score", rows[::2], rows[1::2], [])
    summary = convert(tmp_path, recipe(), Engine(workers=2))
    assert (summary.rows_in, summary.rows_out, summary.rejected.total()) == (20, 20, 0)
    assert summary.notes == {f"convert/{kind}": 8 if kind == "retrieval" else 4 for kind in kinds}
    everything = [pair_id for kind in kinds for pair_id in accounted(read, tmp_path, kind)]
    assert sorted(everything) == sorted(row["pair_id"] for row in rows)
    passages = {row["pair_id"]: row for row in rows if row["task"] == "passage"}
    for record in read(tmp_path, "convert/passages").to_dicts():
        row = passages[record["pair_ids"][0]]
        expected = {"text": row["positive"], **{name: row[name] for name in ("source", "category", "cluster_id")}}
        assert record == expected | {"pair_ids": [row["pair_id"]]}


def test_only_what_changed_is_done_again(tmp_path: Path, classes, pair, write_shards) -> None:
    write_shards(tmp_path, "score", classes, [pair(PROMPT, RESPONSE)], [pair("甲", "乙", "five", "sts", label=1.0)])
    shards = convert(tmp_path, recipe(), ONE).shards
    assert shards == 4 + 1 + 1
    assert convert(tmp_path, recipe(), ONE).skipped == shards
    assert convert(tmp_path, recipe(seed=1), ONE).skipped == 2
    assert convert(tmp_path, recipe(seed=1, min_response_chars=1), ONE).skipped == shards - 1


def test_a_task_without_pairs_has_no_shards(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "score", [pair(PROMPT, RESPONSE)], [])
    assert convert(tmp_path, recipe(), ONE).rows_out == 1
    assert not list((tmp_path / "convert" / "sts").glob("*.parquet"))
