"""The filter's rules. Each is a named Polars expression with a threshold and the source of that threshold.

`measure` computes every rule's value for every pair; `judge` finds the first rule that a pair fails. Two defects are
repaired before judging, not rejected: titles.strip_title cuts leaked titles, text.personal_data masks personal data.

A plugin registers a rule of its own. Once the recipe lists its module under `plugins:`, the rule is applied, the recipe
may set its threshold under `rules:`, and `conan filter --explain` and `--dry-run` show it:

    RULES.register("too_loud", Rule("too_loud", "positive", "max", 5, pl.col("positive").str.count_matches("！"), "…"))

Sources of the thresholds: data-juicer's Chinese recipe (modelscope/data-juicer, alpaca-cot-zh-refine.yaml),
ChineseWebText (arXiv 2311.01149; CASIA-LM/ChineseWebText, preprocess.py), FineWeb 2's Chinese configuration
(huggingface/fineweb-2, configs/cmn_Hani.yml), Gopher (arXiv 2112.11446, section A1.1 and table A1). The families of
rules are those of InternLM2 (arXiv 2403.17297, section 3.1.1), which gives no thresholds. Thresholds "chosen here" were
set by reading what they reject.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import polars as pl

from ...schemas.errors import RecipeError
from ...schemas.registry import Registry, check_names
from ...schemas.settings import ClassifierSettings
from ..text.match_key import match_key
from ..text.personal_data import MASKS
from .blocked_words import count_words
from .text_counts import PROFILE, profile
from .titles import TITLE_LEFT, TITLED, after_title

Side = Literal["query", "positive", "pair"]
Bound = Literal["min", "max"]


@dataclass(frozen=True, eq=False)
class Rule:
    """One rule of the filter: it rejects pairs whose value is below a "min" threshold or above a "max" threshold.

    Args:
        name: The rule's name in a recipe, and the reason given for the pairs that it rejects.
        side: What is measured. A classifier reads this text; for other rules it only appears in messages.
        bound: Whether the threshold is the lowest ("min") or the highest ("max") value that passes.
        threshold: The default; a recipe may change it.
        value: An expression over the pair's columns and, for both sides, the counts in text_counts.PROFILE, named
            `query.characters`, `positive.han` and so on. A pair whose value is null passes.
        origin: The source of the threshold.
        formats: The rule judges only pairs of these formats; empty for all formats.
        tasks: The rule judges only pairs of these tasks. By default pretrain, and passage if the side is the positive.
        version: Raise it when `value`, `formats` or `tasks` change. The hash of an expression differs between machines,
            so only name, threshold and version decide whether shards that are already filtered are filtered again.
    """

    name: str
    side: Side
    bound: Bound
    threshold: float
    value: pl.Expr
    origin: str
    formats: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None
    version: int = 1

    @property
    def applies(self) -> pl.Expr:
        """Whether the rule judges a pair."""
        by_default = ("pretrain", "passage") if self.side == "positive" else ("pretrain",)
        task = pl.col("task").is_in(by_default if self.tasks is None else self.tasks)
        return task & pl.col("format").is_in(self.formats) if self.formats else task

    @property
    def fails(self) -> pl.Expr:
        """Whether a pair's value, in the column with the rule's name, is out of bounds."""
        value = pl.col(self.name)
        return value < self.threshold if self.bound == "min" else value > self.threshold


def _count(side: str, what: str) -> pl.Expr:
    return pl.col(f"{side}.{what}")


def _share(side: str, what: str, of: str = "characters") -> pl.Expr:
    """Return one count divided by another; 0 for an empty text."""
    return _count(side, what) / _count(side, of).clip(1)


def _both(bound: Bound, value: Callable[[str], pl.Expr]) -> pl.Expr:
    """Return the value of the side that is nearer to being rejected."""
    worse = pl.min_horizontal if bound == "min" else pl.max_horizontal
    return worse(value("query"), value("positive"))


def _in_long(side: str, characters: int, value: pl.Expr) -> pl.Expr:
    """Restrict a value to texts with more than `characters` characters: shares of a few characters say little."""
    return pl.when(_count(side, "characters") > characters).then(value)


def _share_of_lines(side: str, at_least: int, lines: pl.Expr) -> pl.Expr:
    """Return `lines` as a share of the non-blank lines, for texts with at least `at_least` of those."""
    return pl.when(_count(side, "lines") >= at_least).then(lines / _count(side, "lines"))


def _share_of_ngrams(side: str, what: str, n: int) -> pl.Expr:
    return _count(side, what) / (_count(side, "characters") - n + 1).clip(1)


def _suspect(side: str, what: str) -> pl.Expr:
    """Return the texts in which a pattern may match: those with at least one `what`, and empty texts for others.

    Polars would search the texts underneath nulls, too.
    """
    return pl.when(_count(side, what) > 0).then(pl.col(side)).otherwise(pl.lit(""))


def _bracketed(side: str) -> pl.Expr:
    return _suspect(side, "brackets")


def _share_matched(side: str, pattern: str, text: pl.Expr | None = None) -> pl.Expr:
    """Return the share of a side's characters that a pattern matches, in the side itself or in `text`."""
    text = pl.col(side) if text is None else text
    matched = text.str.len_chars() - text.str.replace_all(pattern, "").str.len_chars()
    return matched / _count(side, "characters").clip(1)


