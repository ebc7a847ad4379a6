"""Ask a language model behind an OpenAI-compatible interface (`/chat/completions`), many requests at a time.

Answers are cached in a file as they come, so that a killed run pays for none of them again, and the budget holds for
all that the file has paid for.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx2

from ...schemas.errors import ConanError
from ...schemas.server_settings import ServerSettings
from ..engine.calls import Engine
from ..engine.nodes import open_senders

ATTEMPTS = 6
"""Chosen here: with waits of 1 to 16 seconds in between, a server that restarts within half a minute is waited for."""
FIRST_WAIT = 1.0
REACHED_WITHIN = 5.0
"""Chosen here: seconds in which a node of a cluster must have reached a server, else it sends nothing to it."""
_HERE = Engine()
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses after which the same request may succeed."""
_DIRECT = ("all://localhost", "all://127.0.0.1")
"""Servers that are asked directly, even if HTTP_PROXY is set."""
_OF_REQUEST = {400, 413, 422}
"""HTTP statuses that refuse a request for what it says, such as a prompt that is too long for the model."""


class LLMError(ConanError):
    """A language model that can't be reached, or that refuses a request."""


class RefusedRequestError(LLMError):
    """A request that is refused for what it says; others may succeed."""


class Budget(NamedTuple):
    """The most that may be paid for by all answers in a cache."""

    tokens: float
    requests: float = inf


