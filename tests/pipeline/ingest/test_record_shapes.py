"""The shapes of training data, each as its own documentation describes it."""

import json
from typing import Any

import duckdb
import pytest
from conan_embedding.pipeline.ingest.readers import READERS
from conan_embedding.schemas.settings import Source
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples

Found = list[dict[str, Any]]


def read(shape: str, *records: Any, **options: int) -> Found:
    source = Source.model_validate({"name": "web", "files": "*", "read": shape, "options": options})
    select = READERS[shape].select
    assert select
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE frame (_row INT, _file VARCHAR, _line INT, quoted VARCHAR)")
        rows = [[number, number + 1, json.dumps(record)] for number, record in enumerate(records)]
        connection.executemany("INSERT INTO frame VALUES (?, 'f', ?, ?)", rows)
        pairs = select(source)
        found = connection.sql(
            f"SELECT _row, query, positive, negatives, to_json(meta)::VARCHAR AS meta FROM ({pairs})"
        ).fetchall()
    names = ("row", "query", "positive", "negatives", "meta")
    return [dict(zip(names, (*row[:4], json.loads(row[4])), strict=True)) for row in found]


def pairs(found: Found) -> list[tuple[Any, Any]]:
    return [(one["query"], one["positive"]) for one in found]


def test_alpaca() -> None:
    found = read(
        "alpaca",
        {"instruction": "翻译", "input": "你好", "output": "hello", "system": "译者"},
        {"instruction": "问", "input": "", "output": "答"},
        {"instruction": "问", "output": "答"},
        {"instruction": "问", "input": None, "output": None},
        {"instruction": 5, "output": {"a": 1}},
    )
    assert pairs(found) == [("翻译\n你好", "hello"), ("问", "答"), ("问", "答"), ("问", None), ("5", '{"a":1}')]
    assert found[0]["meta"]["system"] == "译者"


def test_triples() -> None:
    found = read(
        "triples",
        {"query": "问", "pos": ["甲", "乙"], "neg": ["丙"], "pos_scores": [0.9, 0.8]},
        {"query": "问", "pos": ["甲"]},
        {"query": "问", "pos": [], "neg": ["丙"]},
        {"query": "问", "pos": "甲"},
        {"text": "x"},
    )
    assert [(one["row"], one["query"], one["positive"], one["negatives"]) for one in found] == [
        (0, "问", "甲", ["丙"]),
        (0, "问", "乙", ["丙"]),
        (1, "问", "甲", []),
    ]
    assert found[0]["meta"]["teacher_scores"] == [0.9, 0.8]


def test_squad() -> None:
    paragraphs = [
        {"context": "文一", "qas": [{"id": "1", "question": "问一", "answers": [{"text": "答", "answer_start": 0}]}]},
        {"context": "文二", "qas": [{"id": "2", "question": "问二", "answers": []}, {"id": "3", "question": "问三"}]},
    ]
    found = read("squad", {"version": "1.1", "data": [{"title": "题", "paragraphs": paragraphs}]})
    assert pairs(found) == [("问一", "文一"), ("问二", "文二"), ("问三", "文二")]
    assert found[0]["meta"] == {"id": "1", "title": "题", "answers": ["答"]}


def test_squad_as_cmrc_publishes_it() -> None:
    record = {
        "context_id": "T_1",
        "context_text": "文",
        "title": "题",
        "qas": [
            {"query_id": "T_1_Q_1", "query_text": "问一", "answers": ["答", "答案"]},
            {"query_id": "T_1_Q_2", "query_text": "问二", "answers": ["答"]},
        ],
    }
    found = read("squad", record, {"context_text": "无问", "qas": []})
    assert pairs(found) == [("问一", "文"), ("问二", "文")]
    assert found[0]["meta"] == {"id": "T_1_Q_1", "title": "题", "answers": ["答", "答案"]}


def sharegpt(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def test_a_conversation_gives_a_pair_a_reply() -> None:
    found = read(
        "sharegpt",
        sharegpt(("human", "问一"), ("gpt", "答一"), ("human", "问二"), ("gpt", "答二"), ("human", "完"), id="c7"),
    )
    assert pairs(found) == [("问一", "答一"), ("问一\n答一\n问二", "答二")]
    assert [one["meta"]["turn"] for one in found] == [2, 4]
    assert found[0]["meta"]["conversation"] == "c7"


def test_messages_have_the_same_meaning() -> None:
    messages = [
        {"role": "system", "content": "你是医生"},
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答"},
    ]
    developer = [{"role": "developer", "content": "你是医生"}, *messages[1:]]
    for one in (
        read("messages", {"messages": messages}),
        read("sharegpt", {"messages": messages}),
        read("messages", {"messages": developer}),
    ):
        assert pairs(one) == [("问", "答")]
        assert one[0]["meta"]["system"] == "你是医生"
    assert read("messages", {"system": "甲", "messages": messages[1:]})[0]["meta"]["system"] == "甲"
    assert pairs(
        read("messages", {"messages": [{"role": "client", "content": "问"}, {"role": "Counselor", "content": "答"}]})
    )


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
def test_a_window_begins_where_the_user_speaks(turns: int, prompts: list[str]) -> None:
    found = pairs(read("sharegpt", TOOLS, turns=turns))
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
@max_examples(40)
def test_windows_of_any_conversation(conversations: list[Said], turns: int, max_prompt_chars: int) -> None:
    expected = [
        (row, *pair) for row, said in enumerate(conversations) for pair in reference(said, turns, max_prompt_chars)
    ]
    records = [sharegpt(*said) for said in conversations]
    found = read("sharegpt", *records, turns=turns, max_prompt_chars=max_prompt_chars)
    assert sorted((one["row"], one["query"], one["positive"]) for one in found) == sorted(expected)


@pytest.mark.parametrize(
    ("max_prompt_chars", "prompt"),
    [(15, "问一\n答一\n问二问二\n答二\n三"), (14, "问二问二\n答二\n三"), (8, "三"), (1, "三")],
)
def test_the_oldest_exchanges_are_left_out_of_a_long_prompt(max_prompt_chars: int, prompt: str) -> None:
    said = [("human", "问一"), ("gpt", "答一"), ("human", "问二问二"), ("gpt", "答二"), ("human", "三"), ("gpt", "完")]
    assert pairs(read("sharegpt", sharegpt(*said), max_prompt_chars=max_prompt_chars))[-1] == (prompt, "完")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"conversations": []},
        {"conversations": "text"},
        {"messages": None},
        sharegpt(("human", "问")),
        sharegpt(("gpt", "你好"), ("gpt", "在吗")),
        sharegpt(("system", "S"), ("gpt", "你好")),
    ],
)
def test_a_conversation_without_a_pair(record: Any) -> None:
    assert read("sharegpt", record) == []
