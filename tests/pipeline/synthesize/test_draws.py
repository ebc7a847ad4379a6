"""Draws: the same for the same passage, and by their shares."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.pipeline.synthesize.draws import PERSONAS, draw, read_personas
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.synthesize_settings import SynthesizeSettings

TEXTS = [f"第{number}段" for number in range(2_000)]
GIVEN = {"server": {"model": "m"}, "budget": {"requests": 1, "tokens": 1}}


def settings(**more: Any) -> SynthesizeSettings:
    return SynthesizeSettings.model_validate(GIVEN | more)


def test_draws_follow_the_shares() -> None:
    chosen = settings(kinds={"question": 3, "keyword": 1}, language={"zh": 1, "en": 1})
    found = [draw(text, 0, chosen, PERSONAS)[0] for text in TEXTS]
    shares = {
        name: Counter(getattr(each, name) for each in found) for name in ("kind", "language", "difficulty", "length")
    }
    assert abs(shares["kind"]["question"] - 1500) < 80  # four standard deviations
    assert abs(shares["language"]["zh"] - 1000) < 90
    assert {len(shares[name]) for name in ("difficulty", "length")} == {3}
    assert all(min(shares[name].values()) > 580 for name in ("difficulty", "length"))
    assert {each.persona for each in found if each.language == "zh"} == set(PERSONAS["zh"])


def test_a_draw_depends_on_passage_number_and_seed() -> None:
    chosen = settings()
    found = {draw(text, number, chosen, PERSONAS) for text in TEXTS[:100] for number in range(3)}
    assert len({seed for _, seed in found}) == 300
    assert draw("甲", 0, chosen, PERSONAS) == draw("甲", 0, settings(queries=5), PERSONAS)
    assert draw("甲", 0, chosen, PERSONAS) != draw("甲", 0, settings(seed=1), PERSONAS)


def test_another_share_changes_few_draws() -> None:
    one, two = settings(kinds={"question": 9, "keyword": 1}), settings(kinds={"question": 8, "keyword": 2})
    changed = sum(draw(text, 0, one, PERSONAS) != draw(text, 0, two, PERSONAS) for text in TEXTS)
    assert 140 < changed < 260


def test_personas_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "personas.txt"
    file.write_text("一名护士\n\n 一位律师 \n", "utf-8")
    assert read_personas(str(file), "p") == {"zh": ["一名护士", "一位律师"], "en": ["一名护士", "一位律师"]}
    assert draw("甲", 0, settings(), read_personas(None, "p"))[0].persona is None
    file.write_text("\n")
    with pytest.raises(RecipeError, match=r"recipe.yaml:3: personas: .*personas.txt is empty"):
        read_personas(str(file), "recipe.yaml:3: personas")
    with pytest.raises(RecipeError, match="can't be read as UTF-8 text"):
        read_personas(str(tmp_path / "none.txt"), "p")