class Request(NamedTuple):
    """A request's body, and the most tokens that it may cost.

    It is sent only if that many are left of the budget. With 0, what is in flight when the budget is spent is still
    paid for.
    """

    body: dict[str, Any]
    most_tokens: int = 0

    @property
    def key(self) -> str:
        """A hash of all that decides the answer: the model, the messages, the sampling."""
        return hashlib.blake2b(json.dumps(self.body).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Answer:
    """A cached answer: the hash of its request, its text, and tokens as the server counts them.

    `tokens` are those of prompt and answer, `answer_tokens` those of the answer alone, 0 if the server doesn't say.
    """

    request: str
    text: str
    tokens: int
    answer_tokens: int = 0


class Asked(NamedTuple):
    """The answer to each request, None if it failed or the budget was spent before.

    `paid` and `tokens` are the requests and tokens that this run has paid for; `problems` are the errors of the
    requests that failed, by their keys.
    """

    answers: list[Answer | None]
    paid: int
    tokens: int
    problems: dict[str, str]


def ask(
    requests: Sequence[Request],
    server: ServerSettings,
    budget: Budget,
    cache: Path,
    progress: Callable[[int, int], None],
    patience: int = 0,
    engine: Engine = _HERE,
) -> Asked:
    """Ask what the cache does not know, `concurrency` requests at a time, until the budget is spent.

    On a Ray cluster all nodes that reach the server send. Which request is next, the budget and the cache are this
    process's affair, so both hold for all nodes together.

    Args:
        patience: How many requests in a row may fail; with one more, the server is given up. If any may, refusals of
            single requests count only as long as the cache has no answer. If nothing is answered at all, and not for
            such refusals alone, the server is given up, too.

    Raises:
        LLMError: the server is given up, or refuses all requests; the answers so far are in the cache.
        ClusterError: the engine's Ray cluster can't be used.
    """
    keys = [request.key for request in requests]
    known = read_cache(cache)
    waiting = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
    paid, before = len(known), sum(answer.tokens for answer in known.values())
    spent = before
    total, left = len(waiting), list(waiting.items())[::-1]
    problems: dict[str, str] = {}
    if not left:
        return Asked([known[key] for key in keys], 0, 0, problems)
    sender = partial(_Sender, server, os.environ.get(server.key_env))
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (
        cache.open("a", encoding="utf-8") as file,
        open_senders(sender, engine, server.concurrency) as send,
        ThreadPoolExecutor(server.concurrency) as threads,
    ):
        running: dict[Future[Answer], Request] = {}
        failed: BaseException | None = None
        in_a_row, answered = 0, False
        is_away: BaseException | None = None

        def is_affordable(request: Request) -> bool:
            reserved = sum(other.most_tokens for other in running.values()) + request.most_tokens
            has_tokens = spent < budget.tokens and spent + reserved <= budget.tokens
            return has_tokens and len(known) + len(running) < budget.requests

        while running or left:
            while not failed and left and len(running) < server.concurrency and is_affordable(left[-1][1]):
                key, request = left.pop()
                running[threads.submit(send, key, request.body)] = request
            os.fsync(file.fileno())  # only now, while the next are on their way
            if failed or not running:  # the budget is spent
                left.clear()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                request = running.pop(future)
                if error := future.exception():  # the others in flight are paid for, so wait for them
                    problems[request.key] = str(error)
                    in_a_row += 1
                    is_refusal = isinstance(error, RefusedRequestError)
                    is_bearable = patience and known and is_refusal
                    is_away = is_away if is_refusal else error
                    if (in_a_row > patience and not is_bearable) or not isinstance(error, LLMError):
                        failed = error
                    continue
                answer = future.result()
                file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
                known[answer.request] = answer
                spent += answer.tokens
                in_a_row, answered = 0, True
            file.flush()
            progress(len(known) - paid + len(problems), total)
        os.fsync(file.fileno())
    if failed := failed or (None if answered else is_away):
        raise failed
    return Asked([known.get(key) for key in keys], len(known) - paid, spent - before, problems)


def read_cache(file: Path) -> dict[str, Answer]:
    """Read the answers of a file by their requests. The last line of a killed run, if torn, is removed."""
    if not file.exists():
        return {}
    whole, end, torn = file.read_bytes().rpartition(b"\n")
    if torn:
        os.truncate(file, len(whole) + len(end))
    answers = (Answer(**json.loads(line)) for line in whole.splitlines())
    return {answer.request: answer for answer in answers}


class _Sender:
    """Sends requests over connections that it keeps, from many threads at a time."""

    def __init__(self, server: ServerSettings, api_key: str | None) -> None:
        self.url, self.unsupported = server.url, set[str]()
        self.client = httpx2.Client(
            base_url=server.url,
            timeout=server.timeout,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            mounts=dict.fromkeys(_DIRECT),
            limits=httpx2.Limits(max_connections=server.concurrency),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def reaches(self) -> bool:
        """Whether there is a server at the URL, whatever it says."""
        try:
            self.client.get("models", timeout=REACHED_WITHIN)
        except httpx2.TransportError:
            return False
        return True

    def __call__(self, key: str, body: dict[str, Any]) -> Answer:
        """Send a request, again and again while the server is busy or away. Raises LLMError."""
        problem, kind = "", LLMError
        for attempt in range(ATTEMPTS):
            try:
                response = self._post(body)
            except httpx2.TransportError as error:
                problem, pause = f"{type(error).__name__}: {error}", FIRST_WAIT * 2**attempt
            else:
                if response.status_code == 200:
                    return _read(key, response)
                problem = f"{response.status_code} {response.text[:300]}"
                if response.status_code not in _PASSING:
                    kind = RefusedRequestError if response.status_code in _OF_REQUEST else LLMError
                    break
                asked = response.headers.get("Retry-After", "")
                pause = float(asked) if asked.isdecimal() else FIRST_WAIT * 2**attempt
            if attempt + 1 < ATTEMPTS:
                time.sleep(pause)
        raise kind(f"{self.url}: {body['model']} does not answer: {problem}")

    def _post(self, body: dict[str, Any]) -> httpx2.Response:
        """Send a request once; if it is refused, also without its `response_format`, which not all servers know.

        If that is answered, the key is `unsupported`, and nobody sends it again.
        """
        sent = {name: value for name, value in body.items() if name not in self.unsupported}
        response = self.client.post("chat/completions", json=sent)
        if response.status_code in _OF_REQUEST and sent.pop("response_format", None):
            plain = self.client.post("chat/completions", json=sent)
            if plain.status_code == 200:
                self.unsupported.add("response_format")
                return plain
        return response


def _read(key: str, response: httpx2.Response) -> Answer:
    """Read a response. Raises RefusedRequestError if it has no answer, or does not say what it costs."""
    try:
        body = response.json()
        usage, text = body["usage"], str(body["choices"][0]["message"]["content"] or "")
        return Answer(key, text, int(usage["total_tokens"]), int(usage.get("completion_tokens") or 0))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RefusedRequestError(
            f"{response.url}: expected an answer in `choices` and `usage.total_tokens`, found {response.text[:300]}"
        ) from error
