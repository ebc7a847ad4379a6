"""Split the front matter off a Markdown document: YAML between `---`, TOML between `+++`, or a JSON object."""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import yaml

_FENCED = re.compile(r"\s*^(-{3,}|\+\+\+)[ \t]*\n(.*?)^(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_UNOPENED = re.compile(r"\s*()(title:.*\n(?:(?:[\w-]+:|[ \t-]).*\n)*?)-{3,}[ \t]*(?:\n|\Z)")
"""Hexo's, which needs no first line of dashes (hexo-front-matter); every line is a key or belongs to one."""
_KEY = re.compile(r"([\w-]+)[ \t]*[:=][ \t]*(.*)")
_QUOTED = re.compile(r"""(["'])(.*)\1""")
_NULLS = ("", "~", "null", "Null", "NULL")
"""How YAML 1.2 writes null (section 10.3.2)."""


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the keys of a document's front matter, in lower case, and the text after it.

    Without front matter there are no keys. Scalars of YAML stay as they are written: `yes`, `2024-05-01`.
    """
    if fenced := _FENCED.match(text) or _UNOPENED.match(text):
        keys, end = _parse(fenced[1], fenced[2]), fenced.end()
    else:
        keys, end = _parse_json(text)
    if not isinstance(keys, dict):  # it begins with a rule, or with braces of another kind
        return {}, text
    return {str(key).lower(): value for key, value in keys.items()}, text[end:]


def find_title(front: Mapping[str, Any]) -> str | None:
    """Return the title among the keys of front matter, if it is text."""
    title = front.get("title")
    return title.strip() if isinstance(title, str) and title.strip() not in _NULLS else None


def _parse(fence: str, front: str) -> Any:
    if not front.strip():
        return {}
    try:
        keys = tomllib.loads(front) if fence == "+++" else yaml.load(front, yaml.BaseLoader)
    except (yaml.YAMLError, tomllib.TOMLDecodeError, RecursionError):
        keys = _read_lines(front)
    if isinstance(keys, str) and "title" in (forgiven := _read_lines(front) or {}):  # `title:x` is a text in YAML
        return forgiven
    return keys


def _read_lines(front: str) -> dict[str, str] | None:
    """Read keys line by line, as generators of sites forgive `title: a: b`; None if the first line has none."""
    found = [_KEY.match(line) for line in front.strip().split("\n")]
    return {key[1]: _unquote(key[2].strip()) for key in found if key} if found[0] else None


def _unquote(value: str) -> str:
    quoted = _QUOTED.fullmatch(value)
    return quoted[2] if quoted else value


def _parse_json(text: str) -> tuple[Any, int]:
    if not text.startswith("{"):
        return None, 0
    try:
        keys, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0
    return (keys, end) if text[end:].lstrip(" \t").startswith("\n") else (None, 0)
