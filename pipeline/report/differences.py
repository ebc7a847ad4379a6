"""The section on settings in which the compared corpora differ."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .elements import escape_text, render_section, render_table
from .subjects import Subject

_LEFT_OUT = {"corpus", "variables"}
"""A corpus's own place, and what other settings have in them already."""

_LAST = ("sources", "evaluation")
"""Sections that come last, as they may be long."""


def render_differences(subjects: Sequence[Subject]) -> str:
    """Render a table of the settings that differ, with a column per corpus; a single corpus has none."""
    if len(subjects) == 1:
        return ""
    settings = [
        {key: subject.settings[key] for key in sorted(subject.settings, key=lambda key: key in _LAST)}
        for subject in subjects
    ]
    settings = [{key: value for key, value in each.items() if key not in _LEFT_OUT} for each in settings]
    rows = [[escape_text(key), *map(escape_text, values)] for key, values in _find_differences(settings)]
    body = render_table(["setting", *(escape_text(subject.name) for subject in subjects)], rows) if rows else ""
    return render_section("settings", "Settings that differ", body or "<p>None.</p>")


def _find_differences(values: Sequence[Any], key: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each setting that differs with its value in each corpus, as JSON; "–" where it is missing."""
    if all(value == values[0] for value in values):
        return
    parts = [_as_mapping(value) for value in values]
    if not all(isinstance(part, dict) for part in parts):
        yield (
            key,
            ["–" if value is _MISSING else json.dumps(value, ensure_ascii=False, default=str) for value in values],
        )
        return
    for name in dict.fromkeys(name for part in parts for name in part):
        yield from _find_differences([part.get(name, _MISSING) for part in parts], f"{key}.{name}" if key else name)


_MISSING = object()


def _as_mapping(value: Any) -> Any:
    """Return a list of sections that have names as a mapping from these."""
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        return {each["name"]: each for each in value}
    return value
