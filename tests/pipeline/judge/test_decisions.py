"""Decisions, against the rule written out in Python over random pools; and that they can be undone."""

from pathlib import Path
from random import Random

import polars as pl
import pytest
from conan_embedding.pipeline.corpus.catalog import query
from conan_embedding.pipeline.corpus.judgements import add
from conan_embedding.pipeline.corpus.pools import (
    decided_fingerprint,
    read_candidates,
    refresh_judgements,
    stored_fingerprint,
    write_decisions,
)
from conan_embedding.pipeline.judge.decisions import decide
from conan_embedding.schemas.judge_settings import JudgeSettings
from judged_pools import POOLS, write_judged_pools
from pydantic import ValidationError

Left = dict[str, tuple[set[str], list[str]]]

SCORES = {
    ("天气怎样", "今天天气很好"): 0.75,
    ("天气怎样", "上海天气"): 0.9,
    ("天气怎样", "北京天气好"): 0.6,
    ("天气怎样", "股市"): 0.1,
    ("怎样泡茶", "泡绿茶"): 0.8,
    ("怎样泡茶", "好茶怎样泡"): 0.05,
    ("怎样泡茶", "绿茶很好"): 0.7,
    ("股市", "今天股市"): 0.0,
    ("股市", "北京股市怎样"): 0.5,
    ("问", "答"): 0.9,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judged pools without decisions, or with those of an earlier test, which the next ones replace."""
    folder = tmp_path_factory.mktemp("corpus")
    write_judged_pools(folder)
    add_scores(folder, SCORES)
    return folder


def add_scores(corpus: Path, scores: dict[tuple[str, str], float], judge: str = "file-1") -> None:
    rows = [(asked, passage, score) for (asked, passage), score in scores.items()]
    add(corpus, judge, pl.DataFrame(rows, ["query", "passage", "score"], orient="row"))
    refresh_judgements(corpus)


def left(corpus: Path) -> Left:
    """Read what is left of the pools: positives and candidates of each query, in order."""
    rows = query(
        corpus,
        "SELECT q.text AS query, (SELECT list(text) FROM pools.positives p JOIN pools.passages USING (passage_id) "
        "WHERE p.query_id = q.query_id) AS positives, list(pa.text ORDER BY place) FILTER (place IS NOT NULL) AS pool "
        "FROM pools.queries q LEFT JOIN (SELECT query_id, unnest(passage_ids) AS passage_id, "
        "generate_subscripts(passage_ids, 1) AS place FROM pools.candidates) USING (query_id) "
        "LEFT JOIN pools.passages pa USING (passage_id) GROUP BY ALL",
    ).to_pylist()
    return {row["query"]: (set(row["positives"]), row["pool"] or []) for row in rows}


def settings(**rule: object) -> JudgeSettings:
    return JudgeSettings.model_validate(rule)


MINED: Left = {text: (set(positives), list(pool)) for text, (positives, pool) in POOLS.items()}


@pytest.mark.parametrize(
    "rule, changed",
    [
        ({}, {}),
        ({"relabel": {"score": 0.9}}, {"天气怎样": ({"今天天气很好", "上海天气"}, ["北京天气好", "股市"])}),
        ({"relabel": {"score": 0.9000001}}, {}),
        ({"relabel": {"margin": 0}}, {
            "天气怎样": ({"今天天气很好", "上海天气"}, ["北京天气好", "股市"]),
            "怎样泡茶": ({"泡绿茶", "好茶怎样泡", "绿茶很好"}, ["茶", "今天天气很好"]),
            "股市": ({"今天股市", "北京股市怎样"}, ["股市", "上海天气"]),
        }),
        ({"relabel": {"score": 0.6, "margin": 0}}, {
            "天气怎样": ({"今天天气很好", "上海天气"}, ["北京天气好", "股市"]),
            "怎样泡茶": ({"泡绿茶", "好茶怎样泡", "绿茶很好"}, ["茶", "今天天气很好"]),
        }),
        ({"set_aside": {"score": 0.6}}, {
            "天气怎样": ({"今天天气很好"}, ["股市"]),
            "怎样泡茶": ({"泡绿茶", "好茶怎样泡"}, ["茶", "今天天气很好"]),
        }),
        ({"relabel": {"score": 0.9}, "set_aside": {"margin": 0.25}, "irrelevant": 0.1}, {
            "天气怎样": ({"今天天气很好", "上海天气"}, ["股市"]),
            "怎样泡茶": ({"泡绿茶"}, ["茶", "今天天气很好"]),
            "股市": None,
        }),
        ({"relabel": {"score": 0.5}, "irrelevant": 0.1}, {  # the better answer takes the positive's place
            "天气怎样": ({"今天天气很好", "上海天气", "北京天气好"}, ["股市"]),
            "怎样泡茶": ({"泡绿茶", "绿茶很好"}, ["茶", "今天天气很好"]),
            "股市": ({"北京股市怎样"}, ["股市", "上海天气"]),
        }),
    ],
)  # fmt: skip
def test_what_is_left(rule: dict, changed: dict, corpus: Path) -> None:
    expected = {text: pool for text, pool in (MINED | changed).items() if pool is not None}
    decide(corpus, settings(**rule), "file-1")
    assert left(corpus) == expected
    assert read_candidates(corpus).height == len(expected)
    assert (decided_fingerprint(corpus) == stored_fingerprint(corpus)) == (not changed)


def test_decisions_are_those_of_one_judge_and_can_be_undone(corpus: Path) -> None:
    rule = settings(relabel={"margin": 0}, irrelevant=0.5)
    decide(corpus, rule, "file-1")
    assert left(corpus) != MINED
    decide(corpus, rule, "another")
    assert left(corpus) == MINED
    decide(corpus, rule, "file-1")
    write_decisions(corpus, None, None)
    assert left(corpus) == MINED and decided_fingerprint(corpus) == stored_fingerprint(corpus)


def test_what_is_left_has_its_scores_and_is_counted(corpus: Path) -> None:
    found = decide(corpus, settings(relabel={"score": 0.9}, set_aside={"score": 0.6}, irrelevant=0.1), "file-1")
    assert found == {"positive": 1, "ambiguous": 2, "irrelevant": 2}
    pools = read_candidates(corpus)
    scores = [[round(score, 6) for score in each] for each in pools["scores"].to_list()]
    assert dict(zip(pools["query"], scores, strict=True)) == {"天气怎样": [0.7], "怎样泡茶": [0.9, 0.7], "问": []}
    relabelled = query(corpus, "SELECT score FROM pools.positives WHERE score < 0.94").to_pylist()
    assert relabelled == [{"score": pytest.approx(0.9)}]  # the miner's
    decided = query(corpus, "FROM pools.decided").to_pylist()
    assert decided == [{"source": "web", "decision": name, "pairs": count} for name, count in sorted(found.items())]
    short = query(corpus, "SELECT query, candidates FROM pools.short_pools ORDER BY ALL").to_pylist()
    assert {row["query"]: row["candidates"] for row in short} == {"天气怎样": 1, "怎样泡茶": 2, "问": 0}


def test_near_duplicates_of_what_answers_are_no_negatives(tmp_path: Path) -> None:
    pools = {"甲": (["一"], ["二", "三", "四"]), "乙": (["五"], ["三", "二"])}
    write_judged_pools(tmp_path, pools, clusters={"二": [7], "三": [8, 7], "四": [8]})
    add_scores(tmp_path, {("甲", "二"): 0.9, ("甲", "一"): 0.9})
    found = decide(tmp_path, settings(set_aside={"score": 0.8}), "file-1")
    assert found == {"ambiguous": 1, "near_duplicate": 1}
    assert left(tmp_path) == {"甲": ({"一"}, ["四"]), "乙": ({"五"}, ["三", "二"])}


def test_random_pools_against_the_rule_in_python(tmp_path: Path) -> None:
    dice = Random(3)
    texts = [f"文{number}" for number in range(60)]
    pools, scores = {}, {}
    for number in range(40):
        chosen = dice.sample(texts, dice.randint(1, 12))
        own = dice.randint(1, min(3, len(chosen)))
        pools[f"问{number}"] = chosen[:own], chosen[own:]
        scores |= {(f"问{number}", text): dice.randint(0, 64) / 64 for text in chosen if dice.random() < 0.8}
    write_judged_pools(tmp_path, pools)
    add_scores(tmp_path, scores)
    rule = {"relabel": {"score": 0.5, "margin": 0.125}, "set_aside": {"margin": 0.25}, "irrelevant": 0.25}
    decide(tmp_path, settings(**rule), "file-1")
    expected: Left = {}
    for asked, (positives, pool) in pools.items():
        good = [text for text in positives if scores.get((asked, text), 1.0) >= 0.25]
        judged = [scores[asked, text] for text in good if (asked, text) in scores]
        lowest = min(judged, default=99.0)
        known = [text for text in pool if (asked, text) in scores]
        found = {text for text in known if scores[asked, text] >= max(0.5, lowest - 0.125)}
        aside = {text for text in known if scores[asked, text] >= lowest - 0.25}
        if good or found:
            expected[asked] = {*good, *found}, [text for text in pool if text not in found | aside]
    assert 5 < len(expected) < len(pools)
    assert left(tmp_path) == expected


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"relabel": {}}, "expected `score`, `margin` or both"),
        ({"relabel": {"score": 0.5}, "set_aside": {"score": 0.6}}, "`set_aside` asks for more than `relabel`"),
        ({"relabel": {"margin": 0.1}, "set_aside": {"margin": 0}}, "`set_aside` asks for more than `relabel`"),
        ({"irrelevant": float("nan")}, "finite number"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**rule)
