"""Rules that reject prompt-response pairs unfit for training: refusals, tool calls, unfilled template slots and others.

The paper filters prompt-response pairs "by rules" (§3.2) but lists none. These rules are chosen here, by reading what
they reject.
"""

import polars as pl

from ...schemas.settings import ConvertSettings
from ..text.normalise import match_key

_MACHINE = (
    r"(?:(?:AI|人工智能|语言|机器学习|自然语言处理|文本|文字型|聊天|虚拟|计算机|电脑)\s*)+"
    r"(?:模型|助手|助理|程序|系统|机器人)|AI|人工智能|基于文本的模型"
)
_REFUSAL = (
    # At the start of a clause the speaker means itself; "机器学习作为人工智能的分支" has another subject.
    r"(?:^|[^\p{L}]|[但我])作为(?:一[个名款种位]|由\S{1,12}(?:训练|开发)的)?\s*(?:大型)?\s*(?:语言模型|聊天机器人|"
    r"(?:AI|人工智能)\s*(?:[，,我]|语言模型|模型|助手|助理|程序|系统|聊天机器人|机器人))|(?i:\bas an ai\b)|"
    # With more words in between, the next clause must be about the speaker: "作为计算机程序，我没有…".
    rf"(?:^|[^\p{{L}}]|[但我])作为[^\p{{P}}\n]{{0,24}}(?:{_MACHINE})\s*[，,]\s*(?:我[^们]|很?抱歉|无法|不能|没有)|"
    rf"我(?:只|仅仅?)?是[^\p{{P}}\n]{{0,20}}(?:{_MACHINE})[，,。]\s*[^\p{{P}}\n]{{0,8}}(?:无法|没有|不能|不具备|不会)|"
    r"^我?(?:非常|很|十分|深感)?(?:抱歉|对不起|不好意思|遗憾)[，,]?\s*(?:但是?)?我?(?:目前|现在|暂时|可能|并|还)?"
    r"(?:不能|无法|没有(?:能力|办法|权限)|不(?:太|是很|能)?(?:知道|明白|理解|确定|清楚)|没有(?:完全)?(?:理解|明白))|"
    r"^我?(?:非常|很)?(?:抱歉|对不起)[^。\n]{0,60}(?:不合适|不恰当|不道德)|"
    r"我(?:不能|无法|没有能力)(?:直接|实际)?(?:提供|回答|协助|满足|访问|查看|生成|创建|执行)"
)
_TEMPLATE = r"\{\{[^{}]+\}\}"
_SLOT = (
    r"[\[【](?:请?在?此处?)?(?:插入|填写|填入|输入[您你]|[您你]的|此处)[^\]】]*[\]】]|"
    r"[（(]请?在?(?:此处?|这里)(?:插入|填写)[^）)]*[）)]|[（(【][您你]的(?:姓名|名字|名称|公司|电话|地址)[）)】]|"
    r"\[[^\[\]\n]{0,12}(?:姓名|名字|(?:公司|机构|职位|产品|客户)名称?)\]|<(?:插入|填写)[^>]*>|"
    r"(?:^|[^a-zA-Z^_}\\$])\{[A-Z_]{2,}\}"  # but not LaTeX's \overline{AB} or a shell's ${NAME}
)
_TOOL_CALL = (
    r"^\s*<[|｜]?(?:tool[_▁]?calls?|function_?calls?|python_tag)|^\s*Action:[^\n]+\n+Action Input:|"
    r'(?s)^\s*\[?\s*\{.*"(?:arguments|parameters)"\s*:'
)
_CODE = r"(?s)```.*?(?:```|$)|`[^`\n]*`"
_PLEASANTRY = r"^(?:不客气|不谢|不用客气|不用谢|别客气|不必客气|没关系，随时|再见|拜拜)"
_LONGEST_REFUSAL = 250  # characters; a longer response often says what it can't do, then answers as far as it can
_LONGEST_PLEASANTRY = 100
_MOST_SLOTS = 0.1  # share of a response's characters; a letter that ends with one [您的姓名] is still a letter
_BARE_CODE = (
    r"^(?:#include\b|#!/|import [\w.]+(?:\n|$)|from [\w.]+ import |def \w+\(|class \w+[(:{]|public (?:static|class) |"
    r"(?:const|let|var) \w+ = |function \w*\(|(?i:SELECT)\s[^\n]*(?i:\bFROM\b)|<\?php)"
)


def build_response_rules(settings: ConvertSettings) -> dict[str, pl.Expr]:
    """Build the rules in their order: name → whether a prompt-response pair (`query`, `positive`) breaks the rule."""
    prompt, response = pl.col("query"), pl.col("positive")
    length = response.str.len_chars()
    prose = response.str.replace_all(_CODE, "")
    slots = prose.str.len_chars() - prose.str.replace_all(_SLOT, "").str.len_chars()
    only_fenced_code = ~prose.str.contains(r"\p{L}") & response.str.contains("`", literal=True)
    only_bare_code = response.str.contains(_BARE_CODE) & ~response.str.contains(r"(?m)^\p{Han}.*[。：:]$")
    return {
        "tool_call": response.str.contains(_TOOL_CALL),
        "refusal": (length <= _LONGEST_REFUSAL) & response.str.slice(0, 100).str.contains(_REFUSAL),
        "pleasantry": (length <= _LONGEST_PLEASANTRY) & response.str.contains(_PLEASANTRY),
        "template_slot": (
            prompt.str.replace_all(_CODE, "").str.contains(_TEMPLATE)
            | prose.str.contains(_TEMPLATE)
            | (slots > _MOST_SLOTS * length)
        ),
        "prompt_length": prompt.str.len_chars() > settings.max_prompt_chars,
        "code_only": only_fenced_code | only_bare_code,
        "number_only": ~response.str.contains(r"\p{L}"),
        "response_length": length < settings.min_response_chars,
        "echo": match_key(prompt) == match_key(response),
    }


def find_broken_rule(settings: ConvertSettings) -> pl.Expr:
    """Return the name of the first rule that a prompt-response pair breaks; null if it breaks none."""
    return pl.coalesce(
        pl.when(breaks).then(pl.lit(reason)) for reason, breaks in build_response_rules(settings).items()
    )
