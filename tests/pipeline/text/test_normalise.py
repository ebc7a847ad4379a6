"""Normalisation: what each step does, and that a second time changes nothing."""

import html
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import Literal
from unittest.mock import patch

import polars as pl
import pytest
from conan_embedding.pipeline.text.normalise import DEEPEST, _traditional_to_simplified, normalise, simplify
from conan_embedding.schemas.errors import MissingExtraError
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples


def normalised(*texts: str | None) -> list[str | None]:
    return (
        pl.DataFrame({"text": texts}, schema={"text": pl.String})
        .select(normalise(pl.col("text")))
        .to_series()
        .to_list()
    )


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        # Unicode.
        ("cafe\u0301", "caf\u00e9"),
        ("ＡＢＣｘｙｚ０９，。！（）", "ABCxyz09，。！（）"),
        ("\ufeff零\u200b宽\u00ad字\u202e符\x00\x07", "零宽字符"),
        ("\x1b[1;31m错误\x1b[0m \x1b[2K[3m]", "错误 [3m]"),
        # Glyphs.
        ("⽂⽋⼀⾼⽅⾏ ⻓⻔⻛⺟⻩⻝⻰ ⽤⼾", "文欠一高方行 长门风母黄食龙 用户"),
        ("李\ufa0e", "李\ufa0e"),  # the first is compatible, the second an ideograph among those that are
        (bytes.fromhex("fe59a6d9a8bcfe51").decode("gb18030"), "龴︐ḿ𠂇"),
        ("\uf0b7 甲\r\n\u3000\uf06c\uf020乙\uf0b7丙<br>\uf0fc丁", "• 甲\n• 乙•丙\n•丁"),
        ("\uf8eb½\uf8f6\uf8ea", "⎛½⎞™"),
        ("⺀ 笑\ue412 第\uf075节 \U000f0001\U00100000", "⺀ 笑\ue412 第\uf075节 \U000f0001\U00100000"),
        # White space.
        ("甲\r\n乙\r丙\u2028丁\x0b戊", "甲\n乙\n丙\n丁\n戊"),
        ("一\u3000\u3000二\u00a0三\t 四", "一 二 三 四"),
        ("  首 \n\n\n\n \u3000尾 ", "首\n\n尾"),
        # Entities.
        ("AT&amp;T &lt; &#20013;&#x6587;&nbsp;&quot;", 'AT&T < 中文 "'),
        ("&copy;2024 &unknown; &in; R&D; a &b", "©2024 &unknown; &in; R&D; a &b"),
        ("&amp;amp;lt;", "<"),
        ("&#55357;&#56832;&amp;#xD83D;&amp;#xDE00; &#55357;", "😀😀 \ufffd"),
        ("&amp;lt;br&amp;gt;", ""),
        # Tags.
        ("<p>第一段</p><P class='x'>第二段</P>", "第一段\n\n第二段"),
        ("左<br/>右<BR>下", "左\n右\n下"),
        ('<a href="http://x.cn/?a=1">链接</a>和<b>粗</b>', "链接和粗"),
        ("<tr><td>1</td><td>2</td></tr>", "1 2"),
        ("<ruby>注音<rt>zhu yin</rt></ruby>", "注音 zhu yin"),
        ("10<sup>6</sup>、5×10<sup>-6</sup>、s<SUP> −1</SUP> 和 H<sub>2</sub>O", "10^6、5×10^-6、s^−1 和 H2O"),
        ("第1<sup>st</sup>", "第1st"),
        ("前<script type=\"x\">if (a < b) {}</script><style>p {}</style><!-- 注\n释 -->后", "前后"),
    ],
)  # fmt: skip
def test_normalise(raw: str, clean: str) -> None:
    assert normalised(raw) == [clean]


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "if a<b and c>d: x = 1<<2",
        "List<String> x = new Map<Object, List<Button>>();",
        "class Box<A> { Pair<S> p; }",
        "vector<int> v; #include <map>",
        "E = mc², ½ ≠ 50%，《书》“引”",
        "第一行\n\n第二行",
        "👍🏽 emoji",
    ],
)
def test_normalise_leaves_mathematics_and_code(text: str) -> None:
    assert normalised(text) == [text]


def test_normalise_keeps_null_and_order() -> None:
    assert normalised(None, "<b>一</b>", "", "二", "&amp;lt;") == [None, "一", "", "二", "<"]


def test_normalise_ends_on_deep_nesting() -> None:
    deep = DEEPEST + 5
    assert normalised("<em" * deep + ">" * deep + "完", "&" + "amp;" * 10_000 + "lt;") == [
        "em" * 5 + ">" * 5 + "完",
        "<",
    ]


PIECES = re.findall(r"\S+", "& amp; lt; # 97; x26; < > b br / !-- --> sup script = 1 e 中 Ａ ｐ ；")
SPACES_AND_MARKS = [
    " ",
    "\n",
    "\r",
    "\t",
    "\u3000",
    "\u200b",
    "\u0301",
    "\u0338",
    "\ufeff",
    "\u037e",
    "⽂",
    "\uf020",
    "\uf06c",
]
MARKUP = st.lists(st.sampled_from(PIECES + SPACES_AND_MARKS)).map("".join)


