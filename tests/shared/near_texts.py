"""Nearly identical texts, and the result of dedup on them."""

import unicodedata
from pathlib import Path
from random import Random

from conan_embedding.schemas.recipe import Recipe

HAN = [chr(0x4E00 + place) for place in range(2000)]


def recipe(*priorities: tuple[str, int | None], **dedup_settings) -> Recipe:
    sources = [{"name": name, "files": "*.json", "read": "json", "priority": priority} for name, priority in priorities]
    return Recipe.model_validate({"sources": sources, "dedup": dedup_settings})


def text(seed: int, length: int = 80) -> str:
    return "".join(Random(seed).choices(HAN, k=length))


def near(original: str, seed: int = 0) -> str:
    """Return the text with one character changed: at 80 characters, the similarity is 0.87 or more."""
    place = Random(seed).randrange(len(original))
    return original[:place] + "龘" + original[place + 1 :]


def letters(words: str) -> str:
    plain = unicodedata.normalize("NFKC", words).lower()
    return "".join(letter for letter in plain if unicodedata.category(letter)[0] in "LN") or words


def similarity(left: str, right: str) -> float:
    a, b = ({each[i : i + n] for i in range(len(each) - n + 1)} for each in (left, right) for n in [5])
    return len(a & b) / len(a | b)


def outcome(corpus: Path, read) -> tuple[dict[str, int], dict[str, tuple[str, str]]]:
    kept, thrown = read(corpus, "dedup"), read(corpus, "dedup/rejected")
    clusters = dict(kept.select("pair_id", "cluster_id").iter_rows())
    rejected = {row["pair_id"]: (row["reason"], row["detail"].partition(":")[0]) for row in thrown.to_dicts()}
    return clusters, rejected
