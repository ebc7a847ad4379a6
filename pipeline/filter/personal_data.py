"""Personal data in a text: found, checked and replaced by its kind."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import polars as pl

MASKS = {
    "mobile": "[手机号]",
    "identity_card": "[身份证号]",
    "email": "[邮箱]",
    "bank_card": "[银行卡号]",
    "qq": "[QQ号]",
    "wechat": "[微信号]",
}
"""What `mask_personal_data` puts in the place of each kind."""

# What may be personal, read as far as it goes: a number with all digits and decimals, an address with the path of
# `scp host:path`. So no match is a part of something longer, and whether it is personal can be told from it alone.
_ADDRESS = r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"
_PATH = ":[A-Za-z~/_.]"
_GROUPED_CARD = r"[0-9]{4}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3}(?-u:\b))?"
_GROUPED_MOBILE = "1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}"
_NUMBER = rf"(?:{_GROUPED_CARD}|{_GROUPED_MOBILE}|[0-9]{{17}}[Xx]|[0-9])[0-9]*(?:\.[0-9]+)*"
_VALUE = rf"{_ADDRESS}(?:{_PATH})?|{_NUMBER}"

# What announces an account, and stays. An ASCII word must begin there: 加qq, not aqq.
_QQ = r"(?:(?-u:\b)(?i:qq)|扣扣|企鹅)[ :：号码群是为加吧（(\[]{0,6}"
_WECHAT = r"(?:微信|(?-u:\b)(?i:wx|vx))(?:[ :：号码账帐是为]|(?i:id)){1,6}|加我?[vV][:：] ?"
_ACCOUNT = "[a-zA-Z][-_a-zA-Z0-9]{5,}"
_UNIT = "[a-zA-Z_%万亿元块人个只位名年月]?"  # QQ 10000人 is no account

_TOKEN = rf"(?:{_QQ}|{_WECHAT})(?:(?:{_VALUE}){_UNIT}|{_ACCOUNT})|{_VALUE}"
# Every text with personal data has one of them. They are sought in all texts and are as fast as they are simple.
_WORTH_READING = (
    _ADDRESS,
    "[0-9]{11}|[0-9]{3}[ -][0-9]{4}[ -][0-9]{4}",
    r"(?:微信|扣扣|企鹅|(?i:qq|wx|vx)|[vV][:：])[ :：号码账帐群是为加吧（(\[idID]{0,12}[a-zA-Z0-9][-_a-zA-Z0-9]{4}",
)

_MOBILE = "^(?:86)?1[3-9][0-9]{9}$"
_IDENTITY = "^[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx]$"
# UnionPay, Visa, Mastercard, American Express, JCB (ISO/IEC 7812 issuer numbers).
_CARD = "^(?:62[0-9]{14,17}|4[0-9]{15}|5[1-5][0-9]{14}|3[47][0-9]{13}|35[0-9]{14})$"
_ALGORITHM = r"@(?:openssh\.com|libssh\.org)$"  # curve25519-sha256@libssh.org (RFC 4251 §6)
_QQ_NUMBER = "^[1-9][0-9]{4,10}$"
_WECHAT_ID = "^[a-zA-Z][-_a-zA-Z0-9]{5,19}$"  # Weixin's own rule


def mask_personal_data(
    frame: pl.DataFrame, columns: Collection[str] = ("query", "positive", "negatives")
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Put the kind in the place of mobile numbers, identity cards, e-mail addresses, bank cards, QQ and WeChat ids.

    Mobile numbers have a valid prefix, identity cards a date and the check digit of GB 11643, bank cards an
    issuer's prefix and the check digit of Luhn (ISO/IEC 7812); none is part of a longer number. QQ numbers and
    WeChat ids stand after a word that says so, which stays. The columns hold texts or lists of them. Returns the
    frame and how many of each kind of MASKS were masked; masking what is masked changes nothing.
    """
    counts = dict.fromkeys(MASKS, 0)
    parts = [_texts(frame, column) for column in columns]
    masked = _masked(pl.concat([part["text"] for part in parts]), counts)
    if not any(counts.values()):
        return frame, counts
    start = 0
    for column, part in zip(columns, parts, strict=True):
        part = part.with_columns(masked.slice(start, part.height))
        start += part.height
        if frame.schema[column] != pl.String:
            lists = part.group_by("row").agg("text")
            part = frame.select(pl.row_index("row")).join(lists, on="row", how="left", maintain_order="left")
            part = part.with_columns(pl.col("text").fill_null([]))
        frame = frame.with_columns(part["text"].alias(column))
    return frame, counts