@max_examples(60)
@given(st.lists(st.one_of(MARKUP, st.text()), min_size=1, max_size=30))
def test_normalise_is_idempotent(texts: list[str]) -> None:
    once = normalised(*texts)
    assert normalised(*once) == once
    for text in once:
        assert text is not None
        assert unicodedata.is_normalized("NFC", text)
        assert text == text.strip() and "\n\n\n" not in text and "\t" not in text


@max_examples(60)
@given(st.lists(st.one_of(MARKUP, st.text()), min_size=1, max_size=30))
def test_normalise_judges_each_row_alone(texts: list[str]) -> None:
    assert normalised(*texts) == [normalised(text)[0] for text in texts]
    assert normalised(*reversed(texts)) == normalised(*texts)[::-1]


def normalised_without_search(*texts: str) -> list[str | None]:
    """Run every step on every text, whether or not its pattern is found there."""

    def change(texts: pl.Series, pattern: str, step: pl.Expr) -> pl.Series:
        return texts.to_frame().select(step).to_series()

    with patch.multiple("conan_embedding.pipeline.text.normalise", _change=change, _CHANGEABLE=""):
        return normalised(*texts)


def assert_patterns_find_all_that_changes(*texts: str) -> None:
    expected = normalised_without_search(*texts)
    assert [three for three in zip(texts, normalised(*texts), expected, strict=True) if three[1] != three[2]] == []


@max_examples(60)
@given(st.lists(st.one_of(MARKUP, st.text(), st.text(st.characters(max_codepoint=0x300))), min_size=1, max_size=30))
def test_patterns_find_all_that_changes(texts: list[str]) -> None:
    assert_patterns_find_all_that_changes(*texts)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_patterns_find_every_character_that_changes(form: Literal["NFC", "NFD"]) -> None:
    """Each character between letters, alone, at a line break; its parts after other characters that NFC joins."""
    points = [*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200)]
    parts = [unicodedata.normalize(form, chr(point)) for point in points]
    shapes = ["a{}b", "{}", "가{0}\n{0}か{0}"] if form == "NFD" else ["中{}"]
    assert_patterns_find_all_that_changes(*(shape.format(part) for shape in shapes for part in parts))


@given(st.integers(0x20, 0x2FFFF).filter(lambda point: not 0xD800 <= point < 0xE000))
def test_numeric_entities_are_html_s(point: int) -> None:
    decoded = html.unescape(f"&#{point};")
    assert normalised(f"x&#{point};y", f"x&#x{point:x};y") == normalised(f"x{decoded}y") * 2


@pytest.fixture(scope="module")
def to_simplified() -> Callable[[str], str]:
    opencc = pytest.importorskip("opencc", reason="the extra [zh] is not installed")
    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert


def simplified(*texts: str | None) -> list[str | None]:
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    found = frame.select(simplify(pl.col("text")).alias("simple"), "text")
    assert found["text"].to_list() == list(texts)
    return found["simple"].to_list()


def test_simplify_knows_phrases(to_simplified: Callable[[str], str]) -> None:
    assert simplified("臺灣的頭髮", None, "plain", "", "乾坤與乾燥", "后来") == [
        "台湾的头发",
        None,
        "plain",
        "",
        "乾坤与干燥",
        "后来",
    ]


def test_simplify_makes_no_phrase_of_two_texts(to_simplified: Callable[[str], str]) -> None:
    assert to_simplified("乾坤") == "乾坤"
    assert simplified("乾", "坤", "乾\x1f坤", "乾坤") == ["干", "坤", "干\x1f坤", "乾坤"]


HAN = st.text(
    st.sampled_from("臺灣頭髮發展乾坤後皇后裡里面麵著作瞭望徵信干預幹部隻只鬱金香藉口慰藉\U00030000㐀ab \n，")
)


@max_examples(60)
@given(st.lists(st.one_of(st.none(), HAN, st.text()), max_size=30))
def test_simplify_is_opencc_of_each_text(to_simplified: Callable[[str], str], texts: list[str | None]) -> None:
    assert simplified(*texts) == [None if text is None else to_simplified(text) for text in texts]


def test_simplify_converts_many_calls_worth(to_simplified: Callable[[str], str]) -> None:
    texts = [f"{number}頭髮{'發展' * (number % 900)}" for number in range(3_000)]
    assert simplified(*texts) == [to_simplified(text) for text in texts]


def test_opencc_leaves_what_holds_no_han_character(to_simplified: Callable[[str], str]) -> None:
    everything = pl.Series([chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000])
    others = "".join(everything.filter(~everything.str.contains(r"\p{Han}")))
    assert to_simplified(others) == others


@max_examples(60)
@given(st.lists(st.one_of(HAN, st.text(), MARKUP), min_size=1, max_size=20))
def test_simplify_leaves_texts_normalised(to_simplified: Callable[[str], str], texts: list[str]) -> None:
    simple = simplified(*normalised(*texts))
    assert normalised(*simple) == simple


def test_simplify_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    _traditional_to_simplified.cache_clear()
    with pytest.raises(MissingExtraError, match=r"^simplify: true needs .* pip install 'conan-embedding\[zh\]'"):
        simplify(pl.col("text"))
