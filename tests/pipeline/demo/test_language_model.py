"""The demo's language model does what the prompts of `conan synthesize` ask, and has the faults that it should have."""

from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import polars as pl
import pytest
from conan_embedding.pipeline.demo.generate import write_sample
from conan_embedding.pipeline.demo.language_model import FAULTY_SHARE, answer, serve
from conan_embedding.pipeline.demo.words import OPENINGS
from conan_embedding.pipeline.demo.world import draw, facts, passage, recognise
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.judge.grades import build_messages
from conan_embedding.pipeline.llm_client.client import Answer
from conan_embedding.pipeline.synthesize.checks import add_answers, read_queries
from conan_embedding.pipeline.synthesize.requests import plan_requests
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.recipe import Recipe, load
from conan_embedding.workflow import run_data_stage

RECIPE = Path(__file__).parents[3] / "recipes" / "demo.yaml"


def test_a_passage_is_of_one_fact() -> None:
    rng = Random(0)
    for _ in range(500):
        fact = draw(rng)
        assert recognise(passage(rng, fact, rng.choice(list(OPENINGS)))) == fact
    assert recognise("今天天气不错。") is None


def write_queries(number: int) -> pl.DataFrame:
    """Queries to passages, checked, with the grade of each that breaks no rule."""
    rng = Random(0)
    texts = [passage(rng, fact, "web") for fact in islice(facts(rng), number)]
    ids = [str(each) for each in range(number)]
    (settings,) = (source.synthesize for source in load(RECIPE).sources if source.synthesize)
    passages = pl.DataFrame({"text": texts, "query": None, "pair_id": ids, "hash": ids})
    rows, requests = plan_requests(passages, settings, {"zh": [None], "en": [None]})
    prompts = [request.body["messages"][-1]["content"] for request in requests]
    answers: list[Answer | None] = [
        Answer(request.key, answer(prompt), 1) for request, prompt in zip(requests, prompts, strict=True)
    ]
    found = read_queries(add_answers(rows, answers, {}))
    grades = [
        None if reason else int(answer(build_messages(query, text, [])[0]["content"]))
        for query, text, reason in found.select("query", "passage", "reason").iter_rows()
    ]
    return found.with_columns(grade=pl.Series(grades))


def test_most_queries_are_good_and_the_others_have_each_of_the_faults() -> None:
    written = write_queries(250)
    assert Counter(written["reason"]).keys() == {
        None,
        "unparsed",
        "names_the_passage",
        "several_questions",
        "copied_sentence",
        "duplicate_across_passages",
    }
    assert set(written["grade"]) == {None, 0, 1, 3}
    good = written.filter(pl.col("grade") == 3)
    assert 1 - 1.3 * FAULTY_SHARE < good.height / written.height < 1 - 0.7 * FAULTY_SHARE
    asks = {kind: good.filter(pl.col("kind") == kind)["query"] for kind in ("question", "keyword")}
    assert asks["question"].str.ends_with("？").all()
    assert (asks["keyword"].str.count_matches(" ") == 3).mean() > 0.9  # the others are copied sentences


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_server_ends_with_the_block(error: type[BaseException]) -> None:
    body = {"messages": [{"role": "user", "content": "<passage>\n没有\n</passage>"}]}
    with suppress(error), serve() as url, httpx2.Client(base_url=url) as client:
        found = client.post("chat/completions", json=body).json()
        assert found["choices"][0]["message"]["content"].startswith("抱歉")
        assert found["usage"]["total_tokens"] > found["usage"]["completion_tokens"] > 0
        raise error
    with pytest.raises(httpx2.ConnectError):
        httpx2.post(f"{url}/chat/completions", json=body)


def test_a_second_run_needs_no_server_and_changes_nothing(tmp_path: Path) -> None:
    write_sample(tmp_path / "sources", rows=300)

    def run(server: str) -> Summary:
        settings = [f"variables.root={tmp_path / 'sources'}", f"variables.server={server}"]
        recipe = load(RECIPE, settings)
        asked = [source for source in recipe.sources if source.name in ("web_posts", "web_questions")]
        for stage in ("ingest", "filter", "dedup"):
            run_data_stage(stage, tmp_path / "corpus", Recipe(sources=asked), Engine(workers=1))
        return run_data_stage("synthesize", tmp_path / "corpus", Recipe(sources=asked), Engine(workers=1))

    def state() -> dict[str, Any]:
        files = [*(tmp_path / "corpus").rglob("*.parquet"), *(tmp_path / "corpus").rglob("*.jsonl")]
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    with serve() as url:
        first = run(url)
    before = state()
    again = run("http://127.0.0.1:9/v1")
    assert (again.rows_in, again.rows_out, again.rejected) == (first.rows_in, first.rows_out, first.rejected)
    assert 0 < first.rows_out < first.rows_in
    assert first.notes["paid_for"]["web_questions"]["requests"] > first.rows_in  # grades, too
    assert again.notes["paid_for"]["web_questions"]["requests"] == 0
    assert state() == before
