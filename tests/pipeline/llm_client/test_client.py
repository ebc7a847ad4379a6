"""The client of language models against a stand-in server: cache, budget, retries, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conan_embedding.pipeline.llm_client import client as module
from conan_embedding.pipeline.llm_client.client import Asked, Budget, LLMError, Request, ask, read_cache
from conan_embedding.schemas.server_settings import ServerSettings
from llm_server import TOKENS, LLMServer, serve_llm


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve_llm() as running:
        running.answer = lambda prompt: f"re: {prompt}"
        yield running


class Told(NamedTuple):
    """The texts of the answers, and the tokens that were paid for."""

    answers: list[str | None]
    tokens: int


def ask_all(
    server: LLMServer,
    cache: Path,
    prompts: list[str],
    model: str = "m",
    concurrency: int = 8,
    budget: Budget | None = None,
    most_tokens: int = 0,
    key_env: str = "OPENAI_API_KEY",
    patience: int = 0,
    **more: object,
) -> Asked:
    bodies = [{"model": model, "messages": [{"role": "user", "content": prompt}], **more} for prompt in prompts]
    requests = [Request(body, most_tokens) for body in bodies]
    budget = budget or Budget(10_000)
    settings = ServerSettings(url=server.url, model=model, key_env=key_env, concurrency=concurrency)
    return ask(requests, settings, budget, cache, lambda *_: None, patience)


def run(server: LLMServer, cache: Path, prompts: list[str], **settings: Any) -> Told:
    asked = ask_all(server, cache, prompts, **settings)
    return Told([answer and answer.text for answer in asked.answers], asked.tokens)


def test_answers_come_in_order_and_are_paid_for_once(server: LLMServer, tmp_path: Path) -> None:
    cache = tmp_path / "answers" / "m.jsonl"
    prompts = [f"问{number}" for number in range(20)]
    first = run(server, cache, [*prompts[:10], prompts[0]], concurrency=3)
    assert first == Told([f"re: {prompt}" for prompt in [*prompts[:10], prompts[0]]], 10 * TOKENS)
    assert 1 <= server.most_at_once <= 3
    assert server.requests[0]["model"] == "m"
    second = run(server, cache, prompts)
    assert second == Told([f"re: {prompt}" for prompt in prompts], 10 * TOKENS)
    assert len(server.requests) == len(set(server.prompts)) == 20
    run(server, cache, prompts[:1], model="other")
    assert len(server.requests) == 21


def test_the_budget_holds_over_runs(server: LLMServer, tmp_path: Path) -> None:
    prompts = [str(number) for number in range(10)]
    first = run(server, tmp_path / "a", prompts, budget=Budget(3 * TOKENS), concurrency=1)
    assert first.answers == ["re: 0", "re: 1", "re: 2", *[None] * 7] and first.tokens == 3 * TOKENS
    assert run(server, tmp_path / "a", prompts, budget=Budget(3 * TOKENS)) == Told(first.answers, 0)
    more = run(server, tmp_path / "a", prompts, budget=Budget(4 * TOKENS + 1), concurrency=1)
    assert more.answers.count(None) == 5 and len(server.requests) == 5


def test_a_torn_answer_of_a_killed_run_is_asked_again(server: LLMServer, tmp_path: Path) -> None:
    cache = tmp_path / "a"
    run(server, cache, ["0", "1"], concurrency=1)
    whole = cache.read_bytes()
    for cut in (1, 20, len(whole) // 3):
        cache.write_bytes(whole[:-cut])
        server.requests.clear()
        assert run(server, cache, ["0", "1"]).answers == ["re: 0", "re: 1"]
        assert server.prompts == ["1"]
        assert sorted(answer.text for answer in read_cache(cache).values()) == ["re: 0", "re: 1"]


def test_what_passes_is_tried_again(server: LLMServer, tmp_path: Path) -> None:
    server.faults = [(429, "slow down"), (503, "starting"), (500, "oops")]
    assert run(server, tmp_path / "a", ["0"]).answers == ["re: 0"]
    assert len(server.requests) == 4
    server.faults = [(503, "down for good")] * 9
    with pytest.raises(LLMError, match="m does not answer: 503 down for good"):
        run(server, tmp_path / "a", ["1"])
    assert len(server.requests) == 4 + module.ATTEMPTS


@pytest.mark.parametrize(
    "fault, message",
    [
        ((401, "no such key"), "m does not answer: 401 no such key"),
        ((404, "no model m"), "404 no model m"),
        ((200, "<html>"), "expected an answer in `choices`"),
        ((200, json.dumps({"choices": [{"message": {"content": "3"}}]})), "and `usage.total_tokens`"),
    ],
)
def test_what_does_not_pass_is_told_and_what_was_answered_is_kept(
    fault: tuple[int, str], message: str, server: LLMServer, tmp_path: Path
) -> None:
    run(server, tmp_path / "a", ["0"])
    server.faults = [fault]
    with pytest.raises(LLMError, match=message):
        run(server, tmp_path / "a", [str(number) for number in range(30)], concurrency=4)
    answered = len(server.requests) - 1
    assert 1 <= answered <= 8 and len(read_cache(tmp_path / "a")) == answered


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.0)
    with pytest.raises(LLMError, match=r"http://127.0.0.1:9/v1: m does not answer: ConnectError"):
        run(LLMServer(url="http://127.0.0.1:9/v1"), tmp_path / "a", ["0"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
    host: str, server: LLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.url = server.url.replace("127.0.0.1", host)
    assert run(server, tmp_path / "m.jsonl", ["问"]).answers == ["re: 问"]


def test_a_sender_knows_whether_it_reaches_the_server(server: LLMServer) -> None:
    for url, there in ((server.url, True), ("http://127.0.0.1:9/v1", False)):
        with module._Sender(ServerSettings(url=url, model="m"), None) as sender:
            assert sender.reaches() == there
    assert not server.requests


def test_the_key_is_sent_from_the_environment(
    server: LLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(server, tmp_path / "a", ["0"])
    monkeypatch.setenv("MY_KEY", "secret")
    run(server, tmp_path / "a", ["1"], key_env="MY_KEY")
    assert server.keys == [None, "Bearer secret"]
    assert "secret" not in (tmp_path / "a").read_text("utf-8")


def test_a_reserved_budget_is_a_hard_stop(server: LLMServer, tmp_path: Path) -> None:
    """No request is sent whose longest answer might not fit, however many are in flight."""
    prompts = [str(number) for number in range(20)]
    asked = ask_all(server, tmp_path / "a", prompts, budget=Budget(5 * TOKENS), most_tokens=TOKENS + 50)
    assert asked.tokens == 4 * TOKENS and asked.answers.count(None) == 16 and asked.problems == {}
    asked = ask_all(server, tmp_path / "a", prompts, budget=Budget(1e9, requests=7))
    assert len(server.requests) == 7 and asked.answers.count(None) == 13


def test_a_request_that_fails_costs_only_itself(server: LLMServer, tmp_path: Path) -> None:
    server.faults = [(200, ""), (400, "too long"), (200, "<html>"), (413, "too long")]
    asked = ask_all(server, tmp_path / "a", [str(number) for number in range(6)], concurrency=1, patience=1)
    assert [answer and answer.text for answer in asked.answers] == ["re: 0", None, None, None, "re: 4", "re: 5"]
    assert [problem.partition("m does not answer: ")[2] for problem in asked.problems.values()] == [
        "400 too long",
        "",
        "413 too long",
    ]


@pytest.mark.parametrize("fault", [(503, "down"), (422, "no such key")])
def test_a_server_that_answers_nothing_is_given_up(fault: tuple[int, str], server: LLMServer, tmp_path: Path) -> None:
    server.faults = [fault] * 10 * module.ATTEMPTS
    with pytest.raises(LLMError, match=f"m does not answer: {fault[0]} {fault[1]}"):
        ask_all(server, tmp_path / "a", [str(number) for number in range(9)], concurrency=1, patience=2)
    assert len(server.requests) == (3 * module.ATTEMPTS if fault[0] == 503 else 3)


def test_a_server_without_structured_output_is_asked_without(server: LLMServer, tmp_path: Path) -> None:
    server.faults = [(400, "unknown key response_format")]
    prompts = ["0", "1", "2"]
    answers = run(server, tmp_path / "a", prompts, concurrency=1, response_format={"type": "json_schema"}).answers
    assert answers == ["re: 0", "re: 1", "re: 2"]
    assert ["response_format" in request for request in server.requests] == [True, False, False, False]
