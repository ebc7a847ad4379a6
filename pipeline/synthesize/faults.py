"""Find the known faults of queries that a language model has written, by rules over columns.

What rules can't see, such as a query that another passage answers better, is left to the round trip and the judge.
"""

import json
import re
from functools import cache

import polars as pl

from ..text.match_key import match_key
from ..text.refusals import refuses
from .answers import QUOTED
from .languages import LANGUAGES
from .prompts import KINDS, Draw, messages

REASONS = {
    "refusal": "the model refuses or speaks of itself (作为一个AI…)",
    "copied_example": "the query is that of an example in the prompt",
    "names_the_passage": "the query speaks of the passage (本文, 上述, the text), which a searcher has not seen",
    "unnamed_subject": "the query begins with 他, 该, 这次 or he: with whom or what only the passage says",
    "several_questions": "the query asks several questions",
    "untranslated": "the translation is the query that it was to be of",
    "wrong_language": "hardly any of the query is in the script of the language asked for",
    "too_short": "the query has too few words or Chinese characters for its kind",
    "too_long": "the query has too many words or Chinese characters for its kind",
    "copied_sentence": "the query is copied from the passage",
    "echo": "the answer repeats the query",
    "answer_not_in_passage": "the answer is not a quote from the passage",
}
"""The reasons, in the order in which the rules are applied, and what each says."""

_APART = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"
_UNIT = rf"[{_APART}]|[\p{{L}}\p{{M}}--[{_APART}]]+|\p{{Nd}}+"
"""The units of length: words and numbers, or characters where words are not set apart."""

LENGTHS = {
    "question": (3, 80),
    "keyword": (1, 40),
    "statement": (4, 120),
    "comparison": (5, 120),
    "title": (3, 80),
    "prompt": (4, 300),
    "paraphrase": (3, 300),
    "translation": (1, 120),
}
"""Chosen here: the fewest and the most units of a query."""
OWN_SHARE = 0.2
"""Chosen here: the least share of a query's units in its language's script; product names and code may be the rest."""
COPIED = 8
"""Chosen here: the fewest units of a copy; a shorter one may be a name, which a query must have."""

_TEXT = "文章|段落|短文|文本|文字|文段|报道|新闻|内容|描述|原文|片段"
_MATERIAL = "材料|资料|文档"  # also what people hand in
_ENGLISH_TEXT = "passage|article|excerpt|paragraph|snippet"
_NAMES_THE_PASSAGE = "|".join(
    (
        rf"(?:这|该|此|上面|上述|以上|下面|所给|给定)的?[段篇则份条个]?(?:{_TEXT}|{_MATERIAL})|提供的(?:{_TEXT})",
        rf"(?:根据|依据|结合|按照)(?:所给|给定|提供的)?(?:{_TEXT}|{_MATERIAL}|上文|下文|文中|全文)",
        r"(?:^|[^日基版剧脚样副课书抄译])本[文段篇](?:[^化件字档学明艺库具部武言]|$)",
        r"(?:^|[，,。；：\s在从据])文[中里](?:[^子]|$)|上述|(?:^|[，,。；：\s如据])[上前]文(?:[^化明人]|$)",
        r"(?:^|[，,。；：])并?[在从]?(?:文章|段落|短文|文段|材料|原文|报道)"
        r"(?:中|里|所|主要|提[到及]|指出|认为|作者|的(?:作者|主题|主旨|中心|标题))",
        r"(?:^|[，,。；：\s])(?:根?据)?作者(?:认为|指出|提[到及]|为什么|为何|如何|怎[么样]|是如何|对|在)",
        r"第[一二三四五两]个?(?:自然段|段(?:落|文字|话|主要|讲|写|说|描))",
        r"(?i)\b(?:according to|based on|(?:mentioned|described|discussed|stated|presented|provided|given|shown) "
        rf"in) (?:the|this|that) (?:above |given |provided |following )?(?:{_ENGLISH_TEXT}|text)\b",
        rf"(?i)\b(?:in|from|of) (?:the|this|that) (?:above |given |provided |following )?(?:{_ENGLISH_TEXT})\b",
        r"(?i)\b(?:according to|based on) (?:the|this) (?:\w+ )?(?:context|document|author|information|content)\b",
        rf"(?i)\b(?:this|the (?:above|given|provided|following)) (?:{_ENGLISH_TEXT}|text|document)\b",
        r"(?i)\bthe (?:passage|excerpt)\b|\b(?:mentioned|described|stated|listed) above\b",
        r"(?i)\b(?:the|this) (?:text|article|author|paragraph|document|context) (?:\w+ )?(?:mention|state|sa[yi]|"
        r"describe|discuss|suggest|provide|refer|argue|claim|explain|impl)",
    )
)
_UNNAMED_SUBJECT = "|".join(
    (
        r"^(?:请问|在|据|根据|关于|为什么|为何)?(?:[他她它](?:们|[^\p{P}汀达克人国乡])|其[^他它实中余次]|"
        r"该[^怎如不先去来吃喝用做交买选看找带穿报补打还学办]|"  # 该怎么办 has no subject
        r"此次|此[^\p{P}外刻时前后类]{2}|这[次张首条部本座名位家场项支届款批些种])",
        r"(?i)^(?:he|she|they|his|her|their)\b",
        r"(?i)^(?:who|what|when|where|why|how|which)\b.{0,20} (?:did|does|do|was|were|is|are|ha[sd]) (?:he|she|they)\b",
    )
)
_SEVERAL = r"[?？][^?？]*\p{L}[^?？]*[?？]|(?m)^\s*(?:2\s*[.、．):]|二、|②)"


