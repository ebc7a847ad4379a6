"""Masks: personal data that passes its checks is masked; other values and the text around them stay as they are."""

import re
from datetime import date

import polars as pl
import pytest
from conan_embedding.pipeline.text.personal_data import MASKS, mask_personal_data
from hypothesis import example, given
from hypothesis import strategies as st
from properties import max_examples


def masked(*texts: str) -> tuple[list[str], dict[str, int]]:
    """Return the masked texts, and the counts that are not 0."""
    frame, counts = mask_personal_data(pl.DataFrame({"text": texts}), ["text"])
    return frame["text"].to_list(), {kind: count for kind, count in counts.items() if count}


def identity_check(first: str) -> str:
    """Compute the check digit from the tables that GB 11643-1999 prints."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(first, weights, strict=True)) % 11]


def luhn_check(first: str) -> str:
    """Return the digit that makes Luhn's sum end in 0."""
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


MOBILES = st.from_regex(r"\A(86)?1[3-9][0-9]{9}\Z")
NUMBERS = st.one_of(
    MOBILES,
    IDENTITIES.map(lambda first: first + identity_check(first)),
    CARDS.map(lambda first: first + luhn_check(first)),
    st.builds(str.__add__, IDENTITIES, st.sampled_from("0123456789xX")),
    st.builds(str.__add__, CARDS, st.sampled_from("0123456789")),
    st.from_regex(r"\A[0-9]{5,20}\Z"),
)


CARD_LENGTHS = {"62": (16, 17, 18, 19), "34": (15,), "37": (15,), "35": (16,), "4": (16,)}
CARD_LENGTHS |= {f"5{second}": (16,) for second in range(1, 6)}


def kind_of(number: str) -> str | None:
    """Return the kind of a number that is surrounded by other text, checked digit by digit."""
    if not number[:-1].isdigit():
        return None
    if len(number) == 11 or (len(number) == 13 and number.startswith("86")):
        return "mobile" if number[-11] == "1" and number[-10] in "3456789" and number[-1].isdigit() else None
    if len(number) == 18 and number[0] != "0" and number[17].upper() == identity_check(number[:17]):
        year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
        if 1800 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31:
            return "identity_card"
    lengths = CARD_LENGTHS.get(number[:2]) or CARD_LENGTHS.get(number[0], ())
    return "bank_card" if len(number) in lengths and number[-1] == luhn_check(number[:-1]) else None


