"""The kernel's counts against plain Python: str, unicodedata and Counter."""

import math
import re
import unicodedata
from collections import Counter

import polars as pl
import pytest
from conan_embedding.pipeline.filter.text_counts import PROFILE, profile
from hypothesis import example, given
from hypothesis import strategies as st

ALPHABET = "中文字天地人ab1２½，。!…“\n\n  $≈😀é\u0301\ufffd\ue000々〇Ãÿ锟锛--=|<[]{"


def is_han(character: str) -> bool:
    name = unicodedata.name(character, "")
    return name.startswith("CJK UNIFIED") or character in "々〇"


def ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


def top_repeated(text: str, n: int) -> int:
    """Compute data-juicer's character_repetition_filter without its last division."""
    counts = sorted(ngrams(text, n).values(), reverse=True)
    return sum(counts[: min(math.isqrt(len(counts)), sum(count > 1 for count in counts))])


def expected(text: str) -> dict[str, int]:
    kinds = Counter("H" if is_han(character) else unicodedata.category(character)[0] for character in text)
    solid = Counter(c for c in text if is_han(c) or not (c.isspace() or unicodedata.category(c)[0] == "N"))
    lines = [line for line in text.split("\n") if line.strip()]
    damaged = sum(c == "\ufffd" or unicodedata.category(c) == "Co" for c in text)
    return {
        "characters": len(text),
        "letters": kinds["H"] + kinds["L"] + kinds["M"],
        "han": kinds["H"],
        "digits": kinds["N"],
        "punctuation": kinds["P"],
        "symbols": kinds["S"] - text.count("\ufffd"),
        "damaged": damaged,
        "misread": sum("À" <= c <= "ÿ" or c in "锟烫屯銆鈥鐨锛" for c in text),
        "brackets": sum(c in "<[]{" for c in text),
        "separators": sum(map(len, re.findall(r"[-=_*#~+.·•…—|/\\^@$%&]{4,}", text))),
        "dominant": max(solid.values(), default=0),
        "lines": len(lines),
        "finished_lines": sum(line.rstrip()[-1] in "。!…" for line in lines),
        "repeated_line_characters": sum(len(line) for place, line in enumerate(lines) if line in lines[:place]),
        "top_10grams": top_repeated(text, 10),
        "repeated_13grams": sum(count for count in ngrams(text, 13).values() if count > 1),
    }


TEXTS = st.one_of(
    st.text(ALPHABET, max_size=60),
    st.text("ab\n中", max_size=200),  # few letters: many repeats
    st.text("a\n", max_size=40),  # as many lines as characters
    st.lists(st.sampled_from(["=", "-…-", "====", "a", "\n", "Ã", "锟"]), max_size=12).map("".join),  # separators
    st.builds(lambda part, times: part * times, st.text(ALPHABET, max_size=20), st.integers(0, 12)),
)


@given(st.lists(TEXTS, max_size=8))
@example(["====Ã", "=====锟", "-…--ÿÃ===", "Ã===Ã===="])
def test_profile_counts_as_python_does(texts: list[str]) -> None:
    found = profile(pl.Series(texts, dtype=pl.String))
    assert found.columns == list(PROFILE)
    assert found.rows(named=True) == [expected(text) for text in texts]
    assert found.select((pl.max_horizontal(pl.all()) <= pl.col("characters")).all()).item()


@pytest.mark.parametrize(
    ("text", "separators"),
    [("====Ã", 4), ("=====ÃÃ", 5), ("===Ã", 0), ("==Ã==", 0), ("Ã====Ã----", 8), ("====锟====", 8)],
)
def test_a_misread_letter_ends_a_run_of_separators(text: str, separators: int) -> None:
    assert profile(pl.Series([text]))["separators"].item() == separators


def test_profile_of_slices_nulls_and_nothing() -> None:
    texts = pl.Series(["abc", "中文", None, "d"])
    assert profile(texts.slice(1, 2))["characters"].to_list() == [2, 0]
    assert profile(pl.Series([], dtype=pl.String)).height == 0
    assert profile(pl.Series(["", None], dtype=pl.String)).sum_horizontal().to_list() == [0, 0]


@pytest.mark.parametrize(
    ("character", "kind"), [("𠀀", "han"), ("ひ", "letters"), ("٣", "digits"), ("﹏", "punctuation")]
)
def test_classes_beyond_the_common_planes(character: str, kind: str) -> None:
    assert profile(pl.Series([character]))[kind].item() == 1


def test_a_very_long_text_is_counted_whole_but_read_for_repeats_to_a_bound() -> None:
    found = profile(pl.Series(["长" * 3_000_000, "短"]))
    assert found["characters"].to_list() == [3_000_000, 1]
    assert found["repeated_13grams"].to_list() == [2**20 - 12, 0]