def _texts(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """The texts of a column, or of its lists: columns row and text."""
    texts = frame.select(pl.row_index("row"), pl.col(column).alias("text"))
    if frame.schema[column] == pl.String:
        return texts
    return texts.filter(pl.col("text").list.len() > 0).explode("text").drop_nulls("text")


def _masked(texts: pl.Series, counts: dict[str, int]) -> pl.Series:
    """Mask one series of texts and add to the counts; only texts with a candidate are taken apart."""
    addresses, numbers, accounts = (texts.str.contains(pattern).fill_null(False) for pattern in _WORTH_READING)
    rows = (addresses | numbers | accounts).arg_true()
    found = texts.gather(rows)
    tokens = found.str.extract_all(_TOKEN)
    kinds = _kinds(tokens.explode().drop_nulls().unique())
    if kinds.is_empty():
        return texts
    # A text is what lies between its tokens, with the tokens between: one more of those.
    between, token = pl.col("text").str.split(_TOKEN, literal=False), pl.concat_list("token", pl.lit(""))
    parts = pl.DataFrame({"row": rows, "text": found, "token": tokens}).select("row", token, between=between)
    parts = parts.explode("between", "token").join(kinds, on="token", how="left", maintain_order="left")
    for kind, number in parts["kind"].drop_nulls().value_counts().iter_rows():
        counts[kind] += number
    masked = pl.concat_str("between", pl.coalesce("masked", "token"))
    changed = parts.filter(pl.col("kind").is_not_null().any().over("row"))
    joined = changed.group_by("row", maintain_order=True).agg(masked.str.join("").alias("text"))
    # Beside a mask may stand what now begins there: QQ12345 after a mobile number, an address after QQ and a number.
    return texts.scatter(joined["row"], _masked(joined["text"], counts))


def _kinds(tokens: pl.Series) -> pl.DataFrame:
    """The tokens that are personal: columns token, kind and masked, the token with its kind for its value."""
    groups = pl.lit(tokens).str.extract_groups(
        f"^(?:(?<qq>{_QQ})|(?<wechat>{_WECHAT}))?(?<value>{_VALUE}|{_ACCOUNT})(?<unit>.*)$"
    )
    parts = pl.select(tokens.alias("token"), groups.alias("groups")).unnest("groups")
    value = pl.col("value")
    number = parts["value"].str.replace_all("[ -]", "")
    digits = _digits(number.str.replace_all("[^0-9Xx]", ""))
    # 微信：Android is no account, 微信号：Android may be one.
    announced = pl.col("wechat").str.contains("(?i)号|账|帐|id") | (
        pl.col("wechat").str.contains("[:：]") & value.str.contains("[0-9]")
    )
    kind = (
        pl.when(number.str.contains(_MOBILE))
        .then(pl.lit("mobile"))
        .when(number.str.contains(_IDENTITY) & _identity_checks(digits))
        .then(pl.lit("identity_card"))
        .when(number.str.contains(_CARD) & _luhn_checks(digits))
        .then(pl.lit("bank_card"))
        .when(value.str.contains(f"^{_ADDRESS}$") & ~value.str.contains(_ALGORITHM))
        .then(pl.lit("email"))
        .when(pl.col("qq").is_not_null() & value.str.contains(_QQ_NUMBER) & (pl.col("unit") == ""))
        .then(pl.lit("qq"))
        .when(announced & value.str.contains(f"{_QQ_NUMBER}|{_WECHAT_ID}") & (pl.col("unit") == ""))
        .then(pl.lit("wechat"))
    )
    mask = pl.col("kind").replace_strict(MASKS, default=None, return_dtype=pl.String)
    masked = pl.coalesce("qq", "wechat", pl.lit("")) + mask + pl.col("unit")
    return parts.with_columns(kind=kind).drop_nulls("kind").select("token", "kind", masked=masked)


def _digits(numbers: pl.Series) -> npt.NDArray[np.uint8]:
    """The last 20 places of each number, of shape (numbers, 20): 0 before its first, 10 for an X."""
    places = "".join(numbers.str.tail(20).str.zfill(20).str.to_uppercase()).encode("ascii")
    digits = np.frombuffer(places, np.uint8).reshape(-1, 20) - ord("0")
    digits[digits == ord("X") - ord("0")] = 10
    return digits


def _identity_checks(digits: npt.NDArray[np.uint8]) -> pl.Series:
    """GB 11643-1999, after ISO 7064 MOD 11-2: the last place is 10, written X, or a digit."""
    weights = [2**place % 11 for place in range(17, -1, -1)]
    return pl.Series(digits[:, 2:] @ np.array(weights) % 11 == 1)


def _luhn_checks(digits: npt.NDArray[np.uint8]) -> pl.Series:
    """Luhn's: from the right, every second digit doubled and its digits added; the sum ends in 0."""
    once, doubled = digits[:, 1::2], digits[:, ::2] * 2
    return pl.Series((once + doubled - 9 * (doubled > 9)).sum(axis=1) % 10 == 0)
