"""Plan the requests for a source: what each passage is asked, in rows, and what is sent."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ...schemas.synthesize_settings import ServerSettings, SynthesizeSettings
from ..judge.grades import build_body, build_messages
from ..llm_client.client import Request, Server
from .draws import draw
from .prompts import RESPONSE_FORMAT, messages, version

_OF_CHAT = 64
"""Chosen here: tokens that a chat template puts around a message; those that are known have fewer than 32."""

BYTES_PER_TOKEN = 3
"""Chosen here: a Chinese character has three bytes and is at most about a token; English has about four per token."""

ROWS = {
    "request": pl.String,
    "pair_id": pl.String,
    "passage": pl.String,
    "hash": pl.String,  # of the passage
    "kind": pl.String,
    "language": pl.String,
    "persona": pl.String,
    "difficulty": pl.String,
    "length": pl.String,
    "prompt": pl.String,
    "seed": pl.Int64,
}
"""The columns of a request."""


def plan_requests(
    passages: pl.DataFrame, settings: SynthesizeSettings, personas: Mapping[str, Sequence[str | None]]
) -> tuple[pl.DataFrame, list[Request]]:
    """Return a row for each request, with the columns of ROWS, and the requests; `passages` as `choose_passages`."""
    rows, requests = [], []
    for text, pair_id, text_hash in passages.select("text", "pair_id", "hash").iter_rows():
        for number in range(settings.queries):
            drawn, seed = draw(text, number, settings, personas)
            request = _build_request(messages(text, drawn), settings.server, seed)
            requests.append(request)
            rows.append((request.key, pair_id, text, text_hash, *drawn, version(drawn.kind, drawn.language), seed))
    return pl.DataFrame(rows, ROWS, orient="row"), requests


def _build_request(chat: Sequence[Mapping[str, str]], server: ServerSettings, seed: int) -> Request:
    body: dict[str, Any] = {
        "model": server.model,
        "messages": list(chat),
        "temperature": server.temperature,
        "max_tokens": server.answer_tokens,
        "seed": seed,
        "response_format": RESPONSE_FORMAT,
    }
    return Request(body, most_tokens(chat, server))


def plan_grading(queries: pl.Series, passages: pl.Series, server: ServerSettings) -> list[Request]:
    """Build the requests for the grades of pairs."""
    chats = [build_messages(query, passage, []) for query, passage in zip(queries, passages, strict=True)]
    return [Request(build_body(server.model, chat, server.answer_tokens), most_tokens(chat, server)) for chat in chats]


def most_tokens(chat: Sequence[Mapping[str, str]], server: ServerSettings) -> int:
    """Return the most tokens that a request may cost: a token has at least a byte."""
    return sum(len(message["content"].encode()) + _OF_CHAT for message in chat) + server.answer_tokens


def find_server(settings: ServerSettings) -> Server:
    """Return where requests are sent."""
    return Server(settings.url, settings.key_env, settings.concurrency, settings.timeout)


def estimate_tokens(requests: Sequence[Request], answer_tokens: float) -> int:
    """Estimate what requests cost, of whose answers each has `answer_tokens`; most models count fewer."""
    prompts = (message["content"] for request in requests for message in request.body["messages"])
    return sum(len(prompt.encode()) for prompt in prompts) // BYTES_PER_TOKEN + round(len(requests) * answer_tokens)
