"""A stand-in of a language model behind an OpenAI-compatible interface, with the answers that a test gives it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

TOKENS = 100
"""The tokens that each answer costs."""


@dataclass
class LLMServer:
    """The server's address, the requests it has got, its answer to each prompt, and the faults that come first."""

    url: str = ""
    answer: Callable[[str], str] = lambda prompt: "3"
    faults: list[tuple[int, str]] = field(default_factory=list)  # status and body, each for one request
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]


@contextmanager
def serve_llm() -> Iterator[LLMServer]:
    """Serve `/v1/chat/completions`."""
    state = LLMServer()
    handler = type("Handler", (_Handler,), {"state": state, "lock": Lock()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    state: LLMServer
    lock: Lock
    running = 0
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        with self.lock:
            kind.running += 1
            self.state.most_at_once = max(self.state.most_at_once, kind.running)
            self.state.requests.append(request)
            self.state.keys.append(self.headers.get("Authorization"))
            status, body = self.state.faults.pop(0) if self.state.faults else (200, "")
        if status == 200 and not body:
            content = self.state.answer(request["messages"][0]["content"])
            body = json.dumps({"choices": [{"message": {"content": content}}], "usage": {"total_tokens": TOKENS}})
        if self.path != "/v1/chat/completions":
            status, body = 404, "no such path"
        with self.lock:
            kind.running -= 1
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)