def _characters(side: str) -> pl.Expr:
    return _count(side, "characters")


def _same_sides() -> pl.Expr:
    """Return 1 if both sides have the same match key, else 0; only texts with equally many letters are compared."""
    same_letters = (_count("query", "letters") == _count("positive", "letters")).alias("same_letters")
    return pl.struct(same_letters, "query", "positive").map_batches(
        _compare_keys, return_dtype=pl.Int8, is_elementwise=True
    )


def _compare_keys(sides: pl.Series) -> pl.Series:
    """Return 1 for rows with `same_letters` in which `query` and `positive` have the same match key, 0 for others."""
    rows = sides.struct.field("same_letters").arg_true()
    texts = pl.concat([sides.struct.field(side).gather(rows).alias("text") for side in ("query", "positive")])
    keys = texts.to_frame().lazy().select(match_key(pl.col("text"))).collect().to_series()
    same = keys.head(len(rows)) == keys.tail(len(rows))
    return pl.zeros(len(sides), pl.Int8, eager=True).scatter(rows, same.cast(pl.Int8))


def _alphanumeric(side: str) -> pl.Expr:
    return _in_long(side, 0, _share(side, "letters") + _share(side, "digits"))


def _punctuation(side: str) -> pl.Expr:
    return _in_long(side, 10, _share(side, "punctuation"))


def _dominant(side: str) -> pl.Expr:
    return _in_long(side, 20, _share(side, "dominant"))


def _han(side: str) -> pl.Expr:
    """Return the share of Han characters among all letters: digits and punctuation belong to no language."""
    return pl.when(_count(side, "letters") > 0).then(_share(side, "han", "letters"))


# In this order: U+FFFD saved as GBK; uninitialised memory read as GBK; UTF-8 read as GBK; UTF-8 read as Windows-1252.
# Every match begins with a character that text_counts.PROFILE counts as `misread`.
_MOJIBAKE = (
    "锟斤拷|烫{3,}|屯{3,}|[銆鈥]|鐨[勪勬勫]|锛[屾屽屼岃]|ï»¿|Ã[\u0080-¿]|â€|"
    "(?:[À-ÿ][¡-¿ŒœŠšŸŽžƒˆ˜–—‘’‚“”„†‡•…‰‹›€™]{1,2}){2,}"
)


def _mojibake(side: str) -> pl.Expr:
    return _share_matched(side, _MOJIBAKE, _suspect(side, "misread"))


def _damaged(side: str) -> pl.Expr:
    return _share(side, "damaged")


