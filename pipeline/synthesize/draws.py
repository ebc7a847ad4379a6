"""Draw what each request asks for: kind, language, persona, difficulty, length. The same request, the same draw."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from ...schemas.errors import RecipeError
from ...schemas.synthesize_settings import SynthesizeSettings
from .prompts import DIFFICULTIES, LENGTHS, Draw

Name = TypeVar("Name", bound=str)

AUTO = "auto"
PERSONAS = {
    "zh": (
        "一名中学生",
        "一名大学生",
        "一位刚入行的新人",
        "一位有多年经验的专业人士",
        "一位研究这个领域的学者",
        "一位普通上班族",
        "一位退休老人",
        "一位年轻的父亲或母亲",
        "一位记者",
        "一位小企业主",
        "一位外行，只知道口语里的说法",
        "一位急着解决问题的人",
    ),
    "en": (
        "a pupil at secondary school",
        "a student at university",
        "somebody new to the job",
        "a professional with years of experience",
        "a researcher in the field",
        "an office worker",
        "a pensioner",
        "a young parent",
        "a journalist",
        "the owner of a small business",
        "a lay person who knows everyday words only",
        "somebody in a hurry to solve a problem",
    ),
}
"""Chosen here: who asks search engines, from those who know nothing of a subject to those who know all of it. Persona
Hub (arXiv 2406.20094) has a billion of them, which `personas: FILE` takes."""


def read_personas(personas: str | None, place: str) -> Mapping[str, Sequence[str | None]]:
    """Return the personas for queries in Chinese (`zh`) and in other languages (`en`).

    Raises:
        RecipeError: the file of personas can't be read, or is empty.
    """
    if personas is None:
        return {"zh": [None], "en": [None]}
    if personas == AUTO:
        return PERSONAS
    try:
        named = [line.strip() for line in Path(personas).read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{place}: {personas} can't be read as UTF-8 text: {error}") from error
    if not named:
        raise RecipeError(f"{place}: {personas} is empty; expected one persona per line, or `{AUTO}`")
    return {"zh": named, "en": named}


def draw(
    text: str, number: int, settings: SynthesizeSettings, personas: Mapping[str, Sequence[str | None]]
) -> tuple[Draw, int]:
    """Draw query `number` of a passage, and the seed that the model samples with.

    Another share of a kind or language changes the draws that it must.
    """
    digest = hashlib.blake2b(f"{settings.seed} {number} {text}".encode(), digest_size=24).digest()
    parts = [int.from_bytes(digest[start : start + 4]) / 2**32 for start in range(0, 24, 4)]
    language = _choose(settings.languages, parts[1])
    known = personas["zh" if language == "zh" else "en"]
    drawn = Draw(
        kind=_choose(settings.kinds, parts[0]),
        language=language,
        persona=known[int(parts[2] * len(known))],
        difficulty=DIFFICULTIES[int(parts[3] * len(DIFFICULTIES))],
        length=LENGTHS[int(parts[4] * len(LENGTHS))],
    )
    return drawn, int(parts[5] * 2**31)


def _choose(shares: Mapping[Name, float], part: float) -> Name:
    """Choose a name by its share; `part` is from 0 to 1."""
    *ends, total = accumulate(shares.values())
    return list(shares)[bisect_right(ends, part * total)]
