"""The kernel that finds changeable texts, compared with the pattern that does."""

import polars as pl
import pytest
from conan_embedding.pipeline.text import kernel_loading
from conan_embedding.pipeline.text.normalise import _CHANGEABLE, _find_changeable, normalise
from hypothesis import given
from hypothesis import strategies as st

CHARACTERS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]


@pytest.fixture(autouse=True)
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_loading, "_BREAK_EVEN", -1)


def assert_finds_what_the_pattern_finds(texts: list[str]) -> None:
    column = pl.Series(texts, dtype=pl.String)
    assert _find_changeable(column).to_list() == column.str.contains(_CHANGEABLE).to_list()


@given(st.lists(st.text(" \n中，a&\u3000\u4dff\U0001f600\U00020000", max_size=7)))
def test_finds_what_the_pattern_finds(texts: list[str]) -> None:
    assert_finds_what_the_pattern_finds(texts)


@pytest.mark.parametrize("shape", ["{}", "中{}文"])
def test_finds_every_character_that_the_pattern_finds(shape: str) -> None:
    assert_finds_what_the_pattern_finds([shape.format(character) for character in CHARACTERS])


def test_normalises_with_nulls_and_slices() -> None:
    texts = pl.DataFrame({"text": ["x", " 甲", None, "乙", "丙&lt;"]}).tail(4)
    assert texts.select(normalise(pl.col("text"))).to_series().to_list() == ["甲", None, "乙", "丙<"]