def _in_prose(side: str, value: pl.Expr) -> pl.Expr:
    """Restrict a value to texts that are mostly Han: code, logs and formulas may repeat themselves."""
    return pl.when(_share(side, "han") >= 0.5).then(value)


def _ellipsis_lines(side: str) -> pl.Expr:
    return _share_of_lines(side, 5, pl.col(side).str.count_matches(r"(?m)(?:…|\.\.\.)$"))


_URL = r"""https?://[^\s\p{Han}，。；、（）【】《》“”"'<>]+|www\.[a-zA-Z0-9-]+\.[a-zA-Z0-9./?=&%#_-]+"""
_CONTACT = "|".join([_URL, *(rf"\[{mask[1:-1]}\]" for mask in MASKS.values())])
# Every match of _MARKUP and _CHAT_TOKEN begins with a character that text_counts.PROFILE counts as `brackets`.
_MARKUP = r"</?[a-zA-Z][^<>\n:]{0,80}>|\{\{[^{}]*\}\}|\{%[^{}]*%\}|\[/?[a-z]+(?:=[^\]\n]*)?\]|\[\[|\]\]"

# A news text may contain one of these phrases; adverts and page navigation contain little else.
_BOILERPLATE = (
    "关注公众号|微信公众号|点击关注|扫码|扫描二维码|长按二维码|识别二维码|扫一扫|加微信|微信号|QQ群|加群|"
    "转载请注明|未经授权|禁止转载|版权所有|侵权必究|侵权请联系|本文来源|文章来源|原文链接|责任编辑|"
    "点击查看|点击下载|点击领取|点击进入|点击这里|立即下载|立即购买|立即注册|立即领取|免费领取|免费试听|"
    "优惠券|领券|限时抢购|限时优惠|全场包邮|包邮|客服热线|在线客服|上一篇|下一篇|相关阅读|推荐阅读|"
    "返回顶部|查看全文|阅读全文|展开全文|加载更多|更多精彩|下载APP|打开APP|登录后查看|请输入验证码"
)


def _boilerplate() -> pl.Expr:
    """Return the share of boilerplate phrases, without the mask of WeChat ids, which contains one."""
    mask = MASKS["wechat"]
    masks = _bracketed("positive").str.count_matches(mask, literal=True)
    masked = masks * len(mask) / _characters("positive").clip(1)
    return _share_matched("positive", rf"\[{mask[1:-1]}\]|{_BOILERPLATE}") - masked


# Missing values as programs write them, answers left out, traces of pictures in chats, what platforms write in place of
# people. 无 and 没有 are answers.
_NULL_WORD = (
    r"^(?:(?i:nan|none|null|nil|n/a|undefined|<na>|\(null\))|N(?:A|aT)|#(?:N/A|REF!|VALUE!|NAME\?|NULL!|DIV/0!)"
    r"|\[object Object\]|\[(?:UNK|PAD)\]|[暂暫][无無](?:答案|回答|[内內]容|信息|资料|資料)?"
    r"|\\N|[转轉][发發]微博|分享(?:[图圖]片|[视視][频頻])|(?:此|[该該])用[户戶](?:[没沒]有|未)(?:及[时時])?填[写寫][评評][价價论論]?(?:[内內]容)?"
    r"|[评評][价價]方未及[时時][做作]出[评評][价價][,，]?系[统統]默[认認]好[评評]"
    r"|(?:抱歉[,，])?(?:此|[该該])(?:微博|[内內]容|[评評][论論]|回答|帖子)已(?:被[^\s\p{P}]{0,4})?[删刪]除"
    r"|[（(]?(?:答案?[:：]?)?略[)）]?|!\[[^\]]*\]\([^()\s]*\)"
    r"|(?:[\[［【(（] ?(?:[图圖]片?|照片|[视視][频頻]|[语語]音|文件|附件|[链鏈]接|(?:[动動][画畫])?表情|位置|名片"
    r"|(?i:image|photo|video)) ?[)）\]］】]\s*)+)[。.！!]?$"
)
_CHAT_TOKEN = (  # ChatML, Llama 3, ChatGLM, DeepSeek, Llama 2, Gemma
    r"<\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id"
    r"|system|user|assistant|observation|end)\|>|<｜(?:begin▁of▁sentence|end▁of▁sentence|User|Assistant)｜>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|\[gMASK\]"
)


