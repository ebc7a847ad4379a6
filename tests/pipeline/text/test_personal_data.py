"""Masks: personal data that passes its checks is masked; other values and the text around them stay as they are."""

import re
from datetime import date
from itertools import accumulate

import polars as pl
import pytest
from conan_embedding.pipeline.text.personal_data import MASKS, mask_personal_data, mask_texts
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


MOBILES = st.from_regex(r"\A(0|86|0086)?1[3-9][0-9]{9}\Z")
NUMBERS = st.one_of(
    MOBILES,
    IDENTITIES.map(lambda first: first + identity_check(first)),
    CARDS.map(lambda first: first + luhn_check(first)),
    st.builds(str.__add__, IDENTITIES, st.sampled_from("0123456789xX")),
    st.builds(str.__add__, CARDS, st.sampled_from("0123456789")),
    st.from_regex(r"\A[0-9]{5,20}\Z"),
)


def is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


CARD_LENGTHS = {"62": (16, 17, 18, 19), "34": (15,), "37": (15,), "35": (16,), "4": (16,)}
CARD_LENGTHS |= {f"5{second}": (16,) for second in range(1, 6)}
CARD_LENGTHS |= {str(first): (16,) for first in range(2221, 2721)} | {
    "9558": (19,),
    "95599": (19,),
    "456351": (16, 19),
    "436742": (16, 19),
}


def kind_of(number: str) -> str | None:
    """Return the kind of a number that is surrounded by other text, checked digit by digit."""
    if not number[:-1].isdigit():
        return None
    if len(number) >= 11 and number[:-11] in ("", "0", "86", "086", "0086"):
        return "mobile" if number[-11] == "1" and number[-10] in "3456789" and number[-1].isdigit() else None
    if len(number) == 18 and number[0] != "0" and number[17].upper() == identity_check(number[:17]):
        year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
        if 1800 <= year <= 2099 and is_date(year, month, day):
            return "identity_card"
    lengths = next((CARD_LENGTHS[number[:size]] for size in (6, 5, 4, 2, 1) if number[:size] in CARD_LENGTHS), ())
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
        ("身份证：110105491231002，证件号110105491231002", "身份证：[身份证号]，证件号110105491231002"),
        ("发到ab.c＠qq．com，或 wang@例子.中国", "发到[邮箱]，或 [邮箱]"),
        ("admin@xn--fsqu00a.xn--fiqs8s", "[邮箱]"),
        ("müller@bücher.de，ｗａｎｇ＠ｑｑ．ｃｏｍ，a@例え.jp，b@例子.台湾", "[邮箱]，[邮箱]，[邮箱]，[邮箱]"),
        ("(+86)13812345678；（138）1234-5678；0086 138 1234 5678", "(+86)[手机号]；[手机号]；0086 [手机号]"),
        ("138-1234-5678 139-1234-5678", "[手机号] [手机号]"),
        ("2024-05-01 138-123-45678 10:00", "2024-05-01 [手机号] 10:00"),
        ("110105 19491231 002X 电话 1 3 8 1 2 3 4 5 6 7 8", "[身份证号] 电话 [手机号]"),
        ("13812345678x2，X13912345678", "[手机号]x2，X[手机号]"),
        ("621758 640000 1046 190阳阳，中国银行", "[银行卡号]阳阳，中国银行"),
        ("中行4563510100888888884，农行9559980012345678903", "中行[银行卡号]，农行[银行卡号]"),
        ("卡号4111.1111.1111.1111。", "卡号[银行卡号]。"),
        ("a@b.cn/13812345678，[致电](tel:13812345678)", "[邮箱]/[手机号]，[致电](tel:[手机号])"),
        ("QQ群：123456789、987654321或 98765", "QQ群：[QQ号]、[QQ号]或 [QQ号]"),
        ("加Q群:123456789", "加Q群:[QQ号]"),
        (
            "WeChat: zhang_88，weixin号：zhang-san，加薇信：frqq23，薇信1771443606",
            "WeChat: [微信号]，weixin号：[微信号]，加薇信：[微信号]，薇信[微信号]",
        ),
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
        "1381-2345-678元",
        "1998-123-4567，1937-1945-123",
        "165 20190501",
        "192.168.110.15，15.0.1234.5678，151.101.192.81",
        "1 3 5 7 9 11 13 15",
        "Mo 1 8 15 22 29 5 12 19 26",
        "140-160/90-100，138-160-90-100-75",
        "15000-200000元，15000-200000k",
        "00002af8d4b17000 768000",
        "(55+135+400+135+55)m",
        "138-001-38000-1，2138-001-38000",
        "62751234-62751235",
        "2365 2364 2363 2362 2361，3500 3600 3700 3800 3900",
        "ISBN 978-7-115-13812-3，1-4028-9462-7",
        "http://example.com/item/13812345678.html?id=4111111111111111",
        "www.example.com/8613812345678",
        "https://user:pass@github.com ssh://git@git.example.com:22/a",
        "getty@tty1.service icon@2x.png logo@3x.psd",
        "ssh -T git@github.com",
        "m.weibo.cn/detail/4111111111111111，example.com/13812345678",
        "md5 e13812345678abcdef13812345678abc，9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822C13812345678D15D6",
        "uuid 4111111a-1381-4567-8138-13812345678a",
        "微信服务/ WeChat service，WeChat: Android，QQ：[QQ号]、2019年，[QQ号]、13元",
        "110105194902300021，110105 19490230 0021",
        "13812345678.50元",
        "13812345678元，$13812345678，￥13812345678，涨13812345678%",
        "1 1 0 1 0 5 1 9 4 9 1 2 3 1 0 0 2 1",
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


