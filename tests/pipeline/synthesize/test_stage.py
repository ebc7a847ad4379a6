"""The stage against a server: what is asked, what is kept, what a second run does, and how it ends in the corpus."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Conan
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.corpus.folder import committed, read_footer
from conan_embedding.pipeline.corpus.synthesis import ANSWERS, REQUESTS
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.llm_client import client
from conan_embedding.pipeline.llm_client.client import LLMError
from conan_embedding.pipeline.synthesize.stage import synthesize
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.recipe import Recipe, dump
from conan_embedding.workflow import run_data_stage
from llm_server import TOKENS, LLMServer, llm_process, serve_llm

PASSAGES = {
    "长城": "长城东起山海关，西到嘉峪关，明代修的砖墙保存得最完整，八达岭一段的城楼每天傍晚六点关门。",
    "故宫": "故宫博物院逢周一闭馆，参观者须提前七天在官网预约，午门是唯一的入口，不允许携带打火机入内。",
    "黄山": "黄山的日出要看运气，光明顶气象站每天晚上会公布第二天的云海概率，山上宾馆的床位常常紧张。",
    "西湖": "西湖的游船从湖滨码头出发，绕三潭印月一圈大约四十五分钟，遇到六级以上的大风就停航退票。",
    "泰山": "泰山的索道在中天门上车，老人和孩子可以省去十八盘的台阶，检修期间只能步行登上南天门。",
    "漓江": "漓江竹筏漂流分成上下两段，水位超过警戒线时全部封航，阳朔码头会在早晨贴出当天的公告。",
}
QUERIES = {
    "长城": "八达岭的城楼几点关门",
    "故宫": "参观紫禁城要提前几天预约",
    "黄山": "在哪里能查到光明顶的云海概率",
    "西湖": "绕三潭印月坐船要多久",
    "泰山": "不想爬十八盘可以在哪里坐索道",
    "漓江": "阳朔的竹筏什么时候会封航",
}
STAGES = ("ingest", "filter", "dedup")
ALONE = Engine(workers=1)


def find_topic(prompt: str) -> str:
    """Find what the passage is about, which is the last thing in the prompt."""
    return next(topic for topic in PASSAGES if topic in prompt.rpartition("<passage>")[2])


def answer_with(query: str, passage: str) -> str:
    return json.dumps({"query": query, "answer": passage[:9]}, ensure_ascii=False)


def write_query(prompt: str) -> str:
    """Write what a good model would."""
    topic = find_topic(prompt)
    return answer_with(QUERIES[topic], PASSAGES[topic])


@pytest.fixture(scope="module")
def deduplicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of files, and a corpus of it after dedup."""
    folder = tmp_path_factory.mktemp("deduplicated")
    (folder / "files").mkdir()
    write_files(folder, PASSAGES.values())
    recipe = Recipe.model_validate({"sources": [source_of_files(folder)]})
    for stage in STAGES:
        run_data_stage(stage, folder / "corpus", recipe, ALONE)
    return folder


def write_files(folder: Path, passages: Iterable[str]) -> None:
    rows = [{"query": f"第{number}处景点的介绍", "positive": text} for number, text in enumerate(passages)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "files" / "a.jsonl").write_text(lines, "utf-8")


def source_of_files(folder: Path) -> dict[str, str]:
    return {"name": "files", "files": str(folder / "files" / "*.jsonl"), "read": "jsonl", "task": "retrieval"}


