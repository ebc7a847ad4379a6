"""A stand-in of a language model, behind the interface of a real one: it writes the demo's queries, and grades them.

It understands the passages that world.py writes, and makes the mistakes of a small model in some of its answers. The
same prompt gets the same answer.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Thread

from .world import ASKED_SLOTS, Fact, query, recognise, variation

FAULTY_SHARE = 0.2
"""Chosen here: the share of its queries that have a fault; enough for the demo to show each."""

PASSAGE = re.compile(r"<passage>\n(.*?)\n</passage>", re.DOTALL)
PAIR = re.compile(r"查询：(.*?)\n.*待判断的文本：(.*)\n\n", re.DOTALL)
KEYWORDS = "写一个搜索词组"
NOT_UNDERSTOOD = "抱歉，这段材料我看不懂。"


def answer(prompt: str) -> str:
    """Answer a prompt of `conan synthesize`: write a query to its last passage, or grade its pair from 0 to 3."""
    passages = PASSAGE.findall(prompt)
    if not passages:
        return grade(*PAIR.findall(prompt)[0])
    fact, rng = recognise(passages[-1]), Random(prompt)
    if fact is None:
        return NOT_UNDERSTOOD
    if rng.random() < FAULTY_SHARE:
        return rng.choice(FAULTS)(rng, fact, passages[-1])
    if KEYWORDS in prompt:
        return to_answer(" ".join(fact.words[slot].asked for slot in ASKED_SLOTS))
    return to_answer(query(rng, fact, "question"), find_cause(fact, passages[-1]))


def grade(asked: str, passage: str) -> str:
    """Grade by how much of what identifies the passage's fact is in the query: all, all but one, all but two."""
    fact = recognise(passage)
    named = sum(fact.words[slot].asked in asked for slot in ASKED_SLOTS) if fact else 0
    return str(max(0, named - len(ASKED_SLOTS) + 3))


def to_answer(asked: str, quote: str | None = None) -> str:
    """Dump a query and its answer as the prompts want them."""
    return json.dumps({"query": asked, "answer": quote}, ensure_ascii=False)


def find_cause(fact: Fact, passage: str) -> str:
    """Find how the passage words the cause."""
    cause = fact.words["cause"]
    return cause.told if cause.told in passage else cause.asked


# The faults of small models: each function returns an answer that has one.


def name_the_passage(rng: Random, fact: Fact, passage: str) -> str:
    """Ask about a text that nobody who searches has seen."""
    return to_answer(
        f"本文里的{fact.words['entity'].asked}为什么{fact.words['change'].asked}？", find_cause(fact, passage)
    )


def copy_sentence(rng: Random, fact: Fact, passage: str) -> str:
    """Copy the first sentence."""
    return to_answer(passage.partition("。")[0], find_cause(fact, passage))


def stop_halfway(rng: Random, fact: Fact, passage: str) -> str:
    """Break off in the middle of the query."""
    return to_answer(query(rng, fact, "question"))[:20]


def ask_twice(rng: Random, fact: Fact, passage: str) -> str:
    """Ask two questions."""
    return to_answer(f"{query(rng, fact, 'question')}当地打算怎么应对？", find_cause(fact, passage))


def ask_vaguely(rng: Random, fact: Fact, passage: str) -> str:
    """Ask what could be asked about any passage."""
    return to_answer("当地最近有什么变化？", find_cause(fact, passage))


def ask_elsewhere(rng: Random, fact: Fact, passage: str) -> str:
    """Ask about something else that happened elsewhere."""
    other = variation(rng, fact, ["entity", "place"])
    return to_answer(query(rng, other, "question"), find_cause(fact, passage))


FAULTS: list[Callable[[Random, Fact, str], str]] = [
    name_the_passage,
    copy_sentence,
    stop_halfway,
    ask_twice,
    ask_vaguely,
    ask_elsewhere,
]


@contextmanager
def serve() -> Iterator[str]:
    """Serve `/v1/chat/completions` on a free port of this machine, until the block is left; yield the base URL."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client that keeps its connection does not keep the demo from ending


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was killed
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        text = answer(prompt)
        usage = {"completion_tokens": len(text), "total_tokens": len(prompt) + len(text)}  # a character is a token
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
