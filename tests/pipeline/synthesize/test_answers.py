"""Answers as models give them where nothing holds them to the schema, each with what it says."""

import json

import pytest
from conan_embedding.pipeline.synthesize.answers import Written, parse
from conan_embedding.pipeline.synthesize.prompts import KINDS, RESPONSE_FORMAT

WHOLE = Written("长江有多长？", "六千三百余公里")

SAYING_IT_ALL = {
    "JSON": '{"query": "长江有多长？", "answer": "六千三百余公里"}',
    "over several lines": '{\r\n  "query": "长江有多长？",\r\n  "answer": "六千三百余公里"\r\n}\r\n',
    "the other order": '{"answer": "六千三百余公里", "query": "长江有多长？"}',
    "escaped": json.dumps(WHOLE._asdict()),
    "further keys": '{"id": 1, "query": "长江有多长？", "answer": "六千三百余公里", "difficulty": "easy"}',
    "capitals": '{"Query": "长江有多长？", "Answer": "六千三百余公里"}',
    "within an object": '{"result": {"query": "长江有多长？", "answer": "六千三百余公里"}}',
    # langchain-ai/langchain#23297, garrytan/gbrain#2364
    "a code fence": '```json\n{"query": "长江有多长？", "answer": "六千三百余公里"}\n```',
    "a fence that isn't closed": '```json\n{"query": "长江有多长？", "answer": "六千三百余公里"}',
    "text around": '好的，这是一个问题：\n{"query": "长江有多长？", "answer": "六千三百余公里"}\n希望对你有帮助！',
    "braces before": '按 {query} 的要求：\n```json\n{"query": "长江有多长？", "answer": "六千三百余公里"}\n```',
    # coze-dev/coze-studio#2609, admonstrator/zettelrobbe#74; the template may have opened the block
    "a thought": '<think>\n先想 {"query": "不对"}\n</think>\n\n{"query": "长江有多长？", "answer": "六千三百余公里"}',
    "a thought without its beginning": '想好了。</think>{"query": "长江有多长？", "answer": "六千三百余公里"}',
    "a numbered list": '1. {"query": "长江有多长？", "answer": "六千三百余公里"}\n2. {"query": "乙", "answer": "丙"}',
    "a list": '[{"query": "长江有多长？", "answer": "六千三百余公里"}, {"query": "乙", "answer": "丙"}]',
    "several objects": '{"query": "长江有多长？", "answer": "六千三百余公里"}\n{"query": "乙", "answer": "丙"}',
    "several damaged ones": "{'query': '长江有多长？', 'answer': '六千三百余公里'}\n{'query': '乙', 'answer': '丙'}",
    "the prompt continued": '{"query": "长江有多长？", "answer": "六千三百余公里"}\n\n<passage>\n黄河\n</passage>',
    "a damaged one continued": "{'query': '长江有多长？', 'answer': '六千三百余公里'}<passage>\n黄河 {}\n",
    "no end but more": '{"query": "长江有多长？", "answer": "六千三百余公里",\n</passage>\n{"query": "乙"',
    "two without an end": '{"query": "长江有多长？", "answer": "六千三百余公里",\n{"query": "乙", "answer": "丙',
    "single quotes": "{'query': '长江有多长？', 'answer': '六千三百余公里'}",
    "no quotes": "{query: 长江有多长？, answer: 六千三百余公里}",
    "a trailing comma": '{"query": "长江有多长？", "answer": "六千三百余公里",}',
    "no comma": '{"query": "长江有多长？" "answer": "六千三百余公里"}',
    "a comment": '{"query": "长江有多长？", // 问题\n"answer": "六千三百余公里"}',
    "full-width quotes": "{“query”：“长江有多长？”，“answer”：“六千三百余公里”}",
    "full-width signs": '｛"query"："长江有多长？"，"answer"："六千三百余公里"｝',
    "no brace at the end": '{"query": "长江有多长？", "answer": "六千三百余公里"',
    "white space in the texts": '{"query": " 长江有多长？\\n", "answer": "\\t六千三百余公里 "}',
    "lists of one": '{"query": ["长江有多长？"], "answer": ["六千三百余公里"]}',
}


