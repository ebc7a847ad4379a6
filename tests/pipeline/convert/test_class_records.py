"""From classification to retrieval: which texts become records, and what their negatives are."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.convert.class_records import build_class_records, judge_classes
from conan_embedding.schemas.settings import ConvertSettings

Row = dict[str, Any]


def convert_classes(rows: Sequence[Row], **settings: int) -> tuple[list[Row], list[Row]]:
    """Return the records of one source's classification pairs, and the pairs that make none."""
    judged = judge_classes(pl.DataFrame(rows).sort("pair_id"))
    records = build_class_records(judged.filter(pl.col("reason").is_null()), ConvertSettings(**settings))
    return records.to_dicts(), judged.filter(pl.col("reason").is_not_null()).to_dicts()


def test_pairs_that_make_no_record_have_a_reason(pair) -> None:
    named = [("篮球赛", "体育"), ("足球赛", "体育"), ("股市", "财经"), ("债市", "财经")]
    named += [("两可！", "体育"), ("两可", "财经"), ("独一篇", "冷门")]
    records, rejects = convert_classes([pair(text, name, "s", "classification") for text, name in named])
    assert {record["query"] for record in records} == {"篮球赛", "足球赛", "股市", "债市"}
    assert sorted((row["query"], row["reason"], row["detail"]) for row in rejects) == [
        ("两可", "ambiguous_class", "class 体育, 财经"),
        ("两可！", "ambiguous_class", "class 体育, 财经"),
        ("独一篇", "lonely_class", "class 冷门"),
    ]


def test_a_text_with_another_sign_is_another_text(pair) -> None:
    named = [("今天😀", "开心"), ("今天😡", "生气"), ("C++", "甲"), ("C#", "乙"), ("好", "开心"), ("坏", "生气")]
    named += [("Java", "甲"), ("Go", "乙")]
    records, rejects = convert_classes([pair(text, name, "s", "classification") for text, name in named])
    assert rejects == [] and len(records) == 8


def test_one_class_alone_makes_no_records(pair) -> None:
    named = [("篮球赛", "体育"), ("足球赛", "体育"), ("独一篇", "冷门")]
    records, rejects = convert_classes([pair(text, name, "s", "classification") for text, name in named])
    assert records == []
    assert {row["query"]: row["reason"] for row in rejects} == {
        "篮球赛": "one_class", "足球赛": "one_class", "独一篇": "lonely_class",
    }  # fmt: skip


def test_texts_that_differ_by_punctuation_share_what_they_are_shown_with(pair) -> None:
    named = [("篮球赛", "体育"), ("篮球赛！", "体育"), ("足球赛", "体育"), ("股市", "财经"), ("债市", "财经")]
    records, _ = convert_classes([pair(text, name, "s", "classification") for text, name in named])
    shown = {record["query"]: (record["positives"], record["negatives"]) for record in records}
    assert shown["篮球赛"] == shown["篮球赛！"]
    assert shown["篮球赛"][0] == ["足球赛"]
    assert len(records) == 5


def test_negatives_come_from_all_other_classes(pair) -> None:
    rows = [pair(f"{name}{number}", name, "s", "classification") for name in "甲乙丙丁" for number in range(50)]
    records, _ = convert_classes(rows)
    met = defaultdict(int)
    positives = set()
    for record in records:
        positives.update(record["positives"])
        for negative in record["negatives"]:
            met[record["query"][0], negative[0]] += 1
    assert len(positives) == 200  # a ring: each text is the positive of one other
    assert len(met) == 12
    assert all(40 < count < 95 for count in met.values())  # 66 expected
    spread = Counter(negative for record in records for negative in record["negatives"])
    assert len(spread) > 190  # 4 expected of each


@pytest.mark.parametrize("positives", [1, 3, 50])
@pytest.mark.parametrize("negatives", [1, 7, 50])
def test_classes_never_leak(positives: int, negatives: int, pair) -> None:
    """Small classes, texts that differ only in punctuation, one name with two clusters, two names in one cluster."""
    sizes = {"甲": 2, "乙": 3, "丙": 9, "丁": 40}
    rows = [
        pair(f"{name}{number}", name, "s", "classification", cluster_id=place)
        for place, (name, size) in enumerate(sizes.items())
        for number in range(size)
    ]
    rows += [pair(f"{row['query']}！", row["positive"], "s", "classification", cluster_id=3) for row in rows[-5:]]
    rows += [pair(f"戊{number}", "戊", "s", "classification", cluster_id=0) for number in range(4)]
    rows += [pair("甲0。", "乙", "s", "classification", cluster_id=1)]  # which makes 甲0 ambiguous
    records, rejects = convert_classes(rows, class_positives=positives, class_negatives=negatives)
    assert {row["query"] for row in rejects} == {"甲0", "甲0。"}

    class_of = {row["query"].rstrip("！"): "甲" if row["positive"] == "戊" else row["positive"] for row in rows}
    members = {name: {text for text, own in class_of.items() if own == name} - {"甲0", "甲0。"} for name in sizes}
    assert len(records) == len(rows) - 2
    for record in records:
        text = record["query"].rstrip("！")
        own = class_of[text]
        shown, opposed = ([each.rstrip("！") for each in record[side]] for side in ("positives", "negatives"))
        assert set(shown) <= members[own] - {text}
        assert len(shown) == len(set(shown)) == min(positives, len(members[own]) - 1)
        others = set().union(*members.values()) - members[own]
        assert set(opposed) <= others
        assert len(opposed) == len(set(opposed)) <= negatives
        if len(others) >= negatives:
            assert len(opposed) == negatives
        assert len(set(record["cluster_ids"])) == 1 and len(record["cluster_ids"]) == len(shown)
