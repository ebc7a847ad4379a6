"""Grades of relevance from 0 to 3, as a language model or a person gives them.

The scale is that of UMBRELA (arXiv 2406.06519), which TREC's assessors use; the wording is for passages of any kind.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

PROMPT_VERSION = 1
"""Raise it with any change of PROMPTS: grades by another prompt are another judge's."""

VERDICTS = ("irrelevant", "related", "partial", "relevant")
"""The verdict of each grade."""

PERSON = "person"
"""The name of a person as a judge."""

POSITIVES, LENGTH = 3, 1_000
"""Chosen here: known good passages that a prompt shows at most, and the characters of each text, so that a prompt has
at most about 4,000 tokens."""

PROMPTS = {
    "zh": (
        "你负责判断一段文本能否满足一个查询。查询可以是问题、标题或关键词。\n"
        "按以下等级打分：\n"
        "0：文本与查询无关。\n"
        "1：文本与查询相关，但没有回答它。\n"
        "2：文本部分回答了查询，或答案不清楚、混在其他内容里。\n"
        "3：文本专门针对查询，并完整地回答了它。\n\n"
        "查询：{query}\n{known}\n待判断的文本：{passage}\n\n"
        "只输出一个数字（0、1、2 或 3）。",
        "已知能满足该查询的文本：{text}",
    ),
    "en": (
        "Judge whether a passage satisfies a query. The query may be a question, a title or keywords.\n"
        "Grades:\n"
        "0: the passage has nothing to do with the query.\n"
        "1: the passage is related to the query but does not answer it.\n"
        "2: the passage answers the query in part, or its answer is unclear or hidden among other content.\n"
        "3: the passage is dedicated to the query and answers it fully.\n\n"
        "Query: {query}\n{known}\nPassage to judge: {passage}\n\n"
        "Output one digit only (0, 1, 2 or 3).",
        "A passage known to satisfy the query: {text}",
    ),
}
"""For each language the prompt, and the line for each known positive."""

_HAN = re.compile(r"[\u4e00-\u9fff]")
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_GRADE = re.compile(r"(?!\s*<think>)\D*([0-3])\D*")  # a thought that was cut off has come to no grade


def build_messages(query: str, passage: str, positives: Sequence[str]) -> list[dict[str, str]]:
    """Build the request for the grade of a passage, in Chinese if the query is; a positive is not shown to itself."""
    prompt, line = PROMPTS["zh" if _HAN.search(query) else "en"]
    shown = [text for text in positives if text != passage][:POSITIVES]
    known = "\n".join(line.format(text=text[:LENGTH]) for text in shown)
    content = prompt.format(query=query[:LENGTH], known=known, passage=passage[:LENGTH])
    return [{"role": "user", "content": content}]


def read_grade(answer: str) -> int | None:
    """Read the grade from an answer, after what the model may have thought aloud; None if there is not exactly one."""
    found = _GRADE.fullmatch(_THOUGHT.sub("", answer))
    return int(found[1]) if found else None


def build_body(model: str, messages: Sequence[Mapping[str, str]], answer_tokens: int) -> dict[str, Any]:
    """Build the body of a request for a grade: the likeliest answer, of at most `answer_tokens`."""
    return {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": answer_tokens}
