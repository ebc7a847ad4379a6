"""The filter's rules: one table, each rule a named Polars expression with a threshold and where it came from.

A rule measures a pair and compares: below a `min` or above a `max` the pair is rejected, at the threshold it is
kept. `measure` gives every rule's value, `judge` the first rule that fails. Before judging, a stage may mend
what need not be dropped: `strip_title` and `mask_personal_data`.

Sources of the thresholds: data-juicer's Chinese recipe (modelscope/data-juicer, alpaca-cot-zh-refine.yaml),
ChineseWebText (arXiv 2311.01149; CASIA-LM/ChineseWebText, preprocess.py), FineWeb 2's Chinese configuration
(huggingface/fineweb-2, configs/cmn_Hani.yml), Gopher (arXiv 2112.11446, table A1). The families are InternLM2's
(arXiv 2403.17297, section 3.1.1), which gives no thresholds. "Ours" are set by reading what they reject.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

import polars as pl

from .ngrams import PROFILE, profile
from .text import key


@dataclass(frozen=True, eq=False)
class Rule:
    """One rule of the filter.

    `value` is an expression over the pair's columns and, for each side, the counts of ngrams.PROFILE as
    `query.characters`, `positive.han` …; where it is null the rule has nothing to say. The rule is for pairs of
    these `tasks` and `formats`; empty formats are all of them.
    """

    name: str
    side: Literal["query", "positive", "pair"]
    bound: Literal["min", "max"]
    threshold: float
    value: pl.Expr
    origin: str
    formats: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("pretrain",)

    @property
    def applies(self) -> pl.Expr:
        """Whether the rule is for this pair."""
        task = pl.col("task").is_in(self.tasks)
        return task & pl.col("format").is_in(self.formats) if self.formats else task

    @property
    def fails(self) -> pl.Expr:
        """Whether the value in the column of the rule's name is out of bounds."""
        value = pl.col(self.name)
        return (value < self.threshold if self.bound == "min" else value > self.threshold).fill_null(False)

    @property
    def detail(self) -> pl.Expr:
        """The value beside the threshold that it missed: `0.07 < 0.1`."""
        value = pl.col(self.name).round(4).cast(pl.String).str.strip_suffix(".0")
        return pl.format(f"{{}} {'<' if self.bound == 'min' else '>'} {self.threshold:g}", value)


ALL_TASKS = ("pretrain", "retrieval", "sts", "classification")


def _count(side: str, what: str) -> pl.Expr:
    return pl.col(f"{side}.{what}")


def _share(side: str, what: str, of: str = "characters") -> pl.Expr:
    """What part of one count another is; 0 in an empty text."""
    return _count(side, what) / _count(side, of).clip(lower_bound=1)


def _matched_share(side: str, pattern: str) -> pl.Expr:
    """The share of a side's characters that a regular expression matches."""
    rest = pl.col(side).str.replace_all(pattern, "").str.len_chars()
    return 1 - rest / _count(side, "characters").clip(lower_bound=1)


def _in_long(side: str, value: pl.Expr, characters: int) -> pl.Expr:
    """The value, in texts of more than so many characters; null in others."""
    return pl.when(_count(side, "characters") > characters).then(value)


_URL = r"""https?://[^\s\p{Han}，。；、（）【】《》“”"'<>]+|www\.[a-zA-Z0-9-]+\.[a-zA-Z0-9./?=&%#_-]+"""
_MASKED = r"\[(?:手机号|身份证号|邮箱|银行卡号)\]"
_MARKUP = r"<[^<>\n]{1,100}>|\{\{[^{}]*\}\}|\{%[^{}]*%\}|\[/?[a-z]+(?:=[^\]\n]*)?\]|\]\([^)\s]*\)|\[\[|\]\]"
_SEPARATORS = r"[-=_*#~+.·•…—|/\\^@$%&]{4,}"

# U+FFFD saved as GBK; uninitialised memory read as GBK; UTF-8 read as GBK (，。的 ’ and the byte-order mark);
# UTF-8 read as Latin-1 or Windows-1252.
_MOJIBAKE = (
    "锟斤拷|烫{3,}|屯{3,}|[锛銆鐨鈥锘]|ï»¿|Ã[\x80-¿]|â€|"
    "(?:[À-ÿ][¡-¿ŒœŠšŸŽžƒˆ˜–—‘’‚“”„†‡•…‰‹›€™]{1,2}){2,}"
)

