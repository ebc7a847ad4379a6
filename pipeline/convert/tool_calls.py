"""Find responses that call a tool, or that show a model's reasoning before its answer.

The formats are those that the tool and reasoning parsers of vLLM and SGLang, LLaMA-Factory's `data/tool_utils.py` and
LangChain's ReAct agents read. A text that only mentions a tag, or shows one as code, is not a call.
"""

import polars as pl

_CODE = r"(?s)```.*?(?:```|$)|`[^`\n]*`"
_TAG = (
    r"<[|｜]?(?:\w+[:_]|[|｜]DSML[|｜])?(?:tool|function)[_▁ ]?(?:calls?|response|outputs?|results?)"
    r"(?:[_▁](?:begin|start|section_begin))?[|｜]?>"
)
_TOKEN = (
    r"(?:<[|｜](?:python_tag|python_start|plugin|interpreter|action_start|observation|FunctionCallBegin|tool_call[a-z_]*|"
    r"tool[_▁]calls?[_▁]begin)[|｜]>|\[TOOL_CALLS\]|✿FUNCTION✿|<\|channel\|>commentary to=|"
    r"<TOOLCALL>|<start_function_call>|<\|tool_call>|<\|START_ACTION\|>)"
)
_TAGGED_CALL = (
    rf"(?m){_TAG}\s*(?:[\[{{<]|[\w.-]+\s*<)|^\s*{_TAG}[^<\n]*</|^\s*{_TOKEN}\S|{_TOKEN}\s*[\[{{<]|"
    r"^\s*<function=\w[\w.-]*>|^\s*<invoke name=|^\s*functools\[\{"
)


def _step(names: str) -> str:
    """Return the pattern of the head of an agent's step, such as `**Action 1:**`."""
    return rf"[\s*#]*(?:{names})(?: ?[0-9]+)?[\s*]*[:：][\s*]*"


_ACTION = r"action|行[动動]|[动動]作|操作|工具|[调調]用(?:工具|函[数數])|工具[调調]用"
_INPUT = rf"action[ _]input|(?:{_ACTION})[ _]?(?:[输輸]入|[参參][数數])"
_THOUGHT = r"thought|思考|思路|想法|推理"
_STEPS = (
    rf"(?i)(?:^|\n){_step(_ACTION)}[^\n]*\n{_step(_INPUT)}",
    # The name of a tool, or JSON as its input: "操作：点击设置\n输入：新密码" is no step of an agent.
    rf"(?i)(?:^|\n){_step(_ACTION)}[a-z_][\w.-]*[\s*`]*\n{_step('[输輸]入|[参參][数數]')}",
    rf"(?i)(?:^|\n){_step(_ACTION)}[^\n]*\n{_step('[输輸]入|[参參][数數]')}[\[{{]",
    rf"(?i)(?:^|\n){_step('action')}(?:```\w*\s*\{{|[a-z_][\w.-]*[\[({{])",
    # The name of a tool follows; "Thought: a noun. Action: a noun." is no step of an agent.
    rf"(?is)(?:^|\n){_step(_THOUGHT)}.*?(?:\s|。){_step(_ACTION)}"
    rf"(?:[a-z_][\w.-]*\s*(?:[\[({{（*]|\n|$|action[ _]input|observation)|```|\{{)",
    rf"(?is)^{_step(_THOUGHT)}.*\n{_step(_ACTION)}.*\n{_step('observation|[观觀]察(?:[结結]果)?')}",
    rf"(?is)(?:^|\n){_step('thought')}.*\s{_step('final answer')}",
)
_FENCED = r"(?s)^\s*```\w*\s*\n(.*?)\n?\s*```\s*$"
_JSON_CALL = (
    r"""(?s)^\s*(?:<functioncall>\s*)?\[?\s*\{.*["'](?:arguments|parameters|kwargs|args|action_input|tool_input)["']\s*:"""
    r""".*\}\s*\]?\s*$"""
)
_CALLED = r"""["'](?:name|function|tool|tool_name|action|type|api)["']\s*:"""
_SCHEMA = r"""["'](?:properties|openapi|\$schema)["']\s*:"""  # describes a tool, but doesn't call it
_TOOL_CODE = r"^\s*```tool_code\s*\n"
_NAMED_CALL = (
    r"(?s)^\s*(?:[a-z]+_\w+|[a-z]+[A-Z]\w*)\n\s*\{.*\}\s*$|^\s*\[[a-zA-Z_][\w.]*\([^\n]*\)\]\s*$|"
    r"""^\s*\[?\s*\{[^{}]*"type"\s*:\s*"tool_use\""""
)

_THINKING = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|scratch_?pad|reflection)"
_REASONING = (
    rf"(?i)^\s*(?:<{_THINKING}>|<[|｜](?:begin_of_thought|start_thinking|channel[|｜]>analysis)|◁think▷|\[think\])|"
    rf"</{_THINKING}>\s*(?:\n|$|<answer>)|"
    r"^\s*(?:<unused94>thought|\[unused16\]|#+ *thinking\n(?s:.*)\n#+ *final (?:response|answer)\b)|"
    # without a tag: 嗯，用户问的是…
    r"^\s*(?:嗯|好的?|好吧)[，,][^。\n]{0,16}用[户戶](?:[问問]|的[问問][题題]|[要让讓]我|想[问問知让讓])|"
    r"^\s*(?:okay|ok|alright|hmm)[,.] (?:so,? )?(?:the user (?:is|wants|asks|asked|has|just)|i need to figure out)\b"
)


def calls_tool(response: pl.Expr) -> pl.Expr:
    """Return whether the response is or contains a tool call in the format of a model, or traces an agent's steps."""
    bare = response.str.replace(_FENCED, "$1")
    return pl.any_horizontal(
        response.str.replace_all(_CODE, "").str.contains(_TAGGED_CALL),
        *(response.str.contains(step) for step in (*_STEPS, _TOOL_CODE)),
        bare.str.contains(_JSON_CALL) & bare.str.contains(_CALLED) & ~bare.str.contains(_SCHEMA),
        bare.str.contains(_NAMED_CALL),
    )


def shows_reasoning(response: pl.Expr) -> pl.Expr:
    """Return whether the response contains a model's reasoning, which is not the answer and far longer."""
    return response.str.replace_all(_CODE, "").str.contains(_REASONING)
