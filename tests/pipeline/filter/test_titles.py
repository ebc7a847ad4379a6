"""Titles at the head of a text: which are headings, and what follows them."""

import polars as pl
import pytest
from conan_embedding.pipeline.filter.titles import after_title

TITLE = "两会今日开幕，代表热议民生"
BODY = "今天上午，会议在北京开幕，来自各地的代表参加了会议。"


def rest(title: str, text: str) -> str | None:
    pair = {"query": [title], "positive": [text], "format": ["title_content"]}
    found: str | None = pl.DataFrame(pair).select(after_title()).item()
    return found


@pytest.mark.parametrize(
    ("title", "heading"),
    [
        (TITLE, f"{TITLE}\n"),
        (TITLE, f"{TITLE}："),
        (TITLE, f"{TITLE}。"),
        (TITLE, f"{TITLE} "),
        (TITLE, "两会今日开幕 代表热议民生\n"),
        (TITLE, "两会今日开幕 代表热议民生。"),
        (TITLE, "两 会 今 日 开 幕，代表热议民生！\n"),
        (TITLE, f"《{TITLE}》\n\n"),
        (TITLE, f"“{TITLE}”\n"),
        (TITLE, f"【{TITLE}】"),
        (TITLE, f"## {TITLE}\n"),
        (TITLE, f"**{TITLE}**\n"),
        (TITLE, f"标题：{TITLE}\n"),
        (TITLE, f"{TITLE}_新浪新闻\n"),
        (TITLE, f"{TITLE}\n{TITLE}\n"),
        (f"{TITLE}_新浪新闻", f"{TITLE}\n"),
        (f"{TITLE} - 时政 - 人民网", f"{TITLE}\n"),
        (f"{TITLE}|知乎", f"{TITLE}|知乎\n"),
        ("5G 商用，来了？", "５ｇ商用,来了\n"),
    ],
)
def test_a_heading_is_found(title: str, heading: str) -> None:
    assert rest(title, heading + BODY) == BODY


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("战国无双3", "《战国无双3》是由光荣开发的系列作。"),
        ("Go车志", "《Go车志 BuyCarTV》，于2007年播放。"),
        ("香港杜鹃", "香港杜鹃 （学名），别称白马银花。"),
        ("2007年亚足联冠军联赛", "2007年亚足联冠军联赛 是第26届亚洲冠军联赛。"),
        ("以仁王", "以仁王，日本平安时代人物。"),
        ("尼古拉·卡利尼奇", "尼古拉·卡利尼奇（：Nikola），是一名球员。"),
        ("“我们的中国梦”——文化进万家活动举行", "“我们的中国梦”——文化进万家活动在各地举行。"),
        ("亚麻", "亚麻籽\n亚麻是一种植物。"),
        ("第1章", "第1.5章"),
        (TITLE, TITLE[:-1]),
        (TITLE, ""),
        ("", BODY),
        ("？", f"？\n{BODY}"),
    ],
)
def test_a_title_in_a_sentence_is_not_a_heading(title: str, text: str) -> None:
    assert rest(title, text) is None


def test_a_text_that_is_its_title_has_nothing_after_it() -> None:
    assert rest(TITLE, TITLE) == ""
    assert rest(TITLE, f"《{TITLE}》") == ""


@pytest.mark.parametrize("signs", ["【", "“" * 16, "*" * 40])
def test_signs_before_a_heading_are_skipped(signs: str) -> None:
    assert rest(TITLE, f"{signs}{TITLE}】{BODY}") == BODY


def test_only_formats_with_titles_are_read() -> None:
    pairs = pl.DataFrame({"query": [TITLE] * 2, "positive": [f"{TITLE}\n{BODY}"] * 2})
    pairs = pairs.with_columns(format=pl.Series(["question_answer", "title_content"]))
    assert pairs.select(after_title()).to_series().to_list() == [None, BODY]