_BOILERPLATE = (
    "关注公众号 微信公众号 点击关注 扫码 扫描二维码 长按二维码 识别二维码 扫一扫 加微信 微信号 QQ群 加群 "
    "转载请注明 未经授权 禁止转载 版权所有 侵权必究 侵权请联系 本文来源 文章来源 原文链接 责任编辑 "
    "点击查看 点击下载 点击领取 点击进入 点击这里 立即下载 立即购买 立即注册 立即领取 免费领取 免费试听 "
    "优惠券 领券 限时抢购 限时优惠 全场包邮 包邮 咨询电话 客服热线 在线客服 上一篇 下一篇 相关阅读 推荐阅读 "
    "返回顶部 查看全文 阅读全文 展开全文 加载更多 更多精彩 下载APP 打开APP 登录后查看 请输入验证码"
).split()


def _characters(side: str) -> pl.Expr:
    return _count(side, "characters")


def _alphanumeric(side: str) -> pl.Expr:
    return _share(side, "letters") + _share(side, "digits")


def _punctuation(side: str) -> pl.Expr:
    return _in_long(side, _share(side, "punctuation"), 10)


def _dominant(side: str) -> pl.Expr:
    return _in_long(side, _share(side, "dominant"), 10)


def _mojibake(side: str) -> pl.Expr:
    return _share(side, "damaged") + _matched_share(side, _MOJIBAKE)


def _same_sides() -> pl.Expr:
    """1 where the sides have one key; only texts with the same number of letters are worth the comparison."""
    alike = _count("query", "letters") == _count("positive", "letters")
    query, positive = (pl.when(alike).then(pl.col(side)) for side in ("query", "positive"))
    return (key(query) == key(positive)).cast(pl.Int8)


def _ellipsis_lines(side: str) -> pl.Expr:
    ellipses = pl.col(side).str.count_matches(r"(?m)(?:…|\.\.\.)$")
    return pl.when(_count(side, "lines") >= 3).then(ellipses / _count(side, "lines"))


def _boilerplate(side: str) -> pl.Expr:
    phrases = pl.col(side).str.extract_many(_BOILERPLATE).list.join("").str.len_chars()
    return phrases / _count(side, "characters").clip(lower_bound=1)


def _han(side: str) -> pl.Expr:
    return pl.when(_count(side, "letters") > 0).then(_share(side, "han", "letters"))


def _ngrams(side: str, what: str, n: int) -> pl.Expr:
    return _count(side, what) / (_count(side, "characters") - n + 1).clip(lower_bound=1)


def _both(bound: Literal["min", "max"], value: Callable[[str], pl.Expr]) -> pl.Expr:
    """The value of whichever side is nearer to being rejected."""
    worse = pl.min_horizontal if bound == "min" else pl.max_horizontal
    return worse(value("query"), value("positive"))


def _lines(side: str, what: str, at_least: int) -> pl.Expr:
    """A count of lines as a share of the lines that are not blank, in texts of at least so many."""
    return pl.when(_count(side, "lines") >= at_least).then(_share(side, what, "lines"))


# A title at the head of its own text, set off from it: `title\n…`, `title：…`. A text whose first sentence has the
# title for its subject leaks nothing.
_SET_OFF = r"^[\s:：|—_。.-]+"


def _after_title() -> pl.Expr:
    """What follows the title in a text that begins with it as a heading; null in other texts."""
    rest = pl.col("positive").str.slice(pl.col("query").str.len_chars())
    heads = pl.col("positive").str.starts_with(pl.col("query")) & (pl.col("query") != "")
    return pl.when(heads & ((rest == "") | rest.str.contains(_SET_OFF))).then(rest.str.replace(_SET_OFF, ""))


_OURS = "ours"
_DATA_JUICER = "data-juicer, alpaca-cot-zh-refine.yaml"
_CHINESE_WEB_TEXT = "ChineseWebText, preprocess.py"
_FINEWEB = "FineWeb 2, cmn_Hani.yml"
_GOPHER = "Gopher, table A1"
_TITLED = ("title_content",)
_LABELLED_TOO = ("pretrain", "retrieval", "sts", "classification")