def _contains(pattern: str, text: Callable[[str], pl.Expr] = pl.col) -> pl.Expr:
    """Return 1 if a pattern matches either side, else 0."""
    return (text("query").str.contains(pattern) | text("positive").str.contains(pattern)).cast(pl.Int8)


_CHOSEN = "chosen here"
_BY_READING = "chosen here by reading rejected pairs"
_WORDS = "ChineseWebText's 0.3, converted to words: one Han character counts as five letters of other scripts"
_DATA_JUICER = "data-juicer, alpaca-cot-zh-refine.yaml"
_CHINESE_WEB_TEXT = "ChineseWebText, preprocess.py"
_FINEWEB = "FineWeb 2, cmn_Hani.yml"
_GOPHER = "Gopher, section A1.1"
_GOPHER_LINES = "Gopher, table A1: its limit on repeated lines, applied to their characters"
_PROSE = ("pretrain", "passage")
_UNSCORED = ("pretrain", "retrieval")
_TEXTS = (*_UNSCORED, "passage")
_PAIRS = ("pretrain", "retrieval", "sts", "classification")
_ALL_TASKS = (*_PAIRS, "passage")

# fmt: off
_BUILT_IN = (
    # Both sides have a text, the texts differ, and their lengths are sensible. A passage's query is empty.
    Rule("empty_side", "pair", "min", 1, _both("min", _characters), _CHOSEN, tasks=_PAIRS),
    Rule("same_sides", "pair", "max", 0, _same_sides(), _CHOSEN, tasks=_UNSCORED),
    Rule("query_length", "query", "min", 2, _characters("query"), _CHOSEN),
    Rule("query_limit", "query", "max", 8_192, _characters("query"), _CHOSEN),
    Rule("title_limit", "query", "max", 512, _characters("query"), _BY_READING, TITLED),
    Rule("positive_length", "positive", "min", 2, _characters("positive"), _CHOSEN),
    Rule("positive_limit", "positive", "max", 100_000, _characters("positive"), _CHOSEN),
    Rule("content_length", "positive", "min", 10, _characters("positive"), _DATA_JUICER, TITLED),
    Rule("wordless", "positive", "min", 1, _count("positive", "letters"), _BY_READING),
    Rule("null_word", "pair", "max", 0, _contains(_NULL_WORD), _BY_READING, tasks=_TEXTS),
    Rule("title_leak", "pair", "min", TITLE_LEFT, after_title().str.len_chars(), _CHOSEN, TITLED, version=2),
    # Characters. For han_ratio one Chinese side is enough: the answer to a Chinese question may be code or English.
    Rule("mojibake", "pair", "max", 0.01, _both("max", _mojibake), _CHOSEN, tasks=_ALL_TASKS),
    Rule("damaged_characters", "pair", "max", 0.2, _both("max", _damaged), _BY_READING, tasks=_ALL_TASKS),
    Rule("alphanumeric_ratio", "pair", "min", 0.1, _both("min", _alphanumeric), _DATA_JUICER, tasks=_PROSE, version=2),
    Rule("han_ratio", "pair", "min", 0.08, pl.max_horizontal(_han("query"), _han("positive")), _WORDS, tasks=_PROSE),
    Rule("digit_ratio", "positive", "max", 0.5, _in_long("positive", 20, _share("positive", "digits")), _CHOSEN),
    Rule("symbol_ratio", "positive", "max", 0.3, _in_long("positive", 10, _share("positive", "symbols")), _BY_READING),
    Rule("punctuation_ratio", "pair", "max", 0.5, _both("max", _punctuation), _CHOSEN, tasks=_PROSE),
    Rule("unpunctuated", "positive", "min", 0.01,
         _in_long("positive", 200, _share("positive", "punctuation")), _CHOSEN),
    Rule("dominant_character", "pair", "max", 0.4, _both("max", _dominant), _CHOSEN, tasks=_PROSE),
    # Repetition.
    Rule("character_repetition", "positive", "max", 0.6, _share_of_ngrams("positive", "top_10grams", 10), _DATA_JUICER),
    Rule("repeated_ngrams", "positive", "max", 0.5,
         _in_prose("positive", _share_of_ngrams("positive", "repeated_13grams", 13)), _CHINESE_WEB_TEXT),
    Rule("line_repetition", "positive", "max", 0.3,
         _in_prose("positive", _share("positive", "repeated_line_characters")), _GOPHER_LINES, TITLED),
    # Lines and separators.
    Rule("line_length", "positive", "min", 10,
         _in_long("positive", 200, _characters("positive") / _count("positive", "lines").clip(1)),
         _CHINESE_WEB_TEXT, TITLED),
    Rule("finished_lines", "positive", "min", 0.106,
         _share_of_lines("positive", 5, _count("positive", "finished_lines")), _FINEWEB, TITLED),
    Rule("ellipsis_lines", "positive", "max", 0.3, _ellipsis_lines("positive"), _GOPHER, TITLED),
    Rule("separator_ratio", "positive", "max", 0.4, _share("positive", "separators"), _BY_READING),
    # Links, markup and boilerplate.
    Rule("url_density", "positive", "max", 0.6, _share_matched("positive", _CONTACT), _CHOSEN),
    Rule("markup_density", "positive", "max", 0.2,
         _share_matched("positive", _MARKUP, _bracketed("positive")), _CHOSEN),
    Rule("chat_tokens", "pair", "max", 0, _contains(_CHAT_TOKEN, _bracketed), _CHOSEN, tasks=_TEXTS),
    Rule("boilerplate", "positive", "max", 0.1, _boilerplate(), _CHOSEN, version=2),
)
# fmt: on

