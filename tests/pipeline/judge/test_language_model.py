"""Grades of a language model: what is asked, what is kept, and what follows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus.catalog import query
from conan_embedding.pipeline.corpus.folder import fingerprint
from conan_embedding.pipeline.corpus.judgements import add
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.judge import language_model
from conan_embedding.pipeline.judge.grades import PROMPT_VERSION, PROMPTS, build_messages, read_grade
from conan_embedding.pipeline.judge.language_model import name_model
from conan_embedding.pipeline.judge.stage import judge, plan
from conan_embedding.pipeline.llm_client import client
from conan_embedding.schemas.judge_settings import JudgeSettings, LLMJudgeSettings
from conan_embedding.schemas.outcomes import Summary
from judged_pools import read_judgements, write_judged_pools
from llm_server import TOKENS, LLMServer, serve_llm

SCORES = {
    ("天气怎样", "今天天气很好"): 0.9,
    ("天气怎样", "上海天气"): 0.6,
    ("天气怎样", "北京天气好"): 0.4,
    ("天气怎样", "股市"): 0.1,
    ("怎样泡茶", "泡绿茶"): 0.8,
    ("怎样泡茶", "好茶怎样泡"): 0.5,
    ("怎样泡茶", "茶"): 0.9,
    ("股市", "今天股市"): 0.45,
}
UNDECIDED = sorted(pair for pair, score in SCORES.items() if 0.4 <= score <= 0.6)
GRADES = {"上海天气": "3", "北京天气好": "2", "好茶怎样泡": "1", "今天股市": "<think>2? 3?</think>\n0"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    with serve_llm() as running:
        running.answer = lambda prompt: GRADES[judged_text(prompt)]
        yield running


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_judged_pools(tmp_path)
    write_scores(tmp_path)
    return tmp_path


def write_scores(corpus: Path) -> Path:
    file = corpus / "scores.jsonl"
    lines = [
        f'{{"query": "{asked}", "passage": "{text}", "score": {score}}}' for (asked, text), score in SCORES.items()
    ]
    file.write_text("\n".join(lines), "utf-8")
    return file


def judged_text(prompt: str) -> str:
    return next(line for line in prompt.splitlines() if line.startswith("待判断")).partition("：")[2]


def settings(server: LLMServer, corpus: Path, **llm: object) -> JudgeSettings:
    given = {"url": server.url, "model": "m", "max_tokens": 10_000, "band": [0.4, 0.6]} | llm
    rule = {"relabel": {"score": 0.9}, "irrelevant": 0.2}
    return JudgeSettings.model_validate({"scores": str(corpus / "scores.jsonl"), "llm": given, **rule})


def run(server: LLMServer, corpus: Path, **llm: object) -> Summary:
    return judge(corpus, settings(server, corpus, **llm), Engine(workers=1))


def test_the_undecided_are_graded_and_the_grades_followed(server: LLMServer, corpus: Path) -> None:
    summary = run(server, corpus)
    asked = settings(server, corpus).llm
    assert asked
    assert sorted(map(judged_text, server.prompts)) == sorted(text for _, text in UNDECIDED)
    assert read_judgements(corpus, name_model(asked)) == dict(zip(UNDECIDED, [3, 2, 1, 0], strict=True))
    assert summary.notes["llm"] == {
        "judge": name_model(asked), "graded": 4, "unclear": 0, "failed": 0, "over_budget": 0, "tokens": 4 * TOKENS
    }  # fmt: skip
    verdicts = query(
        corpus, "SELECT verdict FROM pools.judgements WHERE verdict IS NOT NULL ORDER BY score"
    ).to_pylist()
    assert [row["verdict"] for row in verdicts] == ["irrelevant", "related", "partial", "relevant"]
    decisions = query(
        corpus,
        "SELECT text, decision, judge FROM pools.decisions JOIN pools.passages USING (passage_id) ORDER BY text",
    ).to_pylist()
    assert {row["text"]: (row["decision"], row["judge"].partition("-")[0]) for row in decisions} == {
        "上海天气": ("positive", "llm"),
        "北京天气好": ("ambiguous", "llm"),
        "好茶怎样泡": ("irrelevant", "llm"),
        "今天股市": ("irrelevant", "llm"),
        "茶": ("positive", "file"),
    }
    assert run(server, corpus).notes["llm"]["tokens"] == 0 and len(server.requests) == 4


def test_a_pair_that_is_refused_costs_only_itself(server: LLMServer, corpus: Path) -> None:
    """A filter of the vendor's refuses one text; when only that one is left, it doesn't end the run either."""
    server.faults = [(200, ""), (400, "data_inspection_failed")]
    notes = run(server, corpus, concurrency=1).notes["llm"]
    assert (notes["graded"], notes["failed"], notes["over_budget"]) == (3, 1, 0)
    server.faults = [(400, "data_inspection_failed")]
    notes = run(server, corpus, concurrency=1).notes["llm"]
    assert (notes["graded"], notes["failed"]) == (0, 1)


def test_the_prompt_shows_the_positives_but_never_a_text_to_itself(server: LLMServer, corpus: Path) -> None:
    run(server, corpus)
    prompts = {judged_text(prompt): prompt for prompt in server.prompts}
    assert "已知能满足该查询的文本：今天天气很好" in prompts["上海天气"]
    known = [line.partition("：")[2] for line in prompts["好茶怎样泡"].splitlines() if line.startswith("已知")]
    assert known == ["泡绿茶"]
    english = build_messages("why", "because", ["so", "because"])[0]["content"]
    assert "Query: why\nA passage known to satisfy the query: so\nPassage to judge: because" in english


def test_the_budget_is_told_and_kept(server: LLMServer, corpus: Path) -> None:
    planned = plan(corpus, settings(server, corpus, concurrency=1))
    assert (planned.to_grade, planned.budget) == (0, 10_000)  # nothing is scored yet
    summary = run(server, corpus, max_tokens=2 * TOKENS, concurrency=1)
    assert summary.notes["llm"]["graded"] == summary.notes["llm"]["over_budget"] == 2
    planned = plan(corpus, settings(server, corpus))
    assert planned.to_grade == 2 and 2 * 80 < planned.tokens < 2 * 400
    assert run(server, corpus).notes["llm"]["graded"] == 2 and len(server.requests) == 4


def test_without_a_band_all_are_graded_and_what_is_no_grade_is_counted(
    server: LLMServer, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "PART", 3)
    server.answer = lambda prompt: "relevant" if "茶" in judged_text(prompt) else "2"
    summary = run(server, corpus, band=None)
    assert summary.notes["llm"]["unclear"] == 4
    assert summary.notes["llm"]["graded"] + 4 == summary.rows_in == 14


def test_another_model_or_positive_is_asked_again_only_where_it_must(server: LLMServer, corpus: Path) -> None:
    run(server, corpus)
    write_judged_pools(corpus, first=9)
    run(server, corpus)
    assert len(server.requests) == 4
    run(server, corpus, model="other")
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    "answer, grade",
    [
        ("3", 3),
        (" 0\n", 0),
        ("分数：2。", 2),
        ("<think>1 or 2\n3</think>\n\n1", 1),
        ("<think>\nIt could be a 2, but", None),
        ("4", None),
        ("2 or 3", None),
        ("", None),
    ],
)
def test_grades_are_read(answer: str, grade: int | None) -> None:
    assert read_grade(answer) == grade


def test_a_grade_by_another_judge_counts_for_nothing(server: LLMServer, corpus: Path) -> None:
    import polars as pl

    add(corpus, "llm-other", pl.DataFrame({"query": ["股市"], "passage": ["北京股市怎样"], "score": [3.0]}))
    run(server, corpus)
    found = query(corpus, "SELECT count(*) AS n FROM pools.decisions WHERE judge = 'llm-other'").to_pylist()
    assert found == [{"n": 0}]


def test_another_prompt_is_another_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails as PROMPTS have changed, raise PROMPT_VERSION: the grades in people's corpora are by other ones."""
    assert (PROMPT_VERSION, fingerprint(PROMPTS)[:8]) == (1, "d2c690af")
    given = LLMJudgeSettings(model="m", max_tokens=1)
    before = language_model.name_model(given)
    monkeypatch.setattr(language_model, "PROMPT_VERSION", 2)
    assert language_model.name_model(given) != before
