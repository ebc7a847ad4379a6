"""match_keys compared with its rules as regular expressions: every character, marks, random texts of all scripts."""

import re
import unicodedata

import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.text.match_key import fold, match_key, match_keys
from hypothesis import example, given
from hypothesis import strategies as st

EVERY = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
JAMO = [
    chr(point)
    for first, last in [(0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97F), (0xD7B0, 0xD7FF), (0xFF9E, 0xFFDC)]
    for point in range(first, last + 1)
]
UNIFORM = ("CJK UNIFIED", "CJK COMPAT", "HANGUL SYLLABLE", "YI SYLLABLE", "TANGUT", "CUNEIFORM", "EGYPTIAN", "BAMUM")
COMMON = [
    character
    for character in EVERY[:0x20800]  # including the first ideographs beyond the basic planes
    if ord(character) % 59 == 0 or not unicodedata.name(character, UNIFORM[0]).startswith(UNIFORM)
]
"""All characters with names, and one in 59 of the others and of ideographs and syllables, which behave alike."""
MARKS = [character for character in EVERY if unicodedata.category(character)[0] == "M"]

# A character as the rules see it: k(ept), w(ord), d(igit), j(oiner), a sign, or a space for all that is dropped.
FORMS = dict.fromkeys("‐‑‒–−", "-") | dict.fromkeys("∼〜—―", "~") | dict.fromkeys("⁄∕", "/") | {"∶": ":"}
NEVER_KEPT = r"[`\x{fe00}-\x{fe0f}\x{180b}-\x{180f}\x{20e3}\x{2500}-\x{257f}\x{fffc}\x{fffd}]"
ALIKE = pl.DataFrame({"text": EVERY[:0x40000]}).select(
    "text",
    kind=pl.when(pl.col("text").str.contains(NEVER_KEPT))
    .then(pl.lit(" "))
    .when(pl.col("text").str.contains(r"[\p{Latin}\p{Greek}\p{Cyrillic}&&\p{L}]") & (pl.col("text") < "\U00010000"))
    .then(pl.lit("w"))
    .when(pl.col("text").str.contains(r"\p{Nd}") & (pl.col("text") < "\U00010000"))
    .then(pl.lit("d"))
    .when(pl.col("text").str.contains(r"[\p{L}\p{M}\p{N}\p{S}%‰&@′″]"))
    .then(pl.lit("k")),
)
KINDS = dict(ALIKE.drop_nulls().iter_rows()) | dict.fromkeys("~/\\:*_|", "j") | {sign: sign for sign in ".-#,"}
SPACES = {ord(character): None for character in EVERY if unicodedata.category(character) == "Zs"}
SEPARATING = [*"-~/\\:*_|"]
THOUSANDS = re.compile(r"(?<=d),(?=d{3}(?!d))")
KEPT = re.compile(
    r"""[kwd]
    | (?<!\.) \. (?=[wd])
    | (?<!-) - (?!-) (?:(?<=[wd]-) | (?=[wd]))
    | (?<!\#) \# (?!\#) (?:(?<=[wd]\#) | (?=[wd]))
    | (?<=[wd]) j (?=[wd])""",
    re.VERBOSE,
)


def key_of_folded(text: str) -> str:
    characters = [FORMS.get(character, character) for character in text]
    kinds = "".join(KINDS.get(character, " ") for character in characters)
    grouping = {match.start() for match in THOUSANDS.finditer(kinds)}
    key, last = "", -1
    for place in (match.start() for match in KEPT.finditer(kinds)):
        apart = any(between not in grouping for between in range(last + 1, place))
        if last >= 0 and kinds[last] == kinds[place] == "d" and apart:
            sign = "".join(characters[last + 1 : place]).translate(SPACES)
            key += sign.replace("~", "-") if sign in SEPARATING else " "
        key += "-" if characters[place] == "~" else characters[place]
        last = place
    return key


