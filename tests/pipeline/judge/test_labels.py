"""Grades of a person: which pairs are shown, what is kept, and that they count more than any other judge's."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from conan_embedding import display
from conan_embedding.pipeline.corpus.catalog import query
from conan_embedding.pipeline.corpus.judgements import add, list_parts
from conan_embedding.pipeline.corpus.pools import read_judging, refresh_judgements
from conan_embedding.pipeline.judge.language_model import name_model
from conan_embedding.pipeline.judge.stage import label_pairs
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.judge_settings import JudgeSettings
from judged_pools import read_judgements, write_judged_pools

ROWS = [
    ("天气怎样", "今天天气很好", 0.9),
    ("天气怎样", "上海天气", 0.5),
    ("天气怎样", "北京天气好", 0.95),
    ("股市", "今天股市", 0.5),
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_judged_pools(tmp_path)
    pl.DataFrame(ROWS, ["query", "passage", "score"], orient="row").write_parquet(tmp_path / "scores.parquet")
    return tmp_path


def settings(corpus: Path, band: list[float] | None) -> JudgeSettings:
    llm = {"model": "m", "max_tokens": 0, "band": band}
    return JudgeSettings.model_validate(
        {"scores": str(corpus / "scores.parquet"), "llm": llm, "relabel": {"score": 0.9}}
    )


def judged(corpus: Path, given: JudgeSettings) -> None:
    from conan_embedding.pipeline.engine.calls import Engine
    from conan_embedding.pipeline.judge.stage import judge

    judge(corpus, given, Engine(workers=1))


def test_undecided_pairs_are_shown_and_grades_kept_as_they_come(corpus: Path) -> None:
    given = settings(corpus, [0.4, 0.6])
    judged(corpus, given)
    shown: list[dict[str, Any]] = []

    def ask(pair: dict[str, Any]) -> str:
        shown.append(pair)
        assert len(read_parts(corpus, "person")) == len(shown) - 1  # the earlier ones are on the disk
        return {"上海天气": "3", "今天股市": "0"}[pair["passage"]]

    assert label_pairs(corpus, given, 5, ask).rows_out == 2
    assert {(pair["query"], pair["passage"], pair["score"]) for pair in shown} == {
        ("天气怎样", "上海天气", 0.5),
        ("股市", "今天股市", 0.5),
    }
    assert read_judgements(corpus, "person") == {("天气怎样", "上海天气"): 3.0, ("股市", "今天股市"): 0.0}
    found = query(corpus, "SELECT decision, judge[:6] AS judge FROM pools.decisions ORDER BY ALL").to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("irrelevant", "person"), ("positive", "file-" + found[1]["judge"][5:]), ("positive", "person")
    ]  # fmt: skip
    assert label_pairs(corpus, given, 5, ask).rows_out == 0  # nothing is left to label


def read_parts(corpus: Path, judge: str) -> list[tuple]:
    return [row for part in list_parts(corpus) for row in pl.read_parquet(part).filter(judge=judge).rows()]


def test_a_person_counts_more_than_a_language_model(corpus: Path) -> None:
    given = settings(corpus, None)
    assert given.llm
    rows = {"query": ["天气怎样"], "passage": ["上海天气"], "score": [3.0]}
    add(corpus, name_model(given.llm), pl.DataFrame(rows))
    judged(corpus, given)
    decided = "SELECT text FROM pools.decisions JOIN pools.passages USING (passage_id) ORDER BY text"
    assert [row["text"] for row in query(corpus, decided).to_pylist()] == ["上海天气", "北京天气好"]
    label_pairs(corpus, given, 99, lambda pair: "1" if pair["passage"] == "上海天气" else "s")
    assert [row["text"] for row in query(corpus, decided).to_pylist()] == ["北京天气好"]


def test_the_last_grade_of_a_pair_counts(corpus: Path) -> None:
    """A store has two of a pair if it has the files of two corpora."""
    for grade in (1.0, 3.0, 2.0):
        add(corpus, "person", pl.DataFrame({"query": ["股市"], "passage": ["今天股市"], "score": [grade]}))
    refresh_judgements(corpus)
    assert read_judgements(corpus) == {("股市", "今天股市"): 2.0}


def test_keys_skip_and_end(corpus: Path) -> None:
    keys, given = iter("s2q3"), settings(corpus, None)
    judged(corpus, given)
    assert label_pairs(corpus, given, 99, lambda _: next(keys)).rows_out == 1
    assert next(keys) == "3"  # was not asked for
    assert len(read_parts(corpus, "person")) == 1


def test_labels_do_not_make_judged_pools(corpus: Path) -> None:
    """Or training would take pools that nobody has judged for those that the recipe asks for."""
    given = settings(corpus, None)
    with pytest.raises(CorpusError, match="the pools are not judged; run `conan judge"):
        label_pairs(corpus, given, 99, lambda _: "3")
    judged(corpus, given)
    with pytest.raises(CorpusError, match="judged with other settings than the recipe's"):
        label_pairs(corpus, given.model_copy(update={"candidates": 2}), 99, lambda _: "3")
    assert read_parts(corpus, "person") == [] and read_judging(corpus) == given.decisive


def test_a_pair_is_shown_with_its_positives(capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"query": "问", "passage": "答", "positives": ["好", "答"], "score": 0.5}
    with CliRunner().isolation(input="2"):
        key = display.ask_grade(pair)
    assert key == "2"
