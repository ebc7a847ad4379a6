"""Masks: numbers that check are masked, numbers that do not are left, and the text around them is too."""

from datetime import date

import polars as pl
import pytest
from conan_embedding.pipeline.masks import MASKS, mask_personal_data
from hypothesis import given, settings
from hypothesis import strategies as st


def masked(*texts: str) -> tuple[list[str], dict[str, int]]:
    """The masked texts, and the counts that are not 0."""
    frame, counts = mask_personal_data(pl.DataFrame({"text": texts}), ["text"])
    return frame["text"].to_list(), {kind: count for kind, count in counts.items() if count}


def identity_check(first: str) -> str:
    """GB 11643-1999's printed tables of weights and check digits."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(first, weights, strict=True)) % 11]


def luhn_check(first: str) -> str:
    """The digit that makes Luhn's sum end in 0."""
    total = 0
    for place, digit in enumerate(reversed(first)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += sum(int(figure) for figure in str(doubled))
    return str(-total % 10)


IDENTITIES = st.builds(
    lambda region, born, order: f"{region}{born:%Y%m%d}{order:03d}",
    st.integers(110000, 659004),
    st.dates(date(1900, 1, 1), date(2099, 12, 31)),
    st.integers(0, 999),
)
CARDS = st.one_of(
    *(st.from_regex(rf"\A{shape}\Z") for shape in ("62[0-9]{13,16}", "4[0-9]{14}", "5[1-5][0-9]{13}", "3[47][0-9]{12}"))
)


@given(st.lists(IDENTITIES, min_size=1, max_size=5, unique=True))
@settings(max_examples=40, deadline=None)
def test_identity_cards_are_masked_if_they_check(firsts: list[str]) -> None:
    good = [first + identity_check(first) for first in firsts]
    bad = [number[:17] + ("0" if number[17] == "X" else str((int(number[17]) + 1) % 10)) for number in good]
    texts, counts = masked(*(f"证号{number}。" for number in good))
    assert texts == ["证号[身份证号]。"] * len(good)
    assert counts == {"identity_card": len(good)}
    assert "[身份证号]" not in "".join(masked(*bad)[0])
    assert masked(*(number.lower() for number in good)) == (["[身份证号]"] * len(good), counts)


@given(st.lists(CARDS, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_bank_cards_are_masked_if_they_check(firsts: list[str]) -> None:
    good = [first + luhn_check(first) for first in firsts]
    bad = [first + str((int(luhn_check(first)) + 5) % 10) for first in firsts]
    assert masked(*(f"卡{number}号" for number in good)) == (["卡[银行卡号]号"] * len(good), {"bank_card": len(good)})
    assert "[银行卡号]" not in "".join(masked(*bad)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("电话13812345678，或139-1234-5678", "电话[手机号]，或[手机号]"),
        ("+86 138 1234 5678;8619912345678", "+86 [手机号];[手机号]"),
        ("卡号 6222 0212 3456 7890 128。", "卡号 [银行卡号]。"),
        ("写信到 zhang.san+1@mail.example.com.cn吧", "写信到 [邮箱]吧"),
        ("13812345678@163.com", "[邮箱]"),
        ("13812345678", "[手机号]"),
    ],
)
def test_masks_what_people_write(text: str, expected: str) -> None:
    assert masked(text)[0] == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "12812345678 不是号段",
        "1381234567 少一位",
        "订单 91381234567890 是长号的一部分",
        "138123456789",
        "圆周率3.13812345678",
        "010-66554433",
        "11010519491231002X1",  # an identity card with one digit more
        "2019年12月31日 10:00",
        "a @ b, @name, x@y",
        "1381-2345-678",
        "",
    ],
)
def test_leaves_other_numbers(text: str) -> None:
    assert masked(text) == ([text], {})


def test_masks_lists_and_counts_every_column() -> None:
    frame = pl.DataFrame(
        {
            "query": ["打13812345678", "无", "a@b.cn a@b.cn"],
            "positive": ["无", "打13812345678，13912345678", ""],
            "negatives": [["无", "打13812345678"], [], ["x", "y"]],
        }
    )
    found, counts = mask_personal_data(frame)
    assert found.to_dict(as_series=False) == {
        "query": ["打[手机号]", "无", "[邮箱] [邮箱]"],
        "positive": ["无", "打[手机号]，[手机号]", ""],
        "negatives": [["无", "打[手机号]"], [], ["x", "y"]],
    }
    assert counts == {**dict.fromkeys(MASKS, 0), "mobile": 4, "email": 2}


def test_masking_nothing_changes_nothing() -> None:
    schema = {"query": pl.String, "positive": pl.String, "negatives": pl.List(pl.String)}
    frame, counts = mask_personal_data(pl.DataFrame(schema=schema))
    assert frame.is_empty() and frame.schema == schema and not any(counts.values())
