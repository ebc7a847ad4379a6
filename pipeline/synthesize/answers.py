"""Understand what a language model answers, whether or not the server holds it to the JSON schema."""

import json
import re
from typing import Any, NamedTuple

import json_repair

ANSWERED = frozenset({"prompt", "paraphrase"})
"""The kinds whose pair is the query and the answer. The pair of the others is the query and the passage."""
QUOTED = frozenset({"question", "paraphrase"})
"""The kinds whose answer is a quote from the passage."""


class Written(NamedTuple):
    """The query that a model has written and, for the kinds of ANSWERED and QUOTED, the answer to it."""

    query: str
    answer: str | None


_QUOTE = "\"'“”‘’＂"
_THOUGHT = re.compile(r"^.*</think(?:ing)?>|^\s*<think(?:ing)?>.*", re.DOTALL)
_START = re.compile(rf"[{{｛](?=\s*[{_QUOTE}]?(?:query|answer)\b)", re.IGNORECASE)
_END = re.compile(rf"[}}｝](?=[ \t]*(?:[\r\n`<]|,?\s*[{{｛]\s*[{_QUOTE}]|\]\s*$|$))")
"""The end of a damaged object; a brace within a text is hardly ever the last sign of its line."""
_NEXT = re.compile(rf"</?passage>|{_START.pattern}", re.IGNORECASE)
"""The beginning of another example, which a model that is not tuned to instructions adds to its answer."""
_WIDE = re.compile(rf"(?<=[{_QUOTE}])\s*：|，(?=\s*[{_QUOTE}](?:query|answer)[{_QUOTE}])")
"""The colon or the comma of a Chinese keyboard after a key or a value."""
_CLOSED = re.compile(rf"[{_QUOTE}}}｝,]\s*$|null\s*$")
_LATEX = re.compile(
    r"(?<!\\)\\(?=(?:ba[rs]|begin|beta|binom|bmod|boldsymbol|bot|forall|frac|nabla|neq?|not|nu|rho|right\w*|rm|"
    r"tan|tau|text\w*|theta|times|to|top|triangle)(?![a-z]))"
)
"""A backslash before a command of LaTeX that JSON would read as a control character: the \\f of \\frac."""
_DECODER = json.JSONDecoder(strict=False)  # line feeds within texts are common
_NOTHING = re.compile(r"[\W_]*|null|none|n/?a|无", re.IGNORECASE)


def parse(raw: str, kind: str) -> Written | None:
    """Read the first object of an answer; None if there is no query in it, or no answer where the pair needs one.

    A text that is cut off, because the answer was longer than the server allows, is left out.
    """
    text = _LATEX.sub(r"\\\\", _THOUGHT.sub("", raw))
    found = _read(text) or _repair(text)
    query, answer = _text(found.get("query")), _text(found.get("answer"))
    if query is None or (kind in ANSWERED and answer is None):
        return None
    return Written(query, answer if kind in ANSWERED | QUOTED else None)


def _read(text: str) -> dict[str, Any]:
    """Return the first object of JSON that has one of the keys, else an empty one."""
    for brace in re.finditer(r"\{", text):
        try:
            found, _ = _DECODER.raw_decode(text, brace.start())
        except ValueError:
            continue
        lower = {key.lower(): value for key, value in found.items()}
        if not lower.keys().isdisjoint(Written._fields):
            return lower
    return {}


def _repair(text: str) -> dict[str, Any]:
    """Return the first object that begins with one of the keys, as json_repair reads it, else an empty one."""
    start = _START.search(text)
    if start is None:
        return {}
    following = _NEXT.search(text, start.end())
    own = text[start.start() : following.start() if following else None]
    end = _END.search(own)
    own = own[: end.end() if end else None]
    usual = _WIDE.sub(lambda sign: ":" if "：" in sign[0] else ",", own).replace("｛", "{").replace("｝", "}")
    found = json_repair.loads(usual, skip_json_loads=True)
    if not isinstance(found, dict):
        return {}
    if not end and not _CLOSED.search(own):
        found.popitem()
    return {key.lower(): value for key, value in found.items()}


def _text(value: Any) -> str | None:
    """Return a value as a text; None if it says nothing, or more than one thing."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) and not _NOTHING.fullmatch(value) else None