@pytest.mark.parametrize("raw", SAYING_IT_ALL.values(), ids=SAYING_IT_ALL)
@pytest.mark.parametrize("kind", ["question", "prompt", "paraphrase"])
def test_what_says_it_all(raw: str, kind: str) -> None:
    assert parse(raw, kind) == WHOLE


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ('{"query": "为什么叫"小米"？", "answer": "因为"小米"好记"}', Written('为什么叫"小米"？', '因为"小米"好记')),
        ("{'query': 'what's the Yangtze?', 'answer': 'a river'}", Written("what's the Yangtze?", "a river")),
        (
            '{"query": "“双减”：何时起？", "answer": "“双减”，即 2021 年"}',
            Written("“双减”：何时起？", "“双减”，即 2021 年"),
        ),
        ('{"query": "{x} 是集合}吗？", "answer": "是"}', Written("{x} 是集合}吗？", "是")),
        ('{"query": "甲\n乙", "answer": "丙"}', Written("甲\n乙", "丙")),
        ('{"query": "几条？", "answer": 3}', Written("几条？", "3")),
        # JSON's own escapes would make control characters of these
        (
            r'{"query": "\frac{1}{2} 和 \theta 与 \beta", "answer": "\times"}',
            Written(r"\frac{1}{2} 和 \theta 与 \beta", r"\times"),
        ),
        (
            r'{"query": "\\frac{1}{2} 与 \alpha\n次行", "answer": "\(x\)"}',
            Written("\\frac{1}{2} 与 \\alpha\n次行", r"\(x\)"),
        ),
        (r'{"query": "如何用 \n 换行？", "answer": "C:\\temp"}', Written("如何用 \n 换行？", r"C:\temp")),
    ],
)
def test_signs_within_the_texts(raw: str, written: Written) -> None:
    assert parse(raw, "question") == written


@pytest.mark.parametrize(
    "raw",
    [
        '{"query": "长江有多长？", "answer": "六千三',
        '{"query": "长江有多长？", "answer": ',
        '{"query": "长江有多长？", "answer": null}',
        "{'query': '长江有多长？', 'answer': None}",
        '{"query": "长江有多长？", "answer": ""}',
        '{"query": "长江有多长？", "answer": "无"}',
        '{"query": "长江有多长？", "answer": ["六千", "三百"]}',
        '{"query": "长江有多长？"}',
    ],
)
def test_a_query_without_its_answer(raw: str) -> None:
    """It is enough where the passage is the positive, but not where the answer is."""
    assert parse(raw, "question") == parse(raw, "title") == Written("长江有多长？", None)
    assert parse(raw, "prompt") is parse(raw, "paraphrase") is None


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   \n",
        "长江有多长？",
        "1. 长江有多长？\n2. 黄河有多长？",
        "抱歉，我无法根据这段材料提出问题。",
        "作为一个AI语言模型，我不能……",
        "I'm sorry, but I can't help with that.",
        "[]",
        "null",
        '["长江有多长？", "黄河有多长？"]',
        '{"error": "no query in this passage"}',
        '{"query": "", "answer": ""}',
        '{"query": "...", "answer": "..."}',
        '{"query": null, "answer": "六千三百余公里"}',
        '{"query": ["长江有多长？", "黄河有多长？"], "answer": "六千"}',
        '{"query": {"text": "长江有多长？"}}',
        '{"query": true}',
        '{"answer": "六千三百余公里"}',
        '{"query": "长江有多',
        '{"query":',
        '{"qu',
        '<think>先想 {"query": "长江有多长？", "answer": "六千三百余公里"}',
    ],
)
def test_what_is_no_query_does_not_parse(raw: str) -> None:
    assert parse(raw, "question") is parse(raw, "keyword") is None


def test_answers_that_no_pair_needs_are_left_out() -> None:
    raw = '{"query": "长江 长度", "answer": "六千三百余公里"}'
    with_answers = {kind for kind in KINDS if parse(raw, kind) == Written("长江 长度", "六千三百余公里")}
    assert with_answers == {"question", "prompt", "paraphrase"}
    assert {parse(raw, kind) for kind in KINDS if kind not in with_answers} == {Written("长江 长度", None)}


def test_the_schema_is_that_of_the_answers() -> None:
    schema = RESPONSE_FORMAT["json_schema"]["schema"]
    assert tuple(schema["properties"]) == tuple(schema["required"]) == Written._fields
