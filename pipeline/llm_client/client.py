"""Ask a language model behind an OpenAI-compatible interface (`/chat/completions`), many requests at a time.

Answers are cached in a file as they come, so that a killed run pays for none of them again, and the budget holds for
all that the file has paid for.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from ...schemas.errors import ConanError
from ...schemas.judge_settings import LLMSettings

Messages = Sequence[Mapping[str, str]]
"""The messages of a request, each with `role` and `content`."""

ATTEMPTS = 6
"""Chosen here: with waits of 1 to 16 seconds in between, a server that restarts within half a minute is waited for."""
FIRST_WAIT = 1.0
TIMEOUT = 120.0
"""Chosen here: seconds; a busy server with one GPU takes tens of seconds for a long prompt."""
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses after which the same request may succeed."""


class LLMError(ConanError):
    """A language model that can't be reached, or that refuses a request."""


@dataclass(frozen=True)
class Answer:
    """A cached answer: the hash of its request, its text, and the tokens of both, as the server counts them."""

    request: str
    text: str
    tokens: int


class Asked(NamedTuple):
    """The answer to each request, None where the budget was spent before; and the tokens that this run has paid for."""

    answers: list[str | None]
    tokens: int


def ask(
    requests: Sequence[Messages], settings: LLMSettings, cache: Path, progress: Callable[[int, int], None]
) -> Asked:
    """Ask what the cache does not know, `concurrency` requests at a time, until the budget is spent.

    The budget, `max_tokens`, is for all answers in the file. Requests that are in flight when it is spent are still
    paid for.

    Raises:
        LLMError: the server can't be reached or refuses a request; the answers so far are in the cache.
    """
    keys = [hash_request(settings, messages) for messages in requests]
    known = read_cache(cache)
    waiting = {key: messages for key, messages in zip(keys, requests, strict=True) if key not in known}
    before = spent = sum(answer.tokens for answer in known.values())
    total, left = len(waiting), list(waiting.items())[::-1]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (
        cache.open("a", encoding="utf-8") as file,
        httpx2.Client(base_url=settings.url, timeout=TIMEOUT, headers=_headers(settings)) as client,
        ThreadPoolExecutor(settings.concurrency) as threads,
    ):
        running: set[Future[Answer]] = set()
        failed: BaseException | None = None
        while running or left:
            if failed or spent >= settings.max_tokens:
                left.clear()
            while left and len(running) < settings.concurrency:
                running.add(threads.submit(_ask_one, client, settings, *left.pop()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if error := future.exception():  # the others in flight are paid for, so wait for them
                    failed = error
                    continue
                answer = future.result()
                file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
                file.flush()
                known[answer.request] = answer
                spent += answer.tokens
            progress(total - len(left) - len(running), total)
    if failed:
        raise failed
    return Asked([known[key].text if key in known else None for key in keys], spent - before)


def hash_request(settings: LLMSettings, messages: Messages) -> str:
    """Return the hash of a request, of all that decides its answer: the model, the messages, the sampling."""
    return hashlib.blake2b(json.dumps(_body(settings, messages)).encode(), digest_size=16).hexdigest()


def read_cache(file: Path) -> dict[str, Answer]:
    """Read the answers of a file by their requests. The last line of a killed run, if torn, is removed."""
    if not file.exists():
        return {}
    whole, end, torn = file.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(file, len(whole) + len(end))
    answers = (Answer(**json.loads(line)) for line in whole.splitlines())
    return {answer.request: answer for answer in answers}


def _headers(settings: LLMSettings) -> dict[str, str]:
    key = os.environ.get(settings.key_variable)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _body(settings: LLMSettings, messages: Messages) -> dict[str, Any]:
    return {
        "model": settings.model,
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": settings.answer_tokens,
    }


def _ask_one(client: httpx2.Client, settings: LLMSettings, key: str, messages: Messages) -> Answer:
    """Send a request, again and again while the server is busy or away."""
    problem = ""
    for attempt in range(ATTEMPTS):
        try:
            response = client.post("chat/completions", json=_body(settings, messages))
        except httpx2.TransportError as error:
            problem, pause = f"{type(error).__name__}: {error}", FIRST_WAIT * 2**attempt
        else:
            if response.status_code == 200:
                return _read(key, response)
            problem = f"{response.status_code} {response.text[:300]}"
            if response.status_code not in _PASSING:
                break
            asked = response.headers.get("Retry-After", "")
            pause = float(asked) if asked.isdecimal() else FIRST_WAIT * 2**attempt
        if attempt + 1 < ATTEMPTS:
            time.sleep(pause)
    raise LLMError(f"{settings.url}: {settings.model} does not answer: {problem}")


def _read(key: str, response: httpx2.Response) -> Answer:
    """Read a response. Raises LLMError if it has no answer, or does not say what it costs."""
    try:
        body = response.json()
        return Answer(key, str(body["choices"][0]["message"]["content"] or ""), int(body["usage"]["total_tokens"]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LLMError(
            f"{response.url}: expected an answer in `choices` and `usage.total_tokens`, found {response.text[:300]}"
        ) from error
