"""Instructions, in the forms in which people publish them."""

from pathlib import Path

import pytest
from read_files import read_named, read_records

HISTORY = [["一问", "一答"], ["二问", "二答"]]
INSTRUCTIONS = {
    "Alpaca": ({"instruction": "译", "input": "你好", "output": "答"}, "译\n你好", []),
    "no input": ({"instruction": "译", "input": "", "output": "答"}, "译", []),
    "a word for no input": ({"instruction": "译", "input": "<noinput>", "output": "答"}, "译", []),
    "pandas' NaN as text": ({"instruction": "译", "input": "nan", "output": "答"}, "译", []),
    "null for input": ({"instruction": "译", "input": None, "output": "答"}, "译", []),
    "only an input": ({"instruction": None, "input": "译", "output": "答"}, "译", []),
    "an empty instruction": ({"instruction": "", "input": "译", "output": "答"}, "译", []),
    "a number": ({"instruction": 5, "output": "答"}, "5", []),
    "Dolly": ({"instruction": "译", "context": "你好", "response": "答"}, "译\n你好", []),
    "OpenOrca": ({"system_prompt": "系统", "question": "译", "response": "答"}, "译", []),
    "TRL": ({"prompt": "译", "completion": "答"}, "译", []),
    "ms-swift": ({"query": "译", "response": "答", "rejected_response": "错"}, "译", ["错"]),
    "DPO": ({"instruction": "译", "chosen": "答", "rejected": "错"}, "译", ["错"]),
    "KTO": ({"instruction": "译", "output": "答", "kto_tag": True}, "译", []),
    "an empty string for history": ({"instruction": "三问", "history": "", "output": "答"}, "三问", []),
    "no history": ({"instruction": "三问", "history": [], "output": "答"}, "三问", []),
    "history": ({"instruction": "三问", "history": HISTORY, "output": "答"}, "一问\n一答\n二问\n二答\n三问", []),
    "history in a string": (
        {"instruction": "二问", "history": '[["一问", "一答"]]', "output": "答"},
        "一问\n一答\n二问",
        [],
    ),
    "history of objects": (
        {"instruction": "二问", "history": [{"prompt": "一问", "response": "一答"}], "output": "答"},
        "一问\n一答\n二问",
        [],
    ),
}
REFUSED_INSTRUCTIONS = {
    "field_type: output: expected text, found an object": {"instruction": "译", "output": {"a": 1}},
    "field_type: output: expected text, found a list": {"instruction": "译", "output": ["好", "坏"]},
    "field_type: instruction: expected text, found a list": {"instruction": ["译"], "output": "答"},
    "field_type: input: expected text, found an object": {"instruction": "译", "input": {"a": 1}, "output": "答"},
    "field_type: rejected: expected text, found an object": {"instruction": "译", "chosen": "答", "rejected": {"a": 1}},
    "field_type: expected only texts, found images": {"instruction": "看图", "output": "答", "images": ["a.png"]},
    "field_type: history 1: expected a message with role and content, found a string": {
        "instruction": "译",
        "output": "答",
        "history": ["问"],
    },
    "field_type: history 1: no text": {"instruction": "译", "output": "答", "history": [["问", None]]},
    "excluded_by_data: `kto_tag` is false": {"instruction": "译", "output": "答", "kto_tag": False},
    "excluded_by_data: `label` is False": {"prompt": "译", "completion": "答", "label": "False"},
    "excluded_by_data: `weight` is 0": {"instruction": "译", "output": "答", "weight": 0},
}


def test_instructions(tmp_path: Path) -> None:
    found = read_named(tmp_path, "alpaca", {name: record for name, (record, *_) in INSTRUCTIONS.items()})
    expected = [(name, query, "答", negatives) for name, (_, query, negatives) in INSTRUCTIONS.items()]
    assert found == (expected, [])


def test_refused_instructions(tmp_path: Path) -> None:
    found = read_named(tmp_path, "alpaca", REFUSED_INSTRUCTIONS)
    assert found == ([], [(name, *name.split(": ", 1)) for name in REFUSED_INSTRUCTIONS])


def test_instructions_without_a_side(tmp_path: Path) -> None:
    found = read_records(tmp_path, "alpaca", {"instruction": "问", "system": "系"}, {"output": "答"}, {})
    assert found.values("query", "positive") == [("问", None), (None, "答"), (None, None)]
    assert found.values("meta") == [{"system": system} for system in ("系", None, None)]


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({"turns": 2}, "二问\n二答\n三问\n上海"),
        ({"turns": 1}, "三问\n上海"),
        ({"max_prompt_chars": 11}, "二问\n二答\n三问\n上海"),
        ({"max_prompt_chars": 10}, "三问\n上海"),
    ],
)
def test_history_is_cut_as_a_chat_is(tmp_path: Path, options: dict[str, int], query: str) -> None:
    record = {"instruction": "三问", "input": "上海", "history": HISTORY, "output": "答"}
    assert read_records(tmp_path, "alpaca", record, **options).values("query", "positive") == [(query, "答")]
