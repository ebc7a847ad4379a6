"""Plan the requests for a source: what each passage is asked, in rows, and what is sent."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ...schemas.synthesize_settings import SynthesizeSettings, WriterSettings
from ..judge.grades import build_body, build_messages
from ..llm_client.client import Request
from ..llm_client.tokens import most_tokens
from .draws import draw
from .prompts import RESPONSE_FORMAT, messages, version

ROWS = {
    "request": pl.String,
    "pair_id": pl.String,
    "passage": pl.String,
    "original": pl.String,  # the query that a translation is of; null for other kinds
    "hash": pl.String,  # of the text that the prompt shows
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
    """Return a row for each query, with the columns of ROWS, and its request; `passages` as `choose_passages`.

    The translation of a query that has several passages is one request, with a row for each of them.
    """
    rows, requests = [], []
    for text, original, pair_id, text_hash in passages.select("text", "query", "pair_id", "hash").iter_rows():
        shown = text if original is None else original
        for number in range(settings.queries):
            drawn, seed = draw(shown, number, settings, personas)
            request = _build_request(messages(shown, drawn), settings.server, seed)
            requests.append(request)
            prompt = version(drawn.kind, drawn.language)
            rows.append((request.key, pair_id, text, original, text_hash, *drawn, prompt, seed))
    return pl.DataFrame(rows, ROWS, orient="row"), requests


def _build_request(chat: Sequence[Mapping[str, str]], server: WriterSettings, seed: int) -> Request:
    body: dict[str, Any] = {
        "model": server.model,
        "messages": list(chat),
        "temperature": server.temperature,
        "max_tokens": server.answer_tokens,
        "seed": seed,
        "response_format": RESPONSE_FORMAT,
    }
    return Request(body, most_tokens(chat, server.answer_tokens))


def plan_grading(queries: pl.Series, passages: pl.Series, server: WriterSettings) -> list[Request]:
    """Build the requests for the grades of pairs."""
    chats = [build_messages(query, passage, []) for query, passage in zip(queries, passages, strict=True)]
    length = server.answer_tokens
    return [Request(build_body(server.model, chat, length), most_tokens(chat, length)) for chat in chats]
