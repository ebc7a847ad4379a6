"""match_keys compared with match_key: every character, marks next to characters, random texts of all scripts."""

import unicodedata

import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.text.match_key import match_keys
from conan_embedding.pipeline.text.normalise import match_key
from hypothesis import example, given
from hypothesis import strategies as st

EVERY = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
JAMO = [
    chr(point)
    for first, last in [(0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xD7B0, 0xD7FF), (0xFF9E, 0xFFDC)]
    for point in range(first, last + 1)
]
MARKS = [character for character in EVERY if unicodedata.category(character)[0] == "M"]


def expected_keys(texts: pl.Series) -> pl.Series:
    return pl.DataFrame({"text": texts}).select(match_key(pl.col("text"))).to_series()


def assert_keys(texts: pl.Series) -> None:
    expected = expected_keys(texts)
    found = pl.Series(match_keys(texts.to_arrow()), dtype=pl.String)
    different = (found != expected).arg_true()
    assert not len(different), [(texts[row], found[row], expected[row]) for row in different[:10]]


def test_every_character_alone_and_between_letters() -> None:
    characters = pl.Series(EVERY)
    assert_keys(characters)
    common = characters.head(0x20800)  # including the first that are not in the table
    assert_keys("a" + common + "Σb")
    assert_keys("각" + common + "か")


@pytest.mark.parametrize("form", ["NFD", "NFKD"])
def test_every_character_in_the_parts_that_nfkc_joins_again(form: str) -> None:
    parts = pl.Series(EVERY).head(0x30000).str.normalize(form)
    assert_keys(parts)
    assert_keys("a" + parts + parts)


def test_marks_and_jamo_after_and_before_other_characters() -> None:
    """One text per mark: mark, character, mark, character …, with every twentieth character, in rotation.

    All pairs that NFKC composes are in the test above. Ideographs, syllables and the like, which all behave alike, are
    represented by a few.
    """
    alike = ("CJK UNIFIED", "CJK COMPAT", "HANGUL SYLLABLE", "YI SYLLABLE", "TANGUT", "CUNEIFORM", "EGYPTIAN", "BAMUM")
    names = ((character, unicodedata.name(character, "")) for character in EVERY[:0x20000])
    others = [character for character, name in names if name and not name.startswith(alike)] + EVERY[0x4E00:0xD7A4:59]
    assert_keys(pl.Series([mark + mark.join(others[place % 20 :: 20]) for place, mark in enumerate(MARKS + JAMO)]))


ODD = (
    st.sampled_from("ΑΣσς가각각ㄱㅏ\u0301\u0308\u0345\ufe0f\u200d゛ﾞﾟｶﾊかはガＡａⅣ㈱ﬁİıßẞǅ的一。 👍🏽\U000e0100\u0378")
    | st.sampled_from(MARKS)
    | st.sampled_from(JAMO)
    | st.characters(exclude_categories=["Cs"])
)


@given(st.lists(st.none() | st.text(ODD, max_size=12) | st.text("的一是。a ", max_size=12), min_size=1, max_size=20))
@example(["ΌΔΟΣ", "ΣΑΣ.", "Σ", "각", "가" + "\u11a8", "ｶﾞ", "👨\u200d👩", "。。。", "", None, "\u0301", "x\U00020000"])
def test_random_texts(texts: list[str | None]) -> None:
    expected = expected_keys(pl.Series(texts, dtype=pl.String)).fill_null("")
    assert match_keys(pa.array(texts, pa.string())).to_pylist() == expected.to_list()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_every_layout_of_a_column(kind: pa.DataType) -> None:
    texts = pa.array(["Ａb，c", None, "。。", "", "ΟΔΟΣ!", "e\u0301.", "尾"], pa.string()).cast(kind)
    expected = ["abc", "", "。。", "", "οδος", "é", "尾"]
    chunked = pa.chunked_array([texts[:2], texts[2:2], texts[2:]])
    assert match_keys(texts).to_pylist() == match_keys(chunked).to_pylist() == expected
    assert match_keys(texts[1:5]).to_pylist() == match_keys(chunked[1:5]).to_pylist() == expected[1:5]
    assert match_keys(texts[:0]).to_pylist() == match_keys(pa.chunked_array([], kind)).to_pylist() == []
    assert match_keys(texts).type == pa.large_string()


def test_texts_looked_up_and_texts_left_to_polars_keep_their_places() -> None:
    texts = [f"{number}号。" + "e\u0301" * (number % 3) for number in range(1000)]
    assert match_keys(pa.array(texts)).to_pylist() == [f"{number}号" + "é" * (number % 3) for number in range(1000)]


def test_only_strings_have_keys() -> None:
    with pytest.raises(TypeError, match="int64"):
        match_keys(pa.array([1]))