RULES: tuple[Rule, ...] = (
    # Something on both sides, and of a length that makes sense. A classification's positive is a class name.
    Rule("empty_side", "pair", "min", 1, _both("min", _characters), _OURS, tasks=_LABELLED_TOO),
    Rule("same_sides", "pair", "max", 0, _same_sides(), _OURS, tasks=("pretrain", "retrieval")),
    Rule("query_length", "query", "min", 2, _characters("query"), _OURS),
    Rule("query_limit", "query", "max", 8_192, _characters("query"), _OURS),
    Rule("title_limit", "query", "max", 100, _characters("query"), _OURS, _TITLED),
    Rule("positive_length", "positive", "min", 2, _characters("positive"), _OURS),
    Rule("positive_limit", "positive", "max", 100_000, _characters("positive"), _OURS),
    Rule("content_length", "positive", "min", 10, _characters("positive"), _DATA_JUICER, _TITLED),
    Rule("title_leak", "pair", "min", 10, _after_title().str.len_chars(), _OURS, _TITLED),
    # Characters.
    Rule("mojibake", "pair", "max", 0.01, _both("max", _mojibake), _OURS, tasks=_LABELLED_TOO),
    Rule("alphanumeric_ratio", "pair", "min", 0.1, _both("min", _alphanumeric), _DATA_JUICER),
    Rule("han_ratio", "pair", "min", 0.3, pl.max_horizontal(_han("query"), _han("positive")), _CHINESE_WEB_TEXT),
    Rule("digit_ratio", "positive", "max", 0.5, _in_long("positive", _share("positive", "digits"), 20), _OURS),
    Rule("symbol_ratio", "positive", "max", 0.2, _in_long("positive", _share("positive", "symbols"), 10), _OURS),
    Rule("punctuation_ratio", "pair", "max", 0.5, _both("max", _punctuation), _OURS),
    Rule("sentence_punctuation", "positive", "min", 0.01, _in_long("positive", _share("positive", "punctuation"), 200), _OURS),
    Rule("separator_ratio", "positive", "max", 0.2, _matched_share("positive", _SEPARATORS), _OURS),
    Rule("dominant_character", "pair", "max", 0.4, _both("max", _dominant), _OURS),
    # Repetition.
    Rule("character_repetition", "positive", "max", 0.6, _ngrams("positive", "top_10grams", 10), _DATA_JUICER),
    Rule("repeated_ngrams", "positive", "max", 0.5, _ngrams("positive", "repeated_13grams", 13), _CHINESE_WEB_TEXT),
    Rule("line_repetition", "positive", "max", 0.2, _share("positive", "repeated_line_characters"), _GOPHER),
    # Lines.
    Rule("line_length", "positive", "min", 10, _in_long("positive", _characters("positive")/_count("positive","lines").clip(1), 200), _CHINESE_WEB_TEXT),
    Rule("finished_lines", "positive", "min", 0.106, _lines("positive", "finished_lines", 5), _FINEWEB, _TITLED),
    Rule("ellipsis_lines", "positive", "max", 0.3, _ellipsis_lines("positive"), _GOPHER),
    # What is not prose.
    Rule("url_density", "positive", "max", 0.3, _matched_share("positive", f"{_URL}|{_MASKED}"), _OURS),
    Rule("markup_density", "positive", "max", 0.2, _matched_share("positive", _MARKUP), _OURS),
    Rule("boilerplate", "positive", "max", 0.1, _boilerplate("positive"), _OURS),
)
"""Every rule that needs no list of the recipe's, in the order in which they are judged."""


def measure(frame: pl.DataFrame, rules: Iterable[Rule] = RULES) -> pl.DataFrame:
    """Every rule's value for every pair: one column a rule, null where the rule does not apply."""
    sides = [
        profile(frame[side]).rename({what: f"{side}.{what}" for what in PROFILE}) for side in ("query", "positive")
    ]
    values = [pl.when(rule.applies).then(rule.value).cast(pl.Float64).alias(rule.name) for rule in rules]
    return pl.concat([frame, *sides], how="horizontal").lazy().select(values).collect()


def judge(frame: pl.DataFrame, rules: Collection[Rule] = RULES) -> pl.DataFrame:
    """Add `reason`, the first failing rule's name, and `detail`, such as `0.07 < 0.1`; null where none fails."""
    found = measure(frame, rules).with_columns(
        pl.coalesce([pl.when(rule.fails).then(pl.lit(rule.name)) for rule in rules]).alias("reason")
    ).with_columns(pl.coalesce([pl.when(pl.col("reason")==rule.name).then(rule.detail) for rule in rules]).alias("detail"))
    return frame.with_columns(found["reason"], found["detail"])
