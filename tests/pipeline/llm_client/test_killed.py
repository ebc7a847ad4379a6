"""Requests of a process that is killed: what was answered is not asked again."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from conan_embedding.pipeline.llm_client.client import Budget, Request, ask
from conan_embedding.schemas.server_settings import ServerSettings
from llm_server import LLMProcess, llm_process

REQUESTS, CONCURRENCY = 120, 4
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_killed import run
run(sys.argv[1], Path(sys.argv[2]))
"""


def run(url: str, cache: Path) -> list[str | None]:
    chats = [[{"role": "user", "content": f"<passage>\n第{number}号\n</passage>"}] for number in range(REQUESTS)]
    requests = [Request({"model": "m", "messages": chat}) for chat in chats]
    server = ServerSettings(url=url, model="m", concurrency=CONCURRENCY)
    found = ask(requests, server, Budget(1e9), cache, lambda *_: None)
    return [answer and answer.text for answer in found.answers]


def test_a_kill_loses_at_most_what_is_in_flight(tmp_path: Path) -> None:
    with llm_process(tmp_path / "log.jsonl", delay=0.01) as server:
        for stop in (30, 70):
            kill_after(server, stop, tmp_path / "cache")
        asked = Counter(request["prompt"] for request in server.requests)
        assert 70 - 2 * CONCURRENCY <= len(asked) < REQUESTS
        answers = run(server.url, tmp_path / "cache")
        assert None not in answers and answers == run(server.url, tmp_path / "cache")
        asked = Counter(request["prompt"] for request in server.requests)
        assert len(asked) == REQUESTS
        assert asked.total() - REQUESTS <= 2 * CONCURRENCY


def kill_after(server: LLMProcess, requests: int, cache: Path) -> None:
    """Run a process that asks, and kill it once the server has got this many requests in all."""
    command = [sys.executable, "-c", PROGRAM, server.url, str(cache), str(Path(__file__).parent)]
    path = {"PYTHONPATH": str(Path(__file__).parents[2] / "shared")}
    process = subprocess.Popen(command, env=path)
    while len(server.requests) < requests and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None
    process.kill()
    process.wait()
