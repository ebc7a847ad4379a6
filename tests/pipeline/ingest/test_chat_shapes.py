"""Chats and instructions, in the forms in which people publish them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples
from read_files import Read, read_named, read_records

# Instructions


# Chats


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def part(text: Any) -> dict[str, Any]:
    return {"type": "text", "text": text}


def sharegpt(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def dpo(**record: Any) -> tuple[dict[str, Any], list[tuple[str, str, list[str]]]]:
    return record, [("问", "答", ["错"])]


CHAT = [user("问"), assistant("答")]
PAIR = [("问", "答", [])]
IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}

CHATS = {
    "OpenAI": ({"messages": CHAT}, PAIR),
    "ShareGPT": (sharegpt(("human", "问"), ("gpt", "答")), PAIR),
    "keys of both": ({"conversations": CHAT}, PAIR),
    "Gemini": ({"messages": [{"role": "user", "parts": [{"text": "问"}]}, {"role": "model", "parts": "答"}]}, PAIR),
    "Firefly": ({"conversation": [{"human": "问", "assistant": "答"}]}, PAIR),
    "XTuner": ({"conversation": [{"system": "系", "input": "问", "output": "答"}]}, PAIR),
    "lists of two": ({"conversations": [["问", "答"]]}, PAIR),
    "JSON in a string": ({"messages": json.dumps(CHAT)}, PAIR),
    "a list around it": ({"messages": [CHAT]}, PAIR),
    "columns": ({"conversations": {"from": ["human", "gpt"], "value": ["问", "答"]}}, PAIR),
    "columns of exchanges": (
        {"conversation": {"human": ["问", "再"], "assistant": ["答", "复"]}},
        [("问", "答", []), ("问\n答\n再", "复", [])],
    ),
    "columns and a reply": dpo(messages={"role": ["user"], "content": ["问"]}, chosen="答", rejected="错"),
    "columns of parts": ({"messages": {"role": ["user", "assistant"], "content": [[part("问")], "答"]}}, PAIR),
    "nulls": ({"messages": [None, *CHAT, None]}, PAIR),
    "assistants by name": (
        {"conversations": [{"from": "human", "value": "问"}, {"from": "bing", "value": "答"}]},
        PAIR,
    ),
    "other roles": ({"messages": [{"role": "client", "content": "问"}, {"role": " Counselor", "content": "答"}]}, PAIR),
    "content parts": ({"messages": [user([part("问")]), assistant([part("答")])]}, PAIR),
    "two parts": ({"messages": [user([part("问"), part("题")]), assistant("答")]}, [("问\n题", "答", [])]),
    "a part without a list": ({"messages": [user(part("问")), assistant("答")]}, PAIR),
    "scalars": ({"messages": [user(3), assistant(True)]}, [("3", "true", [])]),
    "prompt and completion": ({"prompt": "问", "completion": "答"}, PAIR),
    "TRL": ({"prompt": CHAT[:1], "completion": CHAT[1:]}, PAIR),
    "DPO of texts": dpo(prompt="问", chosen="答", rejected="错"),
    "DPO of TRL": dpo(prompt=CHAT[:1], chosen=CHAT[1:], rejected=[assistant("错")]),
    "DPO of UltraFeedback": dpo(prompt="问", messages=CHAT, chosen=CHAT, rejected=[user("问"), assistant("错")]),
    "DPO of LLaMA-Factory": dpo(
        conversations=[{"from": "human", "value": "问"}],
        chosen={"from": "gpt", "value": "答"},
        rejected={"from": "gpt", "value": "错"},
    ),
    "DPO of ms-swift": dpo(messages=CHAT, rejected_response="错"),
    "a reply that is replaced": dpo(messages=[user("问"), assistant("旧")], chosen="答", rejected="错"),
    "the last reply has the negative": (
        {"messages": [*CHAT, user("再问"), assistant("再答")], "rejected_response": "错"},
        [("问", "答", []), ("问\n答\n再问", "再答", ["错"])],
    ),
    "tools": (
        {
            "messages": [
                user("问"),
                assistant(None, tool_calls=[{"id": "1", "function": {"name": "search"}}]),
                {"role": "tool", "content": "结果"},
                assistant([{"type": "tool_use", "id": "2"}]),
                user([{"type": "tool_result", "content": "结果"}]),
                assistant([{"type": "thinking", "thinking": "想"}, part("答")]),
            ]
        },
        PAIR,
    ),
    "a support desk's": (
        {"messages": [{"sender": "customer", "text": "问"}, {"sender": "agent", "text": "答"}]},
        PAIR,
    ),
    "in Chinese": ({"messages": [{"speaker": "顾客", "message": "问"}, {"speaker": "客服", "message": "答"}]}, PAIR),
    "a support desk's preference": dpo(
        messages=[{"sender": "visitor", "body": "问"}, {"sender": "staff", "body": "旧"}],
        chosen=[{"sender": "staff", "body": "答"}],
        rejected=[{"sender": "staff", "body": "错"}],
    ),
    "marks that say yes": ({"messages": CHAT, "label": True, "kto_tag": 1, "images": [], "image": None}, PAIR),
}

NOT_A_MESSAGE = "expected a message with role and content, found"
REFUSED_CHATS = {
    "field_type: message 1: expected text, found an object": {"messages": [user({"a": 1}), assistant("答")]},
    "field_type: message 2: expected text, found a list": {"messages": [user("问"), assistant(["答"])]},
    "field_type: message 1: expected text, found a list": {"messages": [user([part({"value": 1})]), assistant("答")]},
    "field_type: message 1: expected text, found a part of type image_url": {
        "messages": [user([part("看"), IMAGE]), assistant("答")]
    },
    "field_type: message 2: no text": {"messages": [user("问"), user(None), assistant("答")]},
    f"field_type: message 2: {NOT_A_MESSAGE} an object with who, content": {
        "messages": [user("问"), {"who": "?", "content": "?"}, assistant("答")]
    },
    "field_type: expected only texts, found images": {"messages": CHAT, "images": ["a.png"]},
    "field_type: rejected: expected text, found an object": {"messages": CHAT, "rejected": {"a": 1}},
    "field_type: message 1: expected only texts, found images": {
        "messages": [user("看图", images=["a.png"]), assistant("答")]
    },
    "field_type: message 2: expected a role such as user or assistant, found narrator": {
        "messages": [user("问"), {"role": "Narrator", "content": "答"}, user("再问"), assistant("再答")]
    },
    "excluded_by_data: `label` is false": {"messages": CHAT, "label": False},
    "excluded_by_data: `weight` is 0": {"messages": [user("问"), assistant("答", weight=0)]},
    "excluded_by_data: `weight` is 0.00": {"messages": [user("问"), assistant("答", weight="0.00")]},
    "excluded_by_data: `loss` is false": {"messages": [user("问"), assistant("答", loss=False)]},
    "excluded_by_data: `train` is false": {"messages": [user("问"), assistant("答", train=False)]},
    "no_pair: expected a list of messages, found a string": {"messages": "[{'role': 'user'}]"},
    "no_pair: expected a list of messages, found 5": {"messages": 5},
    f"no_pair: message 1: {NOT_A_MESSAGE} a string": {"messages": ["问", "答"]},
    f"no_pair: message 1: {NOT_A_MESSAGE} a list": {"messages": [CHAT, CHAT]},
}


@pytest.mark.parametrize("shape", ["messages", "sharegpt"])
def test_chats(tmp_path: Path, shape: str) -> None:
    found = read_named(tmp_path, shape, {name: record for name, (record, _) in CHATS.items()})
    assert found == ([(name, *pair) for name, (_, pairs) in CHATS.items() for pair in pairs], [])


def test_refused_chats(tmp_path: Path) -> None:
    found = read_named(tmp_path, "messages", REFUSED_CHATS)
    assert found == ([], [(name, *name.split(": ", 1)) for name in REFUSED_CHATS])


def test_chats_without_a_pair(tmp_path: Path) -> None:
    system = {"role": "system", "content": "系"}
    chats = [
        [],
        None,
        [user("问")],
        [assistant("你好")],
        [assistant("你好"), assistant("在吗")],
        [system, assistant("好")],
    ]
    records = [{}, *({"messages": chat} for chat in chats)]
    found = read_records(tmp_path, "messages", *records)
    assert found.problems == [
        (line, "no_pair", json.dumps(record, ensure_ascii=False)) for line, record in enumerate(records, start=1)
    ]
    assert set(found.details) == {"contains no pair in the shape messages"}


def pairs(found: Read) -> list[Any]:
    return found.values("query", "positive")


def test_an_untaught_reply_is_still_part_of_the_prompt(tmp_path: Path) -> None:
    messages = [user("一问"), assistant("一答", weight=0), user("二问"), assistant("二答", weight=1)]
    found = read_records(tmp_path, "messages", {"messages": messages})
    assert pairs(found) == [("一问\n一答\n二问", "二答")]
    assert found.details == ["`weight` is 0"]


def test_only_pairs_with_an_image_are_refused(tmp_path: Path) -> None:
    messages = [*CHAT, user([IMAGE]), assistant("是"), user("三问"), assistant("三答"), user("四问"), assistant("四答")]
    found = read_records(tmp_path, "messages", {"messages": messages}, turns=2)
    assert pairs(found) == [("问", "答"), ("三问\n三答\n四问", "四答")]
    assert found.details == ["message 3: expected text, found a part of type image_url"] * 2
    assert [json.loads(record or "") for *_, record in found.problems] == [
        {"messages": messages},
        {"query": "\n是\n三问", "positive": "三答", "negatives": []},
    ]


def test_a_reply_before_the_first_question_gives_no_pair(tmp_path: Path) -> None:
    found = read_records(tmp_path, "messages", {"messages": [assistant("你好"), *CHAT]})
    assert pairs(found) == [("问", "答")]
    assert found.problems == []


def test_replies_without_a_side(tmp_path: Path) -> None:
    found = read_records(
        tmp_path, "messages", {"messages": [user(None), assistant("答")]}, {"messages": [user("问"), assistant(None)]}
    )
    assert pairs(found) == [(None, "答"), ("问", None)]


def test_meta_of_a_chat(tmp_path: Path) -> None:
    systems = [{"role": "system", "content": "甲"}, {"role": "developer", "content": [part("乙")]}]
    exchange = {"conversation_id": "c", "conversation": [{"system": "系", "input": "问", "output": "答"}]}
    found = read_records(
        tmp_path, "messages", {"id": 7, "system": "零", "messages": [*systems, *CHAT, *CHAT]}, exchange
    )
    assert found.values("meta") == [
        {"conversation": "7", "turn": 2, "system": "零\n甲\n乙"},
        {"conversation": "7", "turn": 4, "system": "零\n甲\n乙"},
        {"conversation": "c", "turn": 2, "system": "系"},
    ]


# Windows

TOOLS = sharegpt(
    ("human", "u1"),
    ("gpt", "a1"),
    ("human", "u2"),
    ("function_call", "call"),
    ("observation", "seen"),
    ("gpt", "a2"),
    ("human", "u3"),
    ("gpt", "a3"),
    ("human", "u4"),
    ("human", "u5"),
    ("gpt", "a4"),
)


@pytest.mark.parametrize(
    ("turns", "prompts"),
    [
        (1, ["u1", "u2", "u3", "u4 u5"]),
        (2, ["u1", "u1 a1 u2", "u2 a2 u3", "u3 a3 u4 u5"]),
        (3, ["u1", "u1 a1 u2", "u1 a1 u2 a2 u3", "u2 a2 u3 a3 u4 u5"]),
    ],
)
def test_a_window_begins_where_the_user_speaks(tmp_path: Path, turns: int, prompts: list[str]) -> None:
    found = pairs(read_records(tmp_path, "sharegpt", TOOLS, turns=turns))
    assert found == [(prompt.replace(" ", "\n"), f"a{number}") for number, prompt in enumerate(prompts, start=1)]


Said = list[tuple[str, str]]


def reference(said: Said, turns: int, max_prompt_chars: int) -> list[tuple[str, str]]:
    """Walk through the conversation turn by turn, ignoring tools; drop the oldest exchange until the prompt fits."""
    found: list[tuple[str, str]] = []
    exchanges: list[list[str]] = []
    before = "nobody"
    for role, text in said:
        if role == "gpt" and exchanges:
            window = ["\n".join(exchange) for exchange in exchanges[-turns:]]
            while len(window) > 1 and len("\n".join(window)) > max_prompt_chars:
                window = window[1:]
            found.append(("\n".join(window), text))
        if role == "human" and before != "human":
            exchanges.append([])
        if exchanges and role != "observation":
            exchanges[-1].append(text)
        before = role
    return found


@given(
    conversations=st.lists(
        st.lists(
            st.tuples(st.sampled_from(["human", "gpt", "observation"]), st.text("问答一🙂\n", max_size=9)), max_size=12
        ),
        min_size=1,
        max_size=20,
    ),
    turns=st.integers(1, 5),
    max_prompt_chars=st.integers(1, 60),
)
@max_examples(8)
def test_windows_of_any_conversation(
    tmp_path: Path, conversations: list[Said], turns: int, max_prompt_chars: int
) -> None:
    expected = [
        (row, *pair) for row, said in enumerate(conversations) for pair in reference(said, turns, max_prompt_chars)
    ]
    records = [sharegpt(*said) for said in conversations]
    found = read_records(tmp_path, "sharegpt", *records, turns=turns, max_prompt_chars=max_prompt_chars)
    assert sorted(found.values("_row", "query", "positive")) == sorted(expected)


@pytest.mark.parametrize(
    ("max_prompt_chars", "prompt"),
    [(15, "问一\n答一\n问二问二\n答二\n三"), (14, "问二问二\n答二\n三"), (8, "三"), (1, "三")],
)
def test_the_oldest_exchanges_are_left_out_of_a_long_prompt(tmp_path: Path, max_prompt_chars: int, prompt: str) -> None:
    said = [("human", "问一"), ("gpt", "答一"), ("human", "问二问二"), ("gpt", "答二"), ("human", "三"), ("gpt", "完")]
    assert pairs(read_records(tmp_path, "sharegpt", sharegpt(*said), max_prompt_chars=max_prompt_chars))[-1] == (
        prompt,
        "完",
    )


# Any value in a text's place


PLACES: dict[str, Callable[[Any], Any]] = {
    "alpaca": lambda value: {"instruction": "问", "output": value},
    "messages": lambda value: {"messages": [user("问"), assistant(value)]},
    "squad": lambda value: {"question": "问", "context": value},
    "triples": lambda value: {"query": "问", "pos": [value]},
}
scalars = st.text("问\"'[{5\\", min_size=1) | st.integers() | st.booleans()
structures = st.recursive(
    scalars, lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
)


@given(shape=st.sampled_from(sorted(PLACES)), values=st.lists(structures, min_size=1, max_size=50))
@max_examples(4)
def test_only_scalars_are_text(tmp_path: Path, shape: str, values: list[Any]) -> None:
    found = read_records(tmp_path, shape, *map(PLACES[shape], values))
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    is_text = [isinstance(value, str | int) for value in values]
    assert found.values("positive") == [text for text, good in zip(texts, is_text, strict=True) if good]
    assert [(line, reason) for line, reason, _ in found.problems] == [
        (line, "field_type") for line, good in enumerate(is_text, start=1) if not good
    ]
