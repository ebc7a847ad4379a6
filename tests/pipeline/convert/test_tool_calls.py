"""Tool calls, agents' traces and reasoning in the formats of models, and texts that speak of them."""

import polars as pl
from conan_embedding.pipeline.convert.tool_calls import calls_tool, shows_reasoning

TOOL_CALLS = [
    # ReAct
    'Thought: 我需要查天气\nAction: get_weather\nAction Input: {"city": "北京"}',
    "Action: 查找\nAction Input: 番茄",
    "Thought: look it up.\nAction: search\nAction Input: x\nObservation: red\nFinal Answer: 红的",
    "Thought: I now know the final answer\nFinal Answer: 番茄是红的",
    'Thought: I need the weather. Action: get_weather Action Input: {"city": "北京"}',
    "**Thought:** need it\n**Action:** search\n**Action Input:** x",
    "Thought 1: I need to search 番茄.\nAction 1: Search[番茄]\nObservation 1: 番茄是…",
    '思考：需要查询天气\n行动：get_weather\n行动输入：{"city": "北京"}',
    "思考：需要查詢天氣\n行動：查詢天氣\n行動輸入：北京",
    "思考：需要查询天气。\n行动：查询天气\n观察：北京晴\n思考：我知道了\n最终答案：晴",
    "行动：搜索\n行动输入：番茄",
    "工具：search\n输入：北京天气",
    '调用工具：search\n参数：{"q": "番茄"}',
    "Observation: 红\nThought: I know.\nFinal Answer: 番茄是红的",
    '动作：搜索\n输入：{"q": "北京"}',
    "Action: get_weather(city='北京')",
    'Action:\n```\n{"action": "search", "action_input": "番茄"}\n```',
    # JSON, Python
    '{"name": "get_weather", "arguments": {"city": "北京"}}',
    '{"action": "search", "action_input": "番茄"}',
    '[{"type": "function", "parameters": {"q": "番茄"}}]',
    '{"type": "function", "function": {"name": "get_weather", "arguments": "{}"}}',
    "{'name': 'get_weather', 'arguments': {'city': '北京'}}",
    '```json\n{"name": "get_weather", "arguments": {"city": "北京"}}\n```',
    '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]',
    '{"name": "a", "arguments": {}}\n{"name": "b", "arguments": {}}',
    'get_weather\n{"city": "北京"}',
    '[get_weather(city="北京")]',
    # tags and special tokens
    "<tool_call>查找番茄</tool_call>",
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>',
    '好的，我来查一下。<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>",
    '<function=get_weather>{"city": "北京"}</function>',
    "<seed:tool_call>\n<function=get_weather>\n</function>\n</seed:tool_call>",
    '<minimax:tool_call>\n<invoke name="get_weather">\n</invoke>\n</minimax:tool_call>',
    '<function_calls>\n<invoke name="get_weather">\n</invoke>\n</function_calls>',
    '<functioncall> {"name": "get_weather", "arguments": \'{"city": "北京"}\'}',
    '<tool_response>\n{"temperature": 20}\n</tool_response>',
    '<|plugin|>{"name": "get_weather", "parameters": {}}',
    '我需要查询。<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {}}<|action_end|>',
    '<|python_tag|>brave_search.call(query="番茄")',
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{}",
    "<｜tool▁calls▁begin｜>查找番茄",
    '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "北京"}}]',
    '[TOOL_CALLS]get_weather{"city": "北京"}',
    '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "北京"}',
    '<TOOLCALL>[{"name": "get_weather", "arguments": {}}]</TOOLCALL>',
    "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key></longcat_tool_call>",
    "<start_function_call>call:get_weather{city:北京}<end_function_call>",
    '<|START_ACTION|>[{"tool_name": "get_weather", "parameters": {}}]<|END_ACTION|>',
    "```tool_code\nget_weather(city='北京')\n```",
    '[{"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "北京"}}]',
    'functools[{"name": "get_weather", "arguments": {}}]',
]

REASONING = [
    "<think>\n用户问番茄。\n</think>\n\n番茄是红的。",
    "<think>\n\n</think>\n\n番茄是红的。",
    "<think>用户问番茄",
    "好，用户问的是番茄。\n</think>\n\n番茄是红的。",
    "<thinking>想一想</thinking>番茄",
    "<think>想</think><answer>番茄是红的</answer>",
    "<seed:think>想</seed:think>番茄",
    "<|begin_of_thought|>\n想\n<|end_of_thought|>\n番茄",
    "◁think▷想想◁/think▷番茄",
    "[THINK]想[/THINK]番茄",
    "## Thinking\n\n想\n\n## Final Response\n\n番茄是红的。",
    "<unused94>thought\n想<unused95>番茄",
    "[unused16]想[unused17]番茄",
    "嗯，用户问的是番茄。首先，我得回忆一下。",
    "好的，我现在需要回答用户的问题。",
    "Okay, so the user is asking about tomatoes.",
]

ANSWERS = [
    "操作：点击“设置”\n输入：新的密码\n确认即可。",
    "工具：螺丝刀\n参数：长20厘米",
    '名字写成 {"name": "番茄"} 即可。',
    '{"name": "番茄", "price": 3}',
    '{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}',
    '写成 JSON：\n```json\n{"name": "番茄", "arguments": {}}\n```\n其中 name 是名称。',
    "标签 <tool_call> 用来调用工具。",
    "<tool_call> 是 Qwen 标记工具调用的标签。",
    '写成 `<tool_call>{"name": 1}</tool_call>` 即可。',
    '模板如下：\n```\n<tool_call>\n{"name": 1}\n</tool_call>\n```',
    "<|plugin|> 是 InternLM 的特殊标记。",
    "Action: 是动作的意思。",
    "Thought: a noun meaning 思想. Action: a noun meaning 行动.",
    "思考：人为什么要吃饭？这是个好问题。",
    "思考：为什么拖延？\n行动：每天做一点。\n坚持：一个月。",
    "[列表](链接) 是 Markdown 的写法",
    "标签 <think> 用来包住思考过程。",
    "DeepSeek 先输出 <think>…</think> 再回答。",
    "好的，用户体验是产品设计的核心。",
    "OK, let me explain: tomatoes are red.",
    "## Thinking\n\nThinking is what philosophers do.",
    '{"type": "fruit", "name": "番茄"}',
    "调用函数：用函数名加括号，参数放在括号里。",
]


def judge(responses: list[str]) -> dict[str, str | None]:
    """Return what each response is: a tool call, reasoning, or null."""
    response = pl.col("response")
    kind = pl.when(calls_tool(response)).then(pl.lit("call")).when(shows_reasoning(response)).then(pl.lit("reasoning"))
    return dict(pl.DataFrame({"response": responses}).select("response", kind=kind).iter_rows())


def test_tool_calls() -> None:
    assert judge(TOOL_CALLS) == dict.fromkeys(TOOL_CALLS, "call")


def test_reasoning() -> None:
    assert judge(REASONING) == dict.fromkeys(REASONING, "reasoning")


def test_answers() -> None:
    assert judge(ANSWERS) == dict.fromkeys(ANSWERS)
