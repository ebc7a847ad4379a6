"""Build the request for a query to a passage. What is said is in the templates of prompts/, one for each kind.

Each kind has a template in Chinese, for queries in Chinese, and one in English, for those in any other language; both
extend the frame of their language. Two examples show the form, without which a model that isn't tuned to instructions
writes none.
"""

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .languages import LANGUAGES

KINDS = ("question", "keyword", "statement", "comparison", "title", "prompt", "paraphrase", "translation")
"""The kinds of queries. The passage of a translation is itself a query, to be translated."""
DIFFICULTIES = ("easy", "medium", "hard")
LENGTHS = ("short", "medium", "long")

LENGTH = 2_000
"""Chosen here: the characters of a passage that a prompt shows, more than the 512 tokens of most encoders hold."""

RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "query",
        "strict": True,
        "schema": {
            "type": "object",
            # The query comes first: an answer that is cut off leaves it whole.
            "properties": {"query": {"type": "string"}, "answer": {"type": ["string", "null"]}},
            "required": ["query", "answer"],
            "additionalProperties": False,
        },
    },
}
"""The `response_format` of a request, for servers that hold the model to a JSON schema."""

_FOLDER = Path(__file__).parent / "prompts"
_TAG = re.compile(r"<(?=/?passage>)")


class Draw(NamedTuple):
    """The wishes of one request: a kind of KINDS, the language that the query is to be written in, and others."""

    kind: str
    language: str
    persona: str | None
    difficulty: str
    length: str


def messages(passage: str, draw: Draw) -> list[dict[str, str]]:
    """Build the chat messages that ask for a query to a passage."""
    text = _TAG.sub("＜", passage[:LENGTH])  # so that a passage can't end itself, or begin another
    names = {**draw._asdict(), "passage": text, "language_name": LANGUAGES[draw.language].name}
    return [{"role": "user", "content": _environment().get_template(_file(draw.kind, draw.language)).render(names)}]


@cache
def version(kind: str, language: str) -> str:
    """Return the version of a prompt: the name of its template, and a hash of all that it says."""
    file = _file(kind, language)
    sources = (_FOLDER / name for name in (file, _file("base", language)))
    digest = hashlib.blake2b(b"\0".join(source.read_bytes() for source in sources), digest_size=4).hexdigest()
    return f"{file.removesuffix('.jinja')}-{digest}"


def _file(kind: str, language: str) -> str:
    return f"{kind}.{'zh' if language == 'zh' else 'en'}.jinja"


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, autoescape=False)
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment
