"""The digits of numbers in JSON."""

import json
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.ingest.quoted_numbers import quote_numbers
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples


def quote(*records: str) -> list[str]:
    return quote_numbers(pl.Series("text", records, pl.String)).to_list()


@pytest.mark.parametrize(
    ("number", "quoted"),
    [
        ("0", False),
        ("-12", False),
        ("123456789012345678", False),
        ("-123456789012345678", False),
        ("1234567890123456789", True),
        ("3.10", True),
        ("-0.0", True),
        ("1e5", True),
        ("1E400", True),
        ("2.50e-07", True),
        ("NaN", True),
        ("-Infinity", True),
    ],
)
@pytest.mark.parametrize("around", ['{{"n":{}}}', '{{"n": {} , "m": 1}}', '{{"a":[1,{}]}}', '{{"a":[\n{}\n]}}'])
def test_numbers(number: str, quoted: bool, around: str) -> None:
    (found,) = quote(around.format(number))
    assert found == around.format(f'"{number}"' if quoted else number)


def test_a_mark_before_numbers() -> None:
    records = pl.Series(['{"a":[1.5,2.5],"b":"3.5"}', '{"a":9}'])
    assert quote_numbers(records, "甲").to_list() == ['{"a":["甲1.5","甲2.5"],"b":"3.5"}', '{"a":9}']


def test_texts_stay() -> None:
    texts = [
        r'{"a": "价: 3.10, \"b\": 4.5", "c": [": 1.5"]}',
        r'{"a\\": "\\", "b": ", 9.5"}',
        '{"NaN": "Infinity: 1e5"}',
    ]
    assert quote(*texts, '{"a": 1.5}') == [*texts, '{"a": "1.5"}']


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.sampled_from('甲"\\ :,[]{}1.5eN'), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(['"', "\\", ":1.5", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def expected(value: Any) -> Any:
    match value:
        case bool():
            return value
        case float():
            return json.dumps(value)
        case int():
            return value if abs(value) < 10**18 else json.dumps(value)
        case list():
            return [expected(each) for each in value]
        case dict():
            return {key: expected(each) for key, each in value.items()}
        case _:
            return value


@max_examples(100)
@given(
    records=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), values), min_size=1, max_size=5),
    indent=st.sampled_from([None, 1]),
)
def test_nothing_but_numbers_changes(records: list[Any], indent: int | None) -> None:
    found = quote(*(json.dumps(record, ensure_ascii=False, indent=indent) for record in records))
    assert [json.loads(one) for one in found] == [expected(record) for record in records]
