"""Which of several duplicates survives, and what is recorded about the others; test_stage.py has the whole stage."""

from pathlib import Path

import pytest
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from near_texts import letters, near, outcome, recipe, similarity, text

ONE = Engine(workers=1)


def test_both_sides_must_be_alike(tmp_path: Path, pair, write_shards, read) -> None:
    rows = [
        pair(text(1), text(2)),
        pair(text(3), near(text(2))),
        pair(near(text(1)), text(4)),
        pair(near(near(text(1), 1), 2), near(text(2))),
    ]
    write_shards(tmp_path, "filter", rows)
    dedup(tmp_path, recipe(), ONE)
    kept = read(tmp_path, "dedup")
    assert kept["pair_id"].is_in([row["pair_id"] for row in rows[1:3]]).sum() == 2
    assert kept.height == 3
    by_id = dict(kept.select("pair_id", "cluster_id").iter_rows())
    passage = [by_id[row["pair_id"]] for row in rows if row["pair_id"] in by_id and row is not rows[2]]
    assert len(set(passage)) == 1 and by_id[rows[2]["pair_id"]] not in passage

    [gone] = read(tmp_path, "dedup/rejected").to_dicts()
    survivor, _, shown = gone["detail"].partition(": ")
    by_id = {row["pair_id"]: row for row in rows}
    alike = [
        similarity(*(letters(by_id[one][side]) for one in (gone["pair_id"], survivor)))
        for side in ("query", "positive")
    ]
    assert 0.7 <= alike[0] < alike[1] and float(shown) == round(alike[0], 3)


def test_the_survivor_is_of_the_first_source_then_longest_then_first_by_id(
    tmp_path: Path, pair, write_shards, read
) -> None:
    query, positive = text(1), text(2)
    rows = [
        pair(query, positive + "他们", "low"),
        pair(query, positive, "high"),
        pair(query + "!", positive + "。", "high"),
        pair(query + "?", positive + "？", "high"),
        pair(query, positive + "们", "unlisted"),
    ]
    write_shards(tmp_path, "filter", rows)
    dedup(tmp_path, recipe(("low", 5), ("high", None)), ONE)
    best = min(rows[2], rows[3], key=lambda row: row["pair_id"])
    kept, rejected = outcome(tmp_path, read)
    assert list(kept) == [best["pair_id"]]
    assert {survivor for _, survivor in rejected.values()} == {best["pair_id"]}
    assert rejected[rows[1]["pair_id"]][0] == "exact_duplicate"
    assert rejected[rows[0]["pair_id"]][0] == "near_duplicate"


def test_a_survivor_is_never_gone_itself(tmp_path: Path, pair, write_shards, read) -> None:
    """If the survivor of an exact duplicate is a near-duplicate of a third pair, the duplicate names the third pair."""
    query, positive = text(1), text(2)
    rows = [pair(query, near(positive) + "他们", "long"), *(pair(query + sign, positive, "short") for sign in "!?。")]
    write_shards(tmp_path, "filter", rows)
    dedup(tmp_path, recipe(), ONE)
    kept, rejected = outcome(tmp_path, read)
    assert list(kept) == [rows[0]["pair_id"]]
    assert sorted(reason for reason, _ in rejected.values()) == ["exact_duplicate", "exact_duplicate", "near_duplicate"]
    assert {survivor for _, survivor in rejected.values()} == {rows[0]["pair_id"]}
    shown = {float(detail.partition(": ")[2]) for detail in read(tmp_path, "dedup/rejected")["detail"]}
    assert shown == {round(similarity(letters(rows[0]["positive"]), letters(positive)), 3)}


def test_labelled_pairs(tmp_path: Path, pair, write_shards, read) -> None:
    a, b = text(1), text(2)
    scored = [
        pair(a, b, "sts", "sts", label=0.5),
        pair(a + "。", b, "sts", "sts", label=0.5),  # is rejected
        pair(a, b + "，", "sts", "sts", label=0.8),
        pair(near(a), b, "sts", "sts", label=0.5),
        pair(a, text(3), "sts", "sts", label=0.5),
    ]
    classes = [
        pair(a, "体育", "topics", "classification"),
        pair(near(a), "体育", "topics", "classification"),  # one of these two is rejected
        pair(b, "体育", "topics", "classification"),
        pair(a, "财经", "topics", "classification"),
        pair(a, "体育", "others", "classification"),
    ]
    write_shards(tmp_path, "filter", [*scored, *classes, pair(a, b), pair(a, b, task="retrieval")])
    for on in ("pair", "query", "positive"):
        dedup(tmp_path, recipe(on=on), ONE)
        kept, rejected = outcome(tmp_path, read)
        assert len(rejected) == 2
        assert {reason for reason, _ in rejected.values()} == {"exact_duplicate", "near_duplicate"}
        assert sum(row["pair_id"] in rejected for row in scored[:2]) == 1
        assert sum(row["pair_id"] in rejected for row in classes[:2]) == 1
    numbers = [kept[row["pair_id"]] for row in classes[2:]]
    assert len(set(numbers)) == 3  # one cluster per class, separate for each source