def expected_keys(texts: pl.Series) -> pl.Series:
    folded = pl.DataFrame({"text": texts}).select(fold(pl.col("text"))).to_series()
    keys = (key_of_folded(text) or own for text, own in zip(folded.fill_null(""), texts.fill_null(""), strict=True))
    return pl.Series(keys, dtype=pl.String)


def assert_keys(texts: pl.Series) -> None:
    expected = expected_keys(texts)
    found = pl.Series(match_keys(texts.to_arrow()), dtype=pl.String)
    different = (found != expected).arg_true()
    assert not len(different), [(texts[row], found[row], expected[row]) for row in different[:10]]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        # Numbers.
        ("-5的绝对值", "5的绝对值"),
        ("零下−5度", "零下5度"),
        ("一次1.5毫克", "一次15毫克"),
        ("一次.5毫克", "一次5毫克"),
        ("打50%的折", "打50的折"),
        ("浓度5‰", "浓度5%"),
        ("吃3-5天", "吃35天"),
        ("吃3～5天", "吃35天"),
        ("选1、2", "选12"),
        ("选1，2", "选12"),
        ("选1 2", "选12"),
        ("1/2杯", "12杯"),
        ("比分3:1", "比分31"),
        ("3×5", "35"),
        ("3÷5", "3×5"),
        ("2*3", "23"),
        ("6 - 3", "6 / 3"),
        ("6 - 3", "6 3"),
        ("6 * 3", "6 : 3"),
        ("f′(1)", "f(1)"),
        ("5′", "5″"),
        ("10²", "102"),
        ("10^2", "102"),
        ("10⁶米", "106米"),
        ("1½杯", "112杯"),
        ("x=5", "x5"),
        ("x>5", "x<5"),
        ("±5", "5"),
        ("+5", "-5"),
        ("20°角", "20角"),
        ("25℃", "25℉"),
        ("$5", "¥5"),
        ("￥5", "5"),
        ("2024-01-02", "20240102"),
        ("2024-01-02", "2024-10-2"),
        ("v1.10", "v11.0"),
        ("1,5", "15"),
        ("1…5", "15"),
        ("#5", "5"),
        ("5#楼", "5楼"),
        ("1+1", "11"),
        # Words.
        ("C++怎么学", "C怎么学"),
        ("C#怎么学", "C怎么学"),
        ("C＃怎么学", "Ｃ怎么学"),
        (".NET怎么学", "NET怎么学"),
        ("用.NET开发", "用NET开发"),
        ("Node.js", "Nodejs"),
        ("e.g.", "eg"),
        ("U.S.", "us"),
        ("x-y", "xy"),
        ("-x的导数", "x的导数"),
        ("O-型血", "O型血"),
        ("Rh-", "Rh+"),
        ("α-β", "αβ"),
        ("km/h", "kmh"),
        ("snake_case", "snakecase"),
        ("P(A|B)", "P(AB)"),
        ("a*b", "ab"),
        ("A&B", "AB"),
        ("@张三", "张三"),
        ("re-sign", "resign"),
        # Emoji and symbols.
        ("今天😀", "今天😡"),
        ("今天😀", "今天"),
        ("👍🏻", "👍🏿"),
        ("🇨🇳", "🇺🇸"),
        ("五星★★★★★", "五星★"),
        ("♂", "♀"),
        ("A→B", "A←B"),
        # Vowels and tones that are marks.
        ("เสือ", "เสื่อ"),
        ("कि", "की"),
    ],
)
def test_signs_that_change_what_a_text_says(left: str, right: str) -> None:
    one, other = match_keys(pa.array([left, right])).to_pylist()
    assert one != other


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("你好，世界！", "你好世界"),
        ("你好。", "你好?"),
        ("“甲”、《乙》（丙）", "甲乙丙"),
        ("他说——不行……好吧", "他说 不行 好吧"),
        ("我学Java——它很好", "我学Java，它很好"),
        ("我学Java--它很好", "我学Java,它很好"),
        ("等等...5个", "等等，5个"),
        ("第 5 章", "第5章"),
        ("6 － 3", "6-3"),
        ("6　/ 3", "6/3"),
        ("2019 – 2020年", "2019～2020 年"),
        ("6 -- 3", "6 3"),
        ("6\n- 3", "6\n* 3"),
        ("ＡＢＣ１．５％", "abc1.5%"),
        ("－５", "-5"),
        ("3–5", "3-5"),
        ("3—5", "3-5"),
        ("3～5", "3~5"),
        ("3~5", "3-5"),
        ("１，０００元", "1000元"),
        ("1,234,567.89", "1234567.89"),
        ("选1、2", "选 1，2。"),
        ("100㎡", "100m²"),
        ("½", "1/2"),
        ("3∶1", "3:1"),
        ("3：1", "3:1"),
        ("答案：A", "答案A"),
        ("Hello, world. Bye.", "hello world bye"),
        ("It's 5.", "it’s 5"),
        ("版本1.5.", "版本1.5。"),
        ("C#。", "c#"),
        ("## 标题", "标题"),
        ("# 1. 概述", "1 概述"),
        ("- 苹果", "苹果"),
        ("**Python**入门", "Python入门"),
        ("`pip`", "pip"),
        ("约翰·史密斯", "约翰•史密斯"),
        ("男/女", "男、女"),
        ("今天😀！", "今天😀"),
        ("❤️", "❤"),
        ("👩‍⚕️", "👩⚕"),
        ("──────\n正文", "正文"),
        ("好吃~", "好吃"),
        ("坏\ufffd字", "坏字"),
    ],
)
def test_signs_that_do_not(left: str, right: str) -> None:
    one, other = match_keys(pa.array([left, right])).to_pylist()
    assert one == other