def faults(written: pl.DataFrame) -> pl.Series:
    """Return the first of REASONS that applies to each query; null if none does.

    The columns of `written` are `passage` (the text that the prompt shows), `query`, `answer`, `kind` and `language`.
    """
    rules = _build_rules(written["language"].unique().to_list())
    return written.select(
        reason=pl.coalesce(*(pl.when(rules[reason]).then(pl.lit(reason)) for reason in REASONS))
    ).to_series()


def _build_rules(languages: list[str]) -> dict[str, pl.Expr]:
    """Build each rule: whether a query breaks it. Queries are in one of `languages`."""
    kind, query, passage = (pl.col(name) for name in ("kind", "query", "passage"))
    answer = pl.col("answer").cast(pl.String)  # a column of nulls may have no type
    least, most = (kind.replace_strict({name: bound[side] for name, bound in LENGTHS.items()}) for side in (0, 1))
    units = query.str.count_matches(_UNIT)
    own = pl.coalesce(
        pl.when(pl.col("language") == code).then(query.str.count_matches(_own_units(LANGUAGES[code].script)))
        for code in languages or LANGUAGES
    )
    # A response must not begin with the passage, either; further on, 上述 may be what it has said itself.
    beginning = pl.when(kind == "prompt").then(answer.str.extract(r"^([^，。！？,.!?\n]*)")).fill_null("")
    asks, quotes = kind.is_in(["question", "comparison"]), kind.is_in(list(QUOTED))

    def in_passage(text: pl.Expr) -> pl.Expr:
        return match_key(passage).str.contains(match_key(text), literal=True)

    return {
        "refusal": refuses(
            pl.when(kind == "prompt").then(query).otherwise(pl.lit("")),
            pl.when(kind == "prompt").then(answer).otherwise(query),
        ),
        "copied_example": match_key(query).is_in(_example_keys()),
        "names_the_passage": (kind != "translation")
        & pl.concat_str(query, beginning, separator="\n").str.contains(_NAMES_THE_PASSAGE),
        "unnamed_subject": kind.is_in(["question", "comparison", "statement"]) & query.str.contains(_UNNAMED_SUBJECT),
        "several_questions": asks & query.str.contains(_SEVERAL),
        "untranslated": (kind == "translation") & (match_key(query) == match_key(passage)),
        # A short text that the passage has, too, is a name.
        "wrong_language": (own < OWN_SHARE * units) & ~((units < COPIED) & in_passage(query)),
        "too_short": units < least,
        "too_long": units > most,
        # A title may be in the passage's own words; the filter cuts one that heads it.
        "copied_sentence": ~kind.is_in(["keyword", "title", "translation"]) & (units >= COPIED) & in_passage(query),
        "echo": match_key(query) == match_key(answer),
        "answer_not_in_passage": quotes & ~in_passage(answer),
    }


def _own_units(script: str) -> str:
    return rf"[{_APART}&&{script}]|(?:[{script}--[{_APART}]]\p{{M}}*)+"


@cache
def _example_keys() -> list[str]:
    """Return the match keys of the queries in the prompts' examples."""
    draws = [Draw(kind, language, None, "easy", "short") for kind in KINDS for language in ("zh", "en")]
    shown = "\n".join(messages("", draw)[0]["content"] for draw in draws)
    queries = pl.DataFrame(
        {"query": [json.loads(line)["query"] for line in re.findall(r"^JSON[：:] *(\{.*)", shown, re.M)]}
    )
    return queries.select(match_key(pl.col("query"))).to_series().to_list()
