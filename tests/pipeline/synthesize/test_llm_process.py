"""The stand-in of a language model in a process of its own: it does what prompts tell it to, also after a restart."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from conan_embedding.pipeline.synthesize.answers import parse
from conan_embedding.pipeline.synthesize.prompts import KINDS, Draw, messages
from llm_server import SLOW, LLMProcess, llm_process

CLIENT = httpx2.Client(timeout=5)
PASSAGE = "长江全长六千三百余公里，是亚洲第一长河。"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMProcess]:
    with llm_process(tmp_path_factory.mktemp("llm") / "log.jsonl") as running:
        yield running


def ask(server: LLMProcess, passage: str, kind: str = "question") -> httpx2.Response:
    chat = messages(passage, Draw(kind, "zh", None, "easy", "short"))
    return CLIENT.post(f"{server.url}/chat/completions", json={"model": "m", "messages": chat})


def content(response: httpx2.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def test_answers_are_those_of_the_passage(server: LLMProcess) -> None:
    answers = [content(ask(server, PASSAGE, kind)) for kind in KINDS]
    assert answers == [content(ask(server, PASSAGE, kind)) for kind in KINDS]
    written = [parse(answer, kind) for answer, kind in zip(answers, KINDS, strict=True)]
    assert all(each and each.query.partition("，这是")[0] in PASSAGE for each in written)
    assert CLIENT.post(f"{server.url}/chat/completions", json={"messages": [{"content": "?"}]}).text.count('"3"') == 1


def test_faults_are_told_by_the_passage(server: LLMProcess) -> None:
    busy = f"[[429 500 400 ok]]{PASSAGE}"
    found = [ask(server, busy) for _ in range(5)]
    assert [each.status_code for each in found] == [429, 500, 400, 200, 200]
    assert found[0].headers["Retry-After"] == "1" and content(found[3]) == content(found[4])
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(server, f"[[half]]{PASSAGE}")
    with pytest.raises(json.JSONDecodeError):
        ask(server, f"[[garbled]]{PASSAGE}").json()
    assert content(ask(server, f"[[none]]{PASSAGE}")) is None
    assert parse(content(ask(server, f"[[torn]]{PASSAGE}")), "question") is None
    started = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda number: ask(server, f"[[slow]]{number}{PASSAGE}").is_success, range(8)))
    assert SLOW < time.monotonic() - started < 3 * SLOW


def test_it_remembers_over_its_own_death(tmp_path: Path) -> None:
    with llm_process(tmp_path / "log.jsonl") as server:
        with pytest.raises(httpx2.TransportError):
            ask(server, f"[[die die ok]]{PASSAGE}")
        assert server.process and server.process.wait(5) == 1
        with pytest.raises(httpx2.ConnectError):
            ask(server, PASSAGE)
        url = server.url
        server.start()
        assert server.url == url
        with pytest.raises(httpx2.TransportError):
            ask(server, f"[[die die ok]]{PASSAGE}")
        server.start()
        assert ask(server, f"[[die die ok]]{PASSAGE}").is_success
        assert [each["deed"] for each in server.requests] == ["die", "die", "ok"]