def test_keys_of_columns() -> None:
    texts = ["Ｈello，世界！ １２３", "㎏", None, "。。。", "！！！", "", "😀！"]
    keys = pl.DataFrame({"text": texts}).select(match_key(pl.col("text")))
    assert keys.schema == {"text": pl.String}
    assert keys["text"].to_list() == ["hello世界123", "kg", None, "。。。", "！！！", "", "😀"]
    assert pl.DataFrame({"text": []}, schema={"text": pl.String}).select(match_key(pl.col("text"))).is_empty()


def test_every_character_alone_and_between_others() -> None:
    assert_keys(pl.Series(EVERY[::61] + COMMON))
    common = pl.Series(COMMON)
    assert_keys(common + "a" + common + "5" + common + "5각" + common + "か" + common + "b的")
    assert_keys("-" + common + "Σ" + common + ".")  # folded by Polars


@pytest.mark.parametrize("form", ["NFD", "NFKD"])
def test_every_character_in_the_parts_that_nfkc_joins_again(form: str) -> None:
    characters = pl.Series(EVERY).head(0x30000)
    parts = characters.str.normalize(form)
    parts = parts.filter(parts != characters)
    assert_keys(parts)
    assert_keys("a" + parts + parts)


def test_marks_and_jamo_after_and_before_other_characters() -> None:
    """One text per mark: mark, character, mark, character …, with one in 400 characters, in rotation.

    All pairs that NFKC composes are in the test above.
    """
    others = [character for character in COMMON if character < "\U00020000"]
    assert_keys(pl.Series([mark + mark.join(others[place % 400 :: 400]) for place, mark in enumerate(MARKS + JAMO)]))


ODD = (
    st.sampled_from("12aZ.-#,、/~:*|…²½℃% +😀\u3000′")
    | st.sampled_from("ΑΣσς가각각ㄱㅏ\u0301\u0308\u0345\ufe0f\u200d゛ﾞﾟｶﾊかはガＡａⅣ㈱ﬁİıßẞǅ的一。 👍🏽\U000e0100\u0378")
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
