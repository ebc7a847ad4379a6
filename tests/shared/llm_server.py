"""Stand-ins of a language model behind an OpenAI-compatible interface.

`serve_llm` serves from this process, with the answers that a test gives it. `llm_process` serves from a process of its
own, which can be killed, and does what the prompts themselves tell it to.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple

TOKENS = 100
"""The tokens that each answer costs."""


class Reply(NamedTuple):
    """A status and a body, after how many seconds it is sent, and whether the connection ends halfway."""

    status: int
    body: str
    delay: float = 0.0
    half: bool = False
    retry_after: str = "0"


def envelope(content: str | None) -> str:
    """The body of an answer."""
    usage = {"prompt_tokens": TOKENS - 10, "completion_tokens": 10, "total_tokens": TOKENS}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage})


@dataclass
class LLMServer:
    """The server's address, the requests it has got, its answer to each prompt, and the faults that come first."""

    url: str = ""
    answer: Callable[[str], str] = lambda prompt: "3"
    faults: list[tuple[int, str]] = field(default_factory=list)  # status and body, each for one request
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    running: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]

    def reply(self, request: dict[str, Any], key: str | None) -> Reply:
        with self.lock:
            self.running += 1
            self.most_at_once = max(self.most_at_once, self.running)
            self.requests.append(request)
            self.keys.append(key)
            status, body = self.faults.pop(0) if self.faults else (200, "")
        if status == 200 and not body:
            body = envelope(self.answer(request["messages"][0]["content"]))
        with self.lock:
            self.running -= 1
        return Reply(status, body)


@contextmanager
def serve_llm() -> Iterator[LLMServer]:
    """Serve `/v1/chat/completions` from this process."""
    state = LLMServer()
    with _Server(state.reply) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()


TOLD = re.compile(r"\[\[([a-z0-9 ]+)\]\]")
"""The deeds that a prompt asks for, such as `[[429 half ok]]`: one for each time it comes, the last for all further
ones. A prompt that asks for none gets an answer."""
SLOW = 0.3
"""The seconds that `slow` takes."""
PASSAGE = re.compile(r"<passage>\n(.*?)\n</passage>", re.DOTALL)


class ToldServer(NamedTuple):
    """Does what prompts tell it to, and notes it in a file first, by which it knows after a restart what was before."""

    log: Path
    delay: float
    seen: Counter[str]
    lock: Lock

    def reply(self, request: dict[str, Any], _: str | None) -> Reply:
        prompt = request["messages"][-1]["content"]
        told = TOLD.search(prompt)
        deeds = told[1].split() if told else ["ok"]
        with self.lock:
            deed = deeds[min(self.seen[prompt], len(deeds) - 1)]
            self.seen[prompt] += 1
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"prompt": prompt, "deed": deed}) + "\n")
        if deed == "die":
            os._exit(1)
        found = write_query(prompt)
        return {
            "ok": Reply(200, envelope(found), self.delay),
            "slow": Reply(200, envelope(found), SLOW),
            "429": Reply(429, "too many requests", self.delay, retry_after="1"),
            "400": Reply(400, "context length exceeded", self.delay),
            "500": Reply(500, "out of memory", self.delay),
            "half": Reply(200, envelope(found), self.delay, half=True),
            "garbled": Reply(200, envelope(found)[:-20], self.delay),
            "none": Reply(200, envelope(None), self.delay),
            "torn": Reply(200, envelope(found[:12]), self.delay),
            "refusal": Reply(
                200, envelope('{"query": "抱歉，我无法根据这段材料提出问题。", "answer": null}'), self.delay
            ),
            "language": Reply(200, envelope('{"query": "Какова длина этой реки?", "answer": null}'), self.delay),
        }[deed]


def write_query(prompt: str) -> str:
    """Write a query to the prompt's passage, the same whenever it is asked; grade 3 if there is no passage."""
    passages = PASSAGE.findall(prompt)
    if not passages:
        return "3"
    clauses = [clause for clause in re.split(r"[，。！？；：\n,.!?;:]", TOLD.sub("", passages[-1])) if len(clause) > 3]
    number = int.from_bytes(blake2b(prompt.encode(), digest_size=4).digest())
    clause = (clauses or ["没有"])[number % max(len(clauses), 1)].strip()
    return json.dumps(
        {"query": f"{clause[:20]}，这是怎么回事（{number % 1000}）？", "answer": clause}, ensure_ascii=False
    )


@dataclass
class LLMProcess:
    """The process, its address, and the file in which it notes each request: `prompt`, `deed`."""

    log: Path
    delay: float = 0.0
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()] if self.log.exists() else []

    def start(self) -> None:
        """Start it, or start it again at the port that it had."""
        self.kill()
        command = [sys.executable, "-I", "-S", __file__, str(self.port), str(self.log), str(self.delay)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None


@contextmanager
def llm_process(log: Path, delay: float = 0.0) -> Iterator[LLMProcess]:
    """Serve `/v1/chat/completions` from a process of its own, each answer after `delay` seconds."""
    served = LLMProcess(log, delay)
    served.start()
    try:
        yield served
    finally:
        served.kill()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any], str | None], Reply], port: int = 0) -> None:
        self.reply = reply
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.server.reply(request, self.headers.get("Authorization"))
        if self.path != "/v1/chat/completions":
            reply = Reply(404, "no such path")
        time.sleep(reply.delay)
        data = reply.body.encode()
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", reply.retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if reply.half else data)
        self.close_connection |= reply.half


if __name__ == "__main__":
    port, log, delay = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    before = log.read_text("utf-8").splitlines() if log.exists() else []
    told = ToldServer(log, delay, Counter(json.loads(line)["prompt"] for line in before), Lock())
    with _Server(told.reply, port) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