@st.composite
def numbers_in_text(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """Draw a text of numbers, the masked text that is expected, and the kinds that are masked in it."""
    text, expected, kinds = "", "", []
    for _ in range(draw(st.integers(1, 4))):
        left = draw(st.sampled_from(["号", "a", " ", "（", "：", "", "7."]))
        number = draw(st.sampled_from(["", "", "7"])) + draw(NUMBERS) + draw(st.sampled_from(["", "", "7"]))
        right = draw(st.sampled_from(["号", "b", " ", "）", ".", "", ".7"]))
        between = draw(st.sampled_from(["", " ", "-"]))
        found = kind_of(number)
        written = number
        if found == "bank_card" and len(number) == 16:
            written = between.join(number[place : place + 4] for place in range(0, 16, 4))
        elif found == "mobile" and len(number) == 11:
            written = between.join((number[:3], number[3:7], number[7:]))
        kind = None if left == "7." or right == ".7" else found
        text += f"{left}{written}{right}，"
        expected += f"{left}{MASKS[kind] if kind else written}{right}，"
        kinds += [kind] if kind else []
    return text, expected, kinds


@given(numbers_in_text())
@max_examples(200)
def test_numbers_are_masked_if_they_check_and_stand_alone(case: tuple[str, str, list[str]]) -> None:
    text, expected, kinds = case
    assert masked(text) == ([expected], {kind: kinds.count(kind) for kind in kinds})


PIECES = [
    *(
        "QQ",
        "qq",
        "扣扣",
        "企鹅",
        "微信",
        "微信号",
        "WX",
        "加v",
        "号",
        "是",
        "群",
        "：",
        ":",
        "[",
        "]",
        "（",
        " ",
        "\n",
    ),
    *("中", "，", "。", "a", "X", "x", "-", "_", ".", "@", "/", "人", "%", "7", "86", "12345", "1234"),
    *("abc_123", "wangxiao", "a@b.cn", "git@h.com", "@openssh.com", "13812345678", "138 1234 5678"),
    *("11010519491231002X", "6222 0212 3456 7890 128", "4111111111111111", *MASKS.values()),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)


@example("QQ138 1234 5678a@b.cn")
@example("QQa@b.cn_@c.cn")
@example("13812345678QQ12345")
@given(TEXTS)
@max_examples(200)
def test_masking_changes_no_other_character_and_nothing_twice(text: str) -> None:
    (once,), counts = masked(text)
    assert masked(once) == ([once], {})
    inserted = {kind: once.count(mask) - text.count(mask) for kind, mask in MASKS.items()}
    assert counts == {kind: number for kind, number in inserted.items() if number}
    left = re.split("|".join(map(re.escape, MASKS.values())), once)
    assert re.fullmatch("(?s:.+?)".join(map(re.escape, left)), text)


@given(st.lists(TEXTS, min_size=1, max_size=4))
@max_examples(60)
def test_a_text_is_masked_whatever_stands_around_it(texts: list[str]) -> None:
    alone = [masked(text)[0][0] for text in texts]
    assert masked(*texts)[0] == alone
    assert masked(*(f"{text}。a@b.cn" for text in texts))[0] == [f"{text}。[邮箱]" for text in alone]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("电话13812345678，或139-1234-5678", "电话[手机号]，或[手机号]"),
        ("+86 138 1234 5678;8619912345678", "+86 [手机号];[手机号]"),
        ("卡号 6222 0212 3456 7890 128。", "卡号 [银行卡号]。"),
        ("写信到 zhang.san+1@mail.example.com.cn吧", "写信到 [邮箱]吧"),
        ("13812345678@163.com", "[邮箱]"),
        ("13812345678", "[手机号]"),
        ("邮箱：a@b.com: 请联系", "邮箱：[邮箱]: 请联系"),
        ("邮箱a@b.com:请联系", "邮箱[邮箱]:请联系"),
        ("6222 0212 3456 7890 13812345678", "6222 0212 3456 7890 [手机号]"),
        ("联系QQ 282369262 我手机13812345678", "联系QQ [QQ号] 我手机[手机号]"),
        ("加我qq吧 815612516", "加我qq吧 [QQ号]"),
        ("QQ群号码为 [588793226](https://jq.qq.com)", "QQ群号码为 [[QQ号]](https://jq.qq.com)"),
        ("扣扣552011921，企鹅2223298821", "扣扣[QQ号]，企鹅[QQ号]"),
        ("QQ：12345@qq.com", "QQ：[邮箱]"),
        ("QQ：13812345678人", "QQ：[手机号]人"),
        ("加微信号：nbnb618（长按复制）", "加微信号：[微信号]（长按复制）"),
        ("老师微信号wangjuanqwls咨询", "老师微信号[微信号]咨询"),
        ("微信ID:dgtxxw", "微信ID:[微信号]"),
        ("私人微信:V66000086 （有偿）", "私人微信:[微信号] （有偿）"),
        ("微信：2375811040", "微信：[微信号]"),
        ("微信号是：443407599，加v：zhang_3", "微信号是：[微信号]，加v：[微信号]"),
        ("wx: ab-12345", "wx: [微信号]"),
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
        "11010519491231002X1",  # an identity card with one more digit
        "2019年12月31日 10:00",
        "a @ b, @name, x@y",
        "1381-2345-678",
        "13812345678.50元",
        "138 1234 56789",
        "git clone git@github.com:owner/name.git",
        "scp me@host.com:~/a me@host.com:/tmp me@host.com:.bashrc",
        "Ciphers aes256-gcm@openssh.com,curve25519-sha256@libssh.org",
        "QQ 10000人，QQ群20000个，QQ：12345.6",
        "QQ1234，QQ123456789012，QQ012345",
        "QQ农场月收入5000000，QQ空间 20121201",
        "frqq12345, qq.com/12345",
        "微信：Android 版，微信openid，微信 abc12345，微信是Tencent的",
        "微信号：abc，微信号：a23456789012345678901",
        "微信公众号：abc123456",
        "<view wx:for-item='x' wx:key='index12'>",
        "prev: Option12345, linuxwx: abc12345",
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