@pytest.fixture
def corpus(deduplicated: Path, tmp_path: Path) -> Path:
    """A copy of the corpus and of its files."""
    shutil.copytree(deduplicated / "files", tmp_path / "files", copy_function=shutil.copy2)
    return Path(shutil.copytree(deduplicated / "corpus", tmp_path / "corpus"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    with serve_llm() as running:
        running.answer = write_query
        yield running


@pytest.fixture
def make_recipe(server: LLMServer, deduplicated: Path) -> Callable[..., Recipe]:
    """Make a recipe with the source of files, and one that a language model writes, with keys of `synthesize`."""

    def make(folder: Path = deduplicated, more: dict[str, Any] | None = None, **keys: Any) -> Recipe:
        asked = {
            "server": {"url": server.url, "model": "m", "concurrency": 4},
            "budget": {"requests": 100, "tokens": 1e6},
            "personas": None,
        }
        written = {"name": "written", "category": "llm_generated", "format": "question_answer", "task": "retrieval"}
        sources = [source_of_files(folder), written | {"synthesize": asked | keys}]
        return Recipe.model_validate({"sources": sources, **(more or {})})

    return make


def run(corpus: Path, recipe: Recipe, *stages: str) -> Summary:
    """Run stages, the last of which is this one, which ends with the first three."""
    for stage in stages:
        run_data_stage(stage, corpus, recipe, ALONE)
    return run_data_stage("synthesize", corpus, recipe, ALONE)


def rows(corpus: Path, sql: str) -> list[dict[str, Any]]:
    return catalog.query(corpus, sql).to_pylist()


def list_shards(corpus: Path) -> dict[str, tuple[str, int]]:
    folders = (*STAGES, ANSWERS)
    return {
        str(shard): (read_footer(shard).content, shard.stat().st_mtime_ns)
        for folder in folders
        for shard in committed(corpus, folder)
    }


def test_a_run_writes_pairs_and_a_second_one_asks_nothing(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path, tmp_path: Path
) -> None:
    """The corpus is that of a run whose answers were a file."""
    summary = run(corpus, make_recipe())
    assert (summary.stage, summary.rows_in, summary.rows_out, summary.rejected.total()) == ("synthesize", 6, 6, 0)
    assert summary.notes["paid_for"]["written"] == {
        "requests": 6,
        "tokens": 6 * TOKENS,
        "unanswered": 0,
        "requests_left": 94,
        "tokens_left": 10**6 - 6 * TOKENS,
    }
    assert summary.notes["kept_by_kind"] == {"question": "6 of 6"}
    pairs = rows(corpus, "FROM dedup WHERE source = 'written'")
    assert {pair["query"]: pair["positive"] for pair in pairs} == {
        QUERIES[topic]: PASSAGES[topic] for topic in PASSAGES
    }
    of_files = {row["positive"]: row["pair_id"] for row in rows(corpus, "FROM dedup WHERE source = 'files'")}
    for pair in pairs:
        meta = json.loads(pair["meta"])
        assert (meta["model"], meta["pair_id"], meta["kind"]) == ("m", of_files[pair["positive"]], "question")
        assert re.fullmatch(r"question\.zh-[0-9a-f]+", meta["prompt"]) and isinstance(meta["seed"], int)
    before = list_shards(corpus)
    again = run(corpus, make_recipe(), *STAGES)
    assert len(server.requests) == 6 and list_shards(corpus) == before
    assert again.skipped == again.shards == 1 and again.notes["paid_for"]["written"]["requests"] == 0
    (answers,) = committed(corpus, ANSWERS)
    pl.read_parquet(answers).select("query", "positive").write_parquet(tmp_path / "answers.parquet")
    files, written = make_recipe().sources
    of_file = written.model_copy(update={"synthesize": None, "files": [str(tmp_path / "answers.parquet")]})
    for stage in STAGES:
        run_data_stage(stage, tmp_path / "other", Recipe(sources=[files, of_file]), ALONE)
        found, expected = (
            [pl.read_parquet(shard).drop("meta") for shard in committed(each, stage)]
            for each in (corpus, tmp_path / "other")
        )
        assert len(found) == len(expected) == 2
        assert all(one.equals(two) for one, two in zip(found, expected, strict=True))


def test_a_changed_passage_asks_for_itself_alone(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path, tmp_path: Path
) -> None:
    synthesize(corpus, make_recipe(tmp_path), ALONE)
    server.requests.clear()
    write_files(tmp_path, [text.replace("须提前七天", "须提前十天") for text in PASSAGES.values()])
    for stage in STAGES:
        run_data_stage(stage, corpus, make_recipe(tmp_path), ALONE)
    assert synthesize(corpus, make_recipe(tmp_path), ALONE).rows_out == 6
    assert len(server.requests) == 1 and "提前十天" in server.prompts[0]
    kept = rows(corpus, "SELECT positive FROM synthesis WHERE reason IS NULL")
    assert len(kept) == 6 and sum("提前十天" in pair["positive"] for pair in kept) == 1


def test_what_is_rejected_has_its_reason_and_the_raw_answer(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path
) -> None:
    bad = {
        "长城": "抱歉，我做不到。",
        "故宫": answer_with("根据本文，参观故宫要提前几天预约？", PASSAGES["故宫"]),
        "黄山": answer_with(QUERIES["西湖"] + "？", PASSAGES["黄山"]),
    }
    server.answer = lambda prompt: bad.get(find_topic(prompt)) or write_query(prompt)
    summary = synthesize(corpus, make_recipe(), ALONE)
    assert summary.rejected == {"unparsed": 1, "names_the_passage": 1, "duplicate_across_passages": 1}
    found = {row["reason"]: row for row in rows(corpus, "FROM synthesis WHERE reason IS NOT NULL")}
    assert found["unparsed"]["raw"] == bad["长城"] and found["unparsed"]["query"] is None
    assert found["names_the_passage"]["raw"] == bad["故宫"]
    assert len(rows(corpus, "FROM synthesis WHERE reason IS NULL")) == 3


def test_a_passage_that_fails_is_a_reject_and_is_asked_again(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path
) -> None:
    one = {"url": server.url, "model": "m", "concurrency": 1}
    server.faults = [(200, ""), (400, "too long"), (400, "too long")]  # with and without a JSON schema
    assert synthesize(corpus, make_recipe(server=one), ALONE).rejected == {"failed": 1}
    (failed,) = rows(corpus, "SELECT detail FROM synthesis WHERE reason = 'failed'")
    assert "400 too long" in failed["detail"]
    assert synthesize(corpus, make_recipe(server=one), ALONE).rejected == {}
    assert len(server.requests) == 8


def test_the_budget_is_a_hard_stop_that_is_told(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path
) -> None:
    told = synthesize(corpus, make_recipe(budget={"requests": 4, "tokens": 1e6}), ALONE).notes["paid_for"]["written"]
    assert (told["requests"], told["unanswered"], told["requests_left"]) == (4, 2, 0)
    assert len(server.requests) == 4
    budget = {"requests": 100, "tokens": 4 * TOKENS + 10}
    told = synthesize(corpus, make_recipe(budget=budget), ALONE).notes["paid_for"]["written"]
    assert (told["requests"], told["unanswered"], told["tokens_left"]) == (0, 2, 10)


def test_a_dry_run_asks_nobody(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path, tmp_path: Path, conan: Conan
) -> None:
    (tmp_path / "recipe.yaml").write_text(dump(make_recipe(queries=2, judge={})), "utf-8")
    command = ["synthesize", corpus, "--dry-run", "--recipe", tmp_path / "recipe.yaml"]
    code, out, _ = conan(*command, "--json")
    (source,) = json.loads(out)["sources"]
    assert code == 0 and source.pop("tokens") > 24 * 64
    numbers = {"passages": 6, "queries": 12, "requests": 12, "to_grade": 12}
    assert source == {"source": "written", **numbers, "requests_left": 100, "tokens_left": 10**6}
    assert "written: 12 of 12 queries to 6 passages are not written yet; up to 12 grades" in conan(*command)[1]
    assert not server.requests and not (corpus / REQUESTS).exists()


def test_pairs_are_graded_by_the_prompt_of_judge(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path
) -> None:
    """A lower bar keeps more, and asks nothing."""
    grades = {"长城": "3", "故宫": "2", "黄山": "1", "西湖": "0", "泰山": "well", "漓江": "3"}

    def answer(prompt: str) -> str:
        if "<passage>" in prompt:
            return write_query(prompt)
        return grades[next(topic for topic in PASSAGES if PASSAGES[topic] in prompt)]

    server.answer = answer
    summary = synthesize(corpus, make_recipe(judge={"min": 2}), ALONE)
    assert summary.rejected == {"grade": 2, "ungraded": 1} and len(server.requests) == 12
    details = rows(corpus, "SELECT detail FROM synthesis WHERE reason IS NOT NULL ORDER BY detail")
    assert [row["detail"] for row in details] == ["0 < 2", "1 < 2", "well"]
    assert synthesize(corpus, make_recipe(judge={"min": 1}), ALONE).rows_out == 4
    assert len(server.requests) == 12
    kept = rows(corpus, "SELECT grade FROM synthesis WHERE reason IS NULL ORDER BY grade")
    assert [row["grade"] for row in kept] == [1, 2, 3, 3]


def test_a_query_must_find_its_passage(
    server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path, tiny_model: Path
) -> None:
    """Where the cut lies is free to move: nobody is asked, nothing is encoded."""
    trip = {"model": str(tiny_model), "pooling": "mean", "max_length": 32}
    assert synthesize(corpus, make_recipe(round_trip=trip | {"within": 6}), ALONE).rows_out == 6
    found = rows(corpus, "SELECT rank, above FROM synthesis")
    ids = {row["pair_id"] for row in rows(corpus, "FROM dedup")}
    assert all(len(row["above"]) == row["rank"] - 1 and ids.issuperset(row["above"]) for row in found)
    ranks = [row["rank"] for row in found]
    assert 1 < max(ranks) <= 6
    shutil.rmtree(corpus / "vectors")
    summary = synthesize(corpus, make_recipe(round_trip=trip | {"within": 1}), ALONE)
    assert summary.rejected == {"round_trip": sum(rank > 1 for rank in ranks)}
    assert {row["rank"] for row in rows(corpus, "FROM synthesis WHERE reason IS NULL")} <= {1}
    assert f"rank {max(ranks)} > 1" in [row["detail"] for row in rows(corpus, "SELECT detail FROM synthesis")]
    assert len(server.requests) == 6 and not (corpus / "vectors").exists()


def test_nothing_is_kept(server: LLMServer, make_recipe: Callable[..., Recipe], corpus: Path) -> None:
    """The source then has no pairs, which is not an error; the reasons are told."""
    for answer in ("抱歉。", '{"query": "根据本文，门票要怎么预订？", "answer": null}'):
        server.answer = lambda _, answer=answer: answer
        asked = {"url": server.url, "model": f"m{len(answer)}"}
        summary = synthesize(corpus, make_recipe(server=asked, judge={}), ALONE)
        assert summary.rows_out == 0 and summary.rejected.total() == 6
    summary = run_data_stage("ingest", corpus, make_recipe(server=asked, judge={}), ALONE)
    assert summary.rows_out == 6 and not summary.bad_input and len(server.requests) == 12


def test_passages_must_be_there(make_recipe: Callable[..., Recipe], corpus: Path) -> None:
    none = {"sql": "SELECT positive AS text, pair_id FROM dedup WHERE source = 'file'"}
    with pytest.raises(RecipeError, match="no passage is chosen"):
        synthesize(corpus, make_recipe(passages=none), ALONE)


def test_a_server_that_fails_in_every_way(make_recipe: Callable[..., Recipe], corpus: Path, tmp_path: Path) -> None:
    """A process of its own does what the passages tell it to; a dead one loses no answer."""
    deeds = {
        "长城": "[[429 ok]]",
        "故宫": "[[half 500 ok]]",
        "黄山": "[[garbled]]",
        "西湖": "[[torn]]",
        "泰山": "[[refusal]]",
        "漓江": "[[language]]",
    }
    write_files(tmp_path, [deeds[topic] + text for topic, text in PASSAGES.items()])
    with llm_process(tmp_path / "log.jsonl") as process:
        asked = {"url": process.url, "model": "m", "concurrency": 3, "timeout": 5}
        recipe = make_recipe(tmp_path, passages={"sql": "SELECT positive AS text, pair_id FROM ingest"}, server=asked)
        run_data_stage("ingest", corpus, recipe, ALONE)
        summary = synthesize(corpus, recipe, ALONE)
        assert summary.rejected == {"failed": 1, "unparsed": 1, "refusal": 1, "wrong_language": 1}
        assert summary.rows_out == 2
        assert Counter(request["deed"] for request in process.requests) == {
            **dict.fromkeys(("429", "half", "500", "garbled", "torn", "refusal", "language"), 1),
            "ok": 2,
        }
        process.kill()
        with pytest.raises(LLMError, match="does not answer: ConnectError"):
            synthesize(corpus, recipe, ALONE)  # the garbled one is asked again
        process.start()
        assert synthesize(corpus, recipe, ALONE).rejected == summary.rejected
        assert len(process.requests) == 10


def test_a_recipe_without_such_a_source_is_refused(corpus: Path) -> None:
    with pytest.raises(RecipeError, match="no source with `synthesize:`"):
        synthesize(corpus, Recipe(), ALONE)
