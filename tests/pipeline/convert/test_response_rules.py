"""The rules for prompt-response pairs: each rejects what it is meant for, and no similar-looking text."""

import polars as pl
import pytest
from conan_embedding.pipeline.convert.response_rules import build_response_rules, find_broken_rule
from conan_embedding.schemas.settings import ConvertSettings

PROMPT, RESPONSE = "怎样做番茄炒蛋？", "先把鸡蛋打散炒熟，再放番茄，最后加盐。"
SETTINGS = ConvertSettings()


def broken_rules(*pairs: tuple[str, str], settings: ConvertSettings = SETTINGS) -> list[str | None]:
    frame = pl.DataFrame(pairs, schema=["query", "positive"], orient="row")
    return frame.select(reason=find_broken_rule(settings))["reason"].to_list()


@pytest.mark.parametrize(
    ("reason", "bad", "good"),
    [
        ("tool_call", '{"name": "search", "arguments": {"q": "番茄"}}', '名字写成 {"name": "番茄"} 即可。'),
        ("tool_call", "<tool_call>查找番茄</tool_call>", "标签 <tool_call> 用来调用工具。"),
        ("tool_call", '[{"type": "function", "parameters": {"q": "番茄"}}]', '{"name": "番茄", "color": "红"}'),
        ("tool_call", "<｜tool▁calls▁begin｜>查找番茄", "<b>番茄</b>是蔬菜。"),
        ("tool_call", "Action: 查找\nAction Input: 番茄", "Action: 是动作的意思。"),
        ("refusal", "作为一个AI语言模型，我没有做过菜。", "作为一名厨师，我没有失手过。"),
        ("refusal", "很抱歉，我无法品尝。" + "汤" * 25, "很抱歉，我无法品尝。" + "汤" * 26),
        ("pleasantry", "不谢！祝您用餐愉快。", "不客气！" + "下次做菜时可以先放糖。" * 10),
        ("pleasantry", "再见，祝您好胃口。", "我们再见面时一起做菜。"),
        ("refusal", "作为人工智能，我不会做饭。", "机器学习作为人工智能的一个分支，正在兴起。"),
        ("refusal", "很抱歉，我无法帮助您做菜。", "他很抱歉，没有把菜做好。"),
        ("refusal", "As an AI, I can't cook 番茄.", "它 was an aid 帮助厨师。"),
        ("refusal", "作为由某公司训练的语言模型，不便回答。", RESPONSE * 6 + "作为AI语言模型，我说完了。"),
        ("refusal", "作为一款计算机程序，我没有味觉。", "作为一名计算机程序员，我没有时间做饭。"),
        ("refusal", "好的。作为一名中立的AI语言模型，我不能评价这道菜。", "作为一个数学模型，我们的方程没有解。"),
        ("refusal", "由于我是一个人工智能助手，我无法为您做菜。", "我是一名人工智能工程师，没有做过菜。"),
        ("refusal", "很抱歉，我目前无法预订餐厅。", "很抱歉我之前的回答有误，应当先打蛋。"),
        ("refusal", "对不起，我不太明白您的问题。", "听到您难过，我很抱歉。做菜也许能让您好受一点。"),
        ("refusal", "很抱歉，提供这样的做法是不合适的。", "对不起，但这是一个错误的做法，应当先打蛋。"),
        ("template_slot", "您好，{{name}}，请先打蛋。", "集合 {1, 2} 与 {a} 不同。"),
        ("template_slot", "此致\n敬礼\n[潜在客户的姓名]", "参考文献见[12]，又见[附录名]。"),
        ("template_slot", "【输入您的名字】，您好。", "【公司名称】番茄有限公司"),
        ("template_slot", "菜单如下：（在此处插入图片）", "画面切到厨房（插入音乐）。"),
        ("template_slot", "我叫（您的姓名），我会做菜。", "会（你的世界中）做菜。"),
        ("template_slot", "名字是 {FULL_NAME} 先生。", "在终端里写 ${FULL_NAME} 即可。"),
        ("template_slot", "{{name}} 你好", "模板写成 `{{name}}`，或：\n```\n{{name}}\n```"),
        ("template_slot", ("给{{name}}写信", RESPONSE), ("给[插入姓名]写信", RESPONSE)),
        ("template_slot", RESPONSE * 2 + "[您的姓名]", RESPONSE * 3 + "[您的姓名]"),
        ("template_slot", "亲爱的 {USER_NAME}：你好。", r"线段 $\overline{AB}$ 与 $x_{AB}$ 等长。"),
        ("prompt_length", ("问" * 2001, RESPONSE), ("问" * 2000, RESPONSE)),
        ("code_only", "```python\nprint(1)\n```", "这样写：\n```python\nprint(1)\n```"),
        ("code_only", "```python\nprint(1)", "```python\nprint(1)\n```\n就可以了"),
        ("code_only", "def cook(eggs):\n    return eggs", "def 是 Python 的关键字。"),
        ("code_only", "import os\nprint(1)", "import os\n这一行导入模块。"),
        ("code_only", "SELECT name FROM dishes", "SELECT the freshest 番茄。"),
        ("number_only", "3.14159", "约为3.14159"),
        ("response_length", "好。", "氟西汀"),
        ("echo", "怎样做「番茄炒蛋」", "怎样做番茄炒蛋都可以"),
    ],
)  # fmt: skip
def test_responses(reason: str, bad: str | tuple[str, str], good: str | tuple[str, str]) -> None:
    pairs = [(PROMPT, each) if isinstance(each, str) else each for each in (bad, good)]
    assert broken_rules(*pairs) == [reason, None]


def test_the_first_rule_that_is_broken_counts() -> None:
    order = list(build_response_rules(SETTINGS))
    for first, second, pair in (
        ("tool_call", "code_only", (PROMPT, '{"name": "1", "arguments": 1}')),
        ("refusal", "template_slot", (PROMPT, "作为人工智能，我不会做饭。{{name}}")),
        ("prompt_length", "echo", ("问" * 2001, "问" * 2001)),
        ("number_only", "response_length", (PROMPT, "3")),
    ):
        assert broken_rules(pair) == [first]
        assert order.index(first) < order.index(second)


def test_lengths_are_settings() -> None:
    settings = ConvertSettings(max_prompt_chars=7, min_response_chars=1)
    assert broken_rules((PROMPT, "好"), (PROMPT[1:], "好"), settings=settings) == ["prompt_length", None]