@pytest.mark.parametrize("on", ["query", "positive"])
def test_one_side_alone_can_decide(on: str, tmp_path: Path, pair, write_shards, read) -> None:
    same, other = ("query", "positive") if on == "query" else ("positive", "query")
    rows = [pair(**{same: text(1), other: text(2)}), pair(**{same: near(text(1)), other: text(3)})]
    rows.append(pair(**{same: text(4), other: text(2)}))
    write_shards(tmp_path, "filter", rows)
    dedup(tmp_path, recipe(on=on), ONE)
    kept, _ = outcome(tmp_path, read)
    assert len(kept) == 2 and rows[2]["pair_id"] in kept
    [shown] = read(tmp_path, "dedup/rejected")["detail"]
    expected = similarity(*(row[same] for row in rows[:2]))
    assert float(shown.partition(": ")[2]) == round(expected, 3)


def test_the_similarity_told_is_the_lower_of_the_two_sides(tmp_path: Path, pair, write_shards, read) -> None:
    once, twice = near(text(1)), near(near(text(1), 1), 2)
    rows = [
        pair(text(1), text(2), "a"),
        pair(twice, near(text(2)), "a"),
        pair(text(1), text(4), "b"),
        pair(once, near(near(text(4), 1), 2), "b"),
        pair(text(1), text(6), "c"),
        pair(text(1), near(text(6)), "c"),
        pair(text(1), text(8), "d"),
        pair(text(1), text(8) + "。", "d"),
    ]
    write_shards(tmp_path, "filter", rows)
    dedup(tmp_path, recipe(), ONE)
    told = {
        row["source"]: (row["reason"], float(row["detail"].partition(": ")[2]))
        for row in read(tmp_path, "dedup/rejected").to_dicts()
    }
    lowest = {
        "a": similarity(text(1), twice),
        "b": similarity(text(4), near(near(text(4), 1), 2)),
        "c": similarity(text(6), near(text(6))),
    }
    assert told == {source: ("near_duplicate", round(one, 3)) for source, one in lowest.items()} | {
        "d": ("exact_duplicate", 1.0)
    }


def test_a_text_that_only_a_third_joins_to_the_survivor_stays(tmp_path: Path, pair, write_shards, read) -> None:
    long = text(1, 200)
    first, between, last = (long[start : start + 160] for start in (0, 20, 40))
    assert similarity(first, last) < 0.7 < similarity(first, between)
    rows = [pair(text(2), one, source) for one, source in ((first, "a"), (between, "b"), (last, "c"))]
    write_shards(tmp_path, "filter", [*rows, pair(text(2), last + "。", "d")])
    dedup(tmp_path, recipe(("a", None), ("b", None), ("c", None), ("d", None)), ONE)
    kept, rejected = outcome(tmp_path, read)
    assert kept.keys() == {rows[0]["pair_id"], rows[2]["pair_id"]}
    assert len(set(kept.values())) == 1  # still a cluster: neither is a negative of the other
    assert sorted(rejected.values()) == sorted(
        [("near_duplicate", rows[0]["pair_id"]), ("exact_duplicate", rows[2]["pair_id"])]
    )
    shown = read(tmp_path, "dedup/rejected").filter(reason="near_duplicate")["detail"].item()
    assert float(shown.partition(": ")[2]) == round(similarity(first, between), 3)


def test_a_copy_of_a_far_text_names_that_ones_survivor(tmp_path: Path, pair, write_shards, read) -> None:
    long = text(1, 260)
    texts = [long[start : start + 160] for start in (0, 20, 40, 60)]
    rows = [pair(text(2), one, source) for one, source in zip(texts, "abcd", strict=True)]
    copy = pair(text(2), texts[3] + "。", "d")
    write_shards(tmp_path, "filter", [*rows, copy])
    dedup(tmp_path, recipe(*((source, None) for source in "abcd")), ONE)
    _, rejected = outcome(tmp_path, read)
    duplicates = {rows[3]["pair_id"], copy["pair_id"]}
    assert {rejected[one][1] for one in duplicates} == {rows[2]["pair_id"]}
    assert {rejected[one][0] for one in duplicates} == {"exact_duplicate", "near_duplicate"}


@pytest.mark.parametrize("on", ["pair", "query", "positive"])
def test_a_chain_keeps_every_text_unlike_its_survivor(on: str, tmp_path: Path, pair, write_shards, read) -> None:
    """A window that moves over a long text, on one side or the other."""
    long = text(1, 1000)
    windows = [long[start : start + 160] for start in range(0, 800, 20)]
    same = text(2)
    rows = [pair(one, same, "a") if on == "query" else pair(same, one, "a") for one in windows]
    if on == "pair":
        rows += [pair(one, text(3), "b") for one in windows]  # a second chain, told apart by its queries
    moving = {row["pair_id"]: max(row["query"], row["positive"], key=len) for row in rows}
    found = []
    for name, shards in (("one", [rows]), ("two", [rows[::-2], rows[::2][::-1]])):
        write_shards(tmp_path / name, "filter", *shards)
        dedup(tmp_path / name, recipe(("a", None), ("b", None), on=on), ONE)
        kept, rejected = outcome(tmp_path / name, read)
        found.append((kept, rejected))
        for gone, (_, survivor) in rejected.items():
            assert survivor in kept and similarity(moving[gone], moving[survivor]) >= 0.7
    assert found[0] == found[1]
    kept = list(found[0][0])
    alike = [
        (one, other) for one in kept for other in kept if one < other and similarity(moving[one], moving[other]) >= 0.7
    ]
    if on == "pair":  # the first chain differs in the positives, the second in the queries
        first = {row["pair_id"] for row in rows[: len(windows)]}
        alike = [(one, other) for one, other in alike if (one in first) == (other in first)]
    assert alike == []
    assert len(set(found[0][0].values())) == (2 if on == "pair" else 1) or on == "query"
