"""Translations: the query of a pair in another language, with the passages of that query."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.llm_client import client
from conan_embedding.pipeline.synthesize.faults import faults
from conan_embedding.pipeline.synthesize.stage import plan
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.workflow import run_data_stage
from llm_server import TOKENS, LLMServer, serve_llm

ALONE = Engine(workers=1)
PAIRS = [
    ("故宫周几闭馆", "故宫博物院逢周一闭馆，参观者须提前七天在官网预约，午门是唯一的入口。"),
    ("故宫周几闭馆", "周一去紫禁城的人会扑空：那一天除法定节假日外不开门，售票处也没有人。"),
    ("黄山的云海概率在哪里查", "黄山的日出要看运气，光明顶气象站每天晚上会公布第二天的云海概率。"),
    ("西湖坐船绕一圈要多久", "西湖的游船从湖滨码头出发，绕三潭印月一圈大约四十五分钟，大风天停航。"),
    ("泰山索道在哪里上车", "泰山的索道在中天门上车，老人和孩子可以省去十八盘的台阶。"),
    ("竹筏什么时候会封航", "漓江竹筏漂流分成上下两段，水位超过警戒线时全部封航。"),
]
ENGLISH = {
    "故宫": "On which day of the week is the Forbidden City closed?",
    "黄山": "Where can I look up how likely a sea of clouds is?",
    "西湖": "西湖坐船绕一圈要多久",
    "泰山": "泰山缆车的起点站在什么地方",
    "竹筏": "I'm sorry, but I can't help with that.",
}


def translate(prompt: str) -> str:
    asked = prompt.rpartition("<passage>")[2]
    assert not any(text in asked for _, text in PAIRS)
    answer = next(text for topic, text in ENGLISH.items() if topic in asked)
    return json.dumps({"query": answer, "answer": None}, ensure_ascii=False)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs all stages up to synthesize, with keys of `synthesize`; and the server."""
    lines = "\n".join(json.dumps({"query": query, "positive": text}) for query, text in PAIRS)
    (tmp_path / "a.jsonl").write_text(lines, "utf-8")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    files = {"name": "files", "files": str(tmp_path / "a.jsonl"), "read": "jsonl", "task": "retrieval"}
    with serve_llm() as server:
        server.answer = translate
        asked = {
            "server": {"url": server.url, "model": "m"},
            "budget": {"requests": 100, "tokens": 1e6},
            "kinds": {"translation": 1},
            "language": "en",
        }
        written = {"name": "english", "category": "llm_generated", "format": "title_content", "task": "retrieval"}

        def make(**keys: Any) -> Recipe:
            return Recipe.model_validate({"sources": [files, written | {"synthesize": asked | keys}]})

        for stage in ("ingest", "filter", "dedup"):
            run_data_stage(stage, tmp_path / "corpus", make(), ALONE)
        yield server, make, lambda recipe: run_data_stage("synthesize", tmp_path / "corpus", recipe, ALONE)


def test_a_query_is_translated_once_for_all_its_passages(
    run: tuple[LLMServer, Callable[..., Recipe], Callable[[Recipe], Summary]], tmp_path: Path, tiny_model: Path
) -> None:
    """In the round trip, none of them ranks above another."""
    server, make, synthesize = run
    trip = {"model": str(tiny_model), "pooling": "mean", "max_length": 32, "within": 5}
    recipe = make(round_trip=trip)
    (planned,) = plan(tmp_path / "corpus", recipe).sources
    assert (planned.passages, planned.queries, planned.requests) == (6, 6, 5)
    summary = synthesize(recipe)
    assert len(server.requests) == 5
    assert summary.rejected == {"untranslated": 1, "wrong_language": 1, "refusal": 1}
    assert (
        summary.notes["paid_for"]["english"] | {"unanswered": 0, "tokens": 5 * TOKENS}
        == (summary.notes["paid_for"]["english"])
    )
    assert summary.notes["prompt_tokens"] + summary.notes["answer_tokens"] == 5 * TOKENS
    rows = catalog.query(tmp_path / "corpus", "FROM synthesis WHERE reason IS NULL").to_pylist()
    passages = {text: query for query, text in PAIRS}
    assert Counter(row["original"] for row in rows) == {"故宫周几闭馆": 2, "黄山的云海概率在哪里查": 1}
    assert all(row["original"] == passages[row["positive"]] for row in rows)
    ids = "SELECT pair_id, positive FROM dedup WHERE source = 'files'"
    ids = {row["positive"]: row["pair_id"] for row in catalog.query(tmp_path / "corpus", ids).to_pylist()}
    both = {ids[text] for query, text in PAIRS if query == "故宫周几闭馆"}
    for row in rows:
        if row["pair_id"] in both:
            assert row["rank"] <= 5 and not both & set(row["above"])
    pairs = catalog.query(tmp_path / "corpus", "FROM dedup WHERE source = 'english'").to_pylist()
    assert sorted((pair["query"], pair["positive"]) for pair in pairs) == sorted(
        (ENGLISH[passages[row["positive"]][:2]], row["positive"]) for row in rows
    )
    assert {json.loads(pair["meta"])["pair_id"] for pair in pairs} == {ids[pair["positive"]] for pair in pairs}
    assert synthesize(recipe).skipped == 1 and len(server.requests) == 5


def test_pairs_with_the_same_translation_are_graded_each(
    run: tuple[LLMServer, Callable[..., Recipe], Callable[[Recipe], Summary]], tmp_path: Path
) -> None:
    server, make, synthesize = run
    server.answer = lambda prompt: translate(prompt) if "<passage>" in prompt else "0123"[2 + ("紫禁城" in prompt)]
    assert synthesize(make(judge={"min": 3})).rejected["grade"] == 2
    (row,) = catalog.query(tmp_path / "corpus", "FROM synthesis WHERE reason IS NULL").to_pylist()
    assert "紫禁城" in row["positive"] and row["grade"] == 3


def test_rules_for_translations() -> None:
    """Those about passages are not for them: a translation may speak of a text, and ask what the query asks."""
    original = "他的文章里这段话是什么意思？谁写的？"
    sound = ["What does the passage in his article mean? Who wrote it?", "iPhone 14"]
    faulty = {original: "untranslated", "他文章中那一段的含义": "wrong_language"}
    frame = pl.DataFrame({"query": [*sound, *faulty]}).with_columns(
        passage=pl.lit(original + " iPhone 14"), answer=pl.lit(None), kind=pl.lit("translation"), language=pl.lit("en")
    )
    frame = frame.with_columns(passage=pl.when(pl.col("query") == original).then("query").otherwise("passage"))
    assert faults(frame).to_list() == [None, None, *faulty.values()]
