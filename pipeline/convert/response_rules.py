"""Rules that reject prompt-response pairs unfit for training: refusals, tool calls, unfilled template slots and others.

The paper filters prompt-response pairs "by rules" (§3.2) but lists none. These rules are chosen here, by reading what
they reject.
"""

import polars as pl

from ...schemas.settings import ConvertSettings
from ..text.match_key import match_key
from ..text.refusals import is_pleasantry, refuses
from .tool_calls import calls_tool, shows_reasoning

_TEMPLATE = r"\{\{[^{}]+\}\}"
_SLOT = (
    r"[\[【](?:请?在?此处?)?(?:插入|填写|填入|输入[您你]|[您你]的|此处)[^\]】]*[\]】]|"
    r"[（(]请?在?(?:此处?|这里)(?:插入|填写)[^）)]*[）)]|[（(【][您你]的(?:姓名|名字|名称|公司|电话|地址)[）)】]|"
    r"\[[^\[\]\n]{0,12}(?:姓名|名字|(?:公司|机构|职位|产品|客户)名称?)\]|<(?:插入|填写)[^>]*>|"
    r"(?:^|[^a-zA-Z^_}\\$])\{[A-Z_]{2,}\}"  # but not LaTeX's \overline{AB} or a shell's ${NAME}
)
_CODE = r"(?s)```.*?(?:```|$)|`[^`\n]*`"
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
        "tool_call": calls_tool(response),
        "reasoning": shows_reasoning(response),
        "refusal": refuses(prompt, response),
        "pleasantry": is_pleasantry(prompt, response),
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