RULES: Registry[Rule] = Registry("filter rule")
"""The rules that need no list or model from the recipe, in the order in which they are tried; rules of plugins last."""

for _rule in _BUILT_IN:
    RULES.register(_rule.name, _rule)


def build_word_rule(words: Iterable[str]) -> Rule:
    """Build the rule that counts the recipe's blocked words on both sides, ignoring case, and allows none."""
    listed = tuple(sorted({word.lower() for word in words}))
    # A line break after each side keeps a word from matching across two texts.
    texts = pl.concat_str(["query", "positive", pl.lit("")], separator="\n").str.to_lowercase()
    value = texts.map_batches(partial(count_words, listed), return_dtype=pl.Int64, is_elementwise=True)
    return Rule("blocked_words", "pair", "max", 0, value, "the recipe's list", tasks=_ALL_TASKS)


def build_domain_rule(domains: Iterable[str]) -> Rule:
    """Build the rule that counts links to blocked domains and subdomains, in both sides and `meta`, and allows none."""
    ends = [f"{mark}{domain.lower().strip('.')}/" for domain in sorted(set(domains)) for mark in ("//", ".")]
    everywhere = pl.concat_str(["meta", "query", "positive"], separator=" ")
    hosts = everywhere.str.extract_all(r"//[a-zA-Z0-9.-]+").list.join("/ ").str.to_lowercase() + "/"
    value = hosts.str.find_many(ends).list.len()
    return Rule("blocked_domains", "pair", "max", 0, value, "the recipe's list", tasks=_ALL_TASKS)


def build_classifier_rule(name: str, settings: ClassifierSettings) -> Rule:
    """Build a classifier's rule. Its value, the probability of the configured label, is a column of classifiers.py."""
    origin = f"the recipe's classifier: probability of {settings.label}"
    return Rule(name, settings.side, "min", settings.min, pl.col(name), origin, tasks=tuple(settings.tasks))