GROUPINGS = [(11,), (3, 4, 4), (3, 8), (3, 3, 5), (4, 4, 3), (5, 6), (6, 5), (7, 4), (4, 3, 4), (3, 2, 2, 4), (1,) * 11]
SPACES, DASHES = " \u00a0\u2009\u202f\u3000\u200b", "-‐‑‒–—―−﹣－"


@pytest.mark.parametrize("separator", [*SPACES, *DASHES, " - ", "--"])
def test_mobile_numbers_in_any_grouping(separator: str) -> None:
    expected = {}
    for grouping in GROUPINGS:
        digits, ends = "13812345678", list(accumulate(grouping))
        number = separator.join(digits[end - size : end] for size, end in zip(grouping, ends, strict=True))
        prefixes = {"": "", "0": "", "86": "", "0086": "", "+86": "+"} if grouping[0] > 1 else {"": ""}
        prefixes |= {"+86 ": "+86 ", "(+86)": "(+86)", "（86）": "（86）", "86-": "86-"}
        expected |= {
            f"请拨打{prefix}{number}联系他。": f"请拨打{kept}[手机号]联系他。" for prefix, kept in prefixes.items()
        }
        wide = number.translate(str.maketrans("0123456789", "０１２３４５６７８９"))
        expected[f"电话：{wide}，"] = "电话：[手机号]，"
    assert dict(zip(expected, masked(*expected)[0], strict=True)) == expected


CARD_GROUPINGS = {
    "identity_card": [
        "110105 19491231 002X",
        "110105 1949 1231 002Ｘ",
        "110105 19491231 002 X",
        "1 1 0 1 0 5 1 9 4 9 1 2 3 1 0 0 2 X",
        "110105 1949 12 31 002Ⅹ",
        "1101 0519 4912 3100 2x",
        "11010519491231002×",
    ],
    "bank_card": [
        "4111 1111 1111 1111",
        "411111 1111111111",
        "6222 0212 3456 7890 128",
        "622202 1234567890128",
        "622202 1234 5678 90128",
    ],
}


@pytest.mark.parametrize("separator", [*SPACES, *DASHES])
@pytest.mark.parametrize("kind", CARD_GROUPINGS)
def test_cards_in_any_grouping(kind: str, separator: str) -> None:
    texts = [f"号码：{grouping.replace(' ', separator)}。" for grouping in CARD_GROUPINGS[kind]]
    assert masked(*texts) == ([f"号码：{MASKS[kind]}。"] * len(texts), {kind: len(texts)})


def test_the_texts_that_are_given_stay_as_they_are() -> None:
    texts = pl.Series(["13812345678", None, "a"])
    assert mask_texts(texts)[0].to_list() == ["[手机号]", None, "a"]
    assert texts.to_list() == ["13812345678", None, "a"]


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
