"""Find the title at the head of a text, where it is a heading."""

from typing import Any

import numpy as np
import polars as pl

from ..text import match_key
from ..text.kernels import code_point, kernel, utf8_buffers
from ..text.match_key import character_key

_LABEL = "^(?:标题|题目|題目|Title)[:：]"
# 两会开幕_新浪新闻, 两会开幕 - 时政 - 人民网
_SITE = (
    r"(?:\s*[_|｜-]\s*[^\n_|｜-]{1,10})*\s*[_|｜-]\s*[^\n_|｜-]{0,10}"
    r"(?:网|网站|新闻|资讯|频道|论坛|博客|百科|日报|晚报|客户端|在线|知乎|豆瓣|贴吧|头条|搜狐|新浪|腾讯|\.com|\.cn)"
)
_OPENING = """^[《〈【「『“‘"']"""
_CLOSING = r"""[》〉】」』”’"')）\]*#!！?？…]*"""
# What sets a heading off from the text that follows. Where the title is the subject of the first sentence instead
# (《战国无双3》是…, 香港杜鹃 （学名…), nothing leaks, and cutting the title off would break the sentence.
_SET_OFF = rf"^(?:】|{_CLOSING}(?:{_SITE})?(?:\s*$|\s*\n|[^\S\n]*[。:：|｜_—]|[^\S\n]*[.-]\s))"
_SPACE = rf"^{_CLOSING}[^\S\n]+[^\s(（是为]"  # enough if the title is not in quotation marks
_SEPARATOR = rf"^{_CLOSING}(?:{_SITE}\s*(?:\n|$))?[\s:：|｜—_。.-]*"
_LONGEST = 600
"""Chosen here: characters in which a heading ends; longer titles are rejected (title_limit)."""
_BEGINNING = 16
"""Chosen here: characters that are searched for the first letter or digit before a pair is read further."""

TITLED = ("title_content",)
"""The formats whose query is the title of the positive."""


TITLE_LEFT = 10
"""Chosen here: the fewest characters that must follow a title."""


def after_title() -> pl.Expr:
    """Return the text after the title if the positive begins with the title as a heading; null for other pairs.

    The heading may differ from the title in signs, spaces and case, follow 标题：, and have or lack a site's name.
    Only pairs of a format with titles are read.
    """
    titled = pl.col("format").is_in(TITLED).alias("titled")
    return pl.struct(titled, "query", "positive").map_batches(
        _after_titles, return_dtype=pl.String, is_elementwise=True
    )


def strip_title(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut the title off title_content texts that begin with it as a heading, if enough text follows.

    If too little text follows, the text is left as it is and the rule `title_leak` rejects it.
    """
    rest = frame.select(after_title()).to_series()
    return frame.with_columns(
        pl.when(rest.str.len_chars() >= TITLE_LEFT).then(rest).otherwise("positive").alias("positive")
    )


def _after_titles(sides: pl.Series) -> pl.Series:
    after = pl.repeat(None, len(sides), dtype=pl.String, eager=True)
    titled = sides.struct.field("titled").arg_true()
    pairs = pl.DataFrame([sides.struct.field(side).gather(titled) for side in ("query", "positive")])
    likely = _begin_alike(pairs)
    return after.scatter(titled.filter(likely), _after_heading(pairs.filter(likely)))


def _begin_alike(pairs: pl.DataFrame) -> pl.Series:
    """Return whether the first letter or digit of both sides is the same, or is not among the first characters."""
    beginnings = pairs.select(pl.col("query", "positive").str.slice(0, _BEGINNING))
    title, text = (_find_first_keys(*utf8_buffers(side.to_arrow()), match_key.folding_table()) for side in beginnings)
    return pl.Series((title == text) | (title == 0) | (text == 0)) | pairs["positive"].str.contains(_LABEL)


def _after_heading(pairs: pl.DataFrame) -> pl.Series:
    after = pl.repeat(None, pairs.height, dtype=pl.String, eager=True)
    head = pl.col("positive").str.slice(0, _LONGEST)
    label = head.str.extract(f"({_LABEL})").str.len_bytes().cast(pl.Int64).fill_null(0)
    parts = pairs.select(pl.col("query").str.replace(f"{_SITE}$", ""), head.alias("head"), label.alias("start"))
    title, text = (utf8_buffers(parts[side].to_arrow()) for side in ("query", "head"))
    ends = _find_ends(*title, *text, parts["start"].to_numpy(), match_key.folding_table())
    rows = np.flatnonzero(ends)
    if not len(rows):
        return after
    found = parts[rows].with_columns(pairs["positive"].gather(rows), end=ends[rows], row=rows)
    rest = _cut("head")
    is_set_off = rest.str.contains(_SET_OFF) | (rest.str.contains(_SPACE) & ~pl.col("head").str.contains(_OPENING))
    found = found.filter(is_set_off).select("row", "query", _cut("positive").str.replace(_SEPARATOR, ""))
    if found.is_empty():
        return after
    again = _after_heading(found)  # a crawled page may repeat its heading
    return after.scatter(found["row"], again.fill_null(found["positive"]))


def _cut(name: str) -> pl.Expr:
    """Return what follows the first `end` bytes of a text."""
    return pl.col(name).cast(pl.Binary).bin.slice("end").cast(pl.String)


@kernel
def _find_ends(title_offsets: Any, titles: Any, text_offsets: Any, texts: Any, starts: Any, table: Any) -> Any:
    """Find where each text, read from its `starts`, has had all letters and digits of its title; 0 if it has others.

    Returns int64[texts], in bytes from the beginning of the text. Signs and spaces are skipped in both.
    """
    ends = np.zeros(len(starts), np.int64)
    for row in range(len(starts)):
        at, end = title_offsets[row], title_offsets[row + 1]
        there, stop = text_offsets[row] + starts[row], text_offsets[row + 1]
        after = there
        wanted, at = _next_key(titles, at, end, table)
        while wanted:
            key, there = _next_key(texts, there, stop, table)
            if key != wanted:
                break
            after = there
            wanted, at = _next_key(titles, at, end, table)
        if not wanted and after > text_offsets[row] + starts[row]:
            ends[row] = after - text_offsets[row]
    return ends


@kernel
def _find_first_keys(offsets: Any, texts: Any, table: Any) -> Any:
    """Find the key of the first letter or digit of each text, uint32[texts]; 0 if a text has none."""
    keys = np.zeros(len(offsets) - 1, np.uint32)
    for row in range(len(keys)):
        keys[row] = _next_key(texts, offsets[row], offsets[row + 1], table)[0]
    return keys


@kernel
def _next_key(data: Any, at: int, end: int, table: Any) -> tuple[np.uint32, int]:
    """Return the key of the next letter or digit from `at` on, and where it ends; key 0 if none follows."""
    while at < end:
        point, width = code_point(data, at)
        at += width
        key = character_key(point, table)
        if key:
            return key, at
    return np.uint32(0), at