def select_rules(
    settings: Mapping[str, float | bool | None],
    words: Collection[str] = (),
    domains: Collection[str] = (),
    classifiers: Mapping[str, ClassifierSettings] = MappingProxyType({}),
    place: str = "filter.rules",
) -> tuple[Rule, ...]:
    """Select the rules that apply under a recipe's settings, with their thresholds.

    A number in the settings replaces a rule's threshold, False turns the rule off, True and None keep the default.
    Lists of blocked words and blocked domains add one rule each. Classifiers add one rule each and come last.

    Raises:
        RecipeError: the settings (at `place` in the recipe) name an unknown rule, or a classifier has the name of
            another rule.
    """
    listed = [rule(entries) for rule, entries in ((build_word_rule, words), (build_domain_rule, domains)) if entries]
    models = [build_classifier_rule(name, classifier) for name, classifier in classifiers.items()]
    names = [*RULES, "blocked_words", "blocked_domains"]
    if taken := sorted(set(names) & set(classifiers)):
        raise RecipeError(f"filter.classifiers: a classifier can't be called {taken[0]!r}: a filter rule has that name")
    check_names("filter rule", settings, [*names, *classifiers], place)
    chosen = [(rule, settings.get(rule.name)) for rule in (*RULES.values(), *listed, *models)]
    return tuple(
        rule if setting is None or setting is True else replace(rule, threshold=float(setting))
        for rule, setting in chosen
        if setting is not False
    )


def measure(frame: pl.DataFrame, rules: Iterable[Rule]) -> pl.DataFrame:
    """Compute every rule's value for every pair: one Float64 column per rule, null where the rule does not apply."""
    counts = [
        profile(frame[side]).rename({what: f"{side}.{what}" for what in PROFILE}) for side in ("query", "positive")
    ]
    values = [pl.when(rule.applies).then(rule.value).cast(pl.Float64).alias(rule.name) for rule in rules]
    # Lazy, so that expressions shared by several rules are computed once.
    return pl.concat([frame, *counts], how="horizontal").lazy().select(values).collect()


def judge(frame: pl.DataFrame, rules: Collection[Rule]) -> pl.DataFrame:
    """Add `reason`, the first failing rule's name, and `detail`, such as `0.07 < 0.1`; both are null if no rule fails.

    The frame has the columns of schemas.pairs.PAIR. The rules are tried in the given order.
    """
    if not rules:
        return frame.with_columns(pl.lit(None, pl.String).alias(name) for name in ("reason", "detail"))
    return frame.with_columns(find_first_failing(measure(frame, rules), rules).get_columns())


def find_first_failing(values: pl.DataFrame, rules: Collection[Rule]) -> pl.DataFrame:
    """Return the columns `reason` and `detail` that `judge` adds, computed from one column of values per rule."""
    sign = {"min": "<", "max": ">"}
    names = pl.Series([rule.name for rule in rules], dtype=pl.String)
    bounds = pl.Series([f"{sign[rule.bound]} {rule.threshold:g}" for rule in rules], dtype=pl.String)
    places = [pl.lit(place, pl.UInt32) for place in range(len(rules))]
    failing = [pl.when(rule.fails).then(place) for rule, place in zip(rules, places, strict=True)]
    first = values.select(pl.coalesce(failing)).to_series()
    # Few rows fail, so details are formatted for those only.
    rows = first.is_not_null().arg_true()
    failed = first.gather(rows)
    value = pl.coalesce(pl.when(failed == place).then(rule.name) for place, rule in enumerate(rules))
    worded = values.select(rule.name for rule in rules)[rows].select(
        pl.format("{} {}", value.round(4).cast(pl.String).str.strip_suffix(".0"), bounds.gather(failed))
    )
    detail = pl.repeat(None, values.height, dtype=pl.String, eager=True).scatter(rows, worded.to_series())
    return pl.DataFrame({"reason": names.gather(first), "detail": detail})
