"""Masks personal data in texts: finds it, checks it and replaces it by its kind."""

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
"""What `mask_personal_data` replaces each kind with."""

# Candidates are matched in full length: a number with all its digits and decimals, an address with the path of
# `scp host:path`. So no match is part of something longer, and the match alone tells whether it is personal.
_ADDRESS = r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"
_PATH = ":[A-Za-z~/_.]"
_GROUPED_CARD = r"[0-9]{4}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3}(?-u:\b))?"
_GROUPED_MOBILE = "1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}"
_NUMBER = rf"(?:{_GROUPED_CARD}|{_GROUPED_MOBILE}|[0-9]{{17}}[Xx]|[0-9])[0-9]*(?:\.[0-9]+)*"
_VALUE = rf"{_ADDRESS}(?:{_PATH})?|{_NUMBER}"

# The words before an account, which stay. An ASCII word must begin there: 加qq, not aqq.
_QQ = r"(?:(?-u:\b)(?i:qq)|扣扣|企鹅)[ :：号码群是为加吧（(\[]{0,6}"
_WECHAT = r"(?:微信|(?-u:\b)(?i:wx|vx))(?:[ :：号码账帐是为]|(?i:id)){1,6}|加我?[vV][:：] ?"
_ACCOUNT = "[a-zA-Z][-_a-zA-Z0-9]{5,}"
_UNIT = "[a-zA-Z_%万亿元块人个只位名年月]?"  # QQ 10000人 is not an account

_TOKEN = rf"(?:{_QQ}|{_WECHAT})(?:(?:{_VALUE}){_UNIT}|{_ACCOUNT})|{_VALUE}"
# Every text with personal data matches one of these. All texts are searched for them, so they are simple and fast.
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
    """Replace mobile numbers, identity cards, e-mail addresses, bank cards, QQ numbers and WeChat ids by their kind.

    A mobile number needs a valid prefix, an identity card a date and the check digit of GB 11643, a bank card an
    issuer's prefix and the Luhn check digit (ISO/IEC 7812); none may be part of a longer number. A QQ number or WeChat
    id must follow a word that announces it, which stays. The columns hold texts or lists of texts. Returns the frame
    and how many of each kind of MASKS were masked. Masking twice is masking once.
    """
    counts = dict.fromkeys(MASKS, 0)
    parts = [_list_texts(frame, column) for column in columns]
    masked = _mask_texts(pl.concat([part["text"] for part in parts]), counts)
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


def _list_texts(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """List the texts of a column, or of its lists: columns `row` and `text`."""
    texts = frame.select(pl.row_index("row"), pl.col(column).alias("text"))
    if frame.schema[column] == pl.String:
        return texts
    return texts.filter(pl.col("text").list.len() > 0).explode("text").drop_nulls("text")


def _mask_texts(texts: pl.Series, counts: dict[str, int]) -> pl.Series:
    """Mask a series of texts and add to the counts; only texts with a candidate are taken apart."""
    addresses, numbers, accounts = (texts.str.contains(pattern).fill_null(False) for pattern in _WORTH_READING)
    rows = (addresses | numbers | accounts).arg_true()
    found = texts.gather(rows)
    tokens = found.str.extract_all(_TOKEN)
    kinds = _find_kinds(tokens.explode().drop_nulls().unique())
    if kinds.is_empty():
        return texts
    # A text alternates between what lies between its tokens and the tokens; there is one token fewer.
    between, token = pl.col("text").str.split(_TOKEN, literal=False), pl.concat_list("token", pl.lit(""))
    parts = pl.DataFrame({"row": rows, "text": found, "token": tokens}).select("row", token, between=between)
    parts = parts.explode("between", "token").join(kinds, on="token", how="left", maintain_order="left")
    for kind, number in parts["kind"].drop_nulls().value_counts().iter_rows():
        counts[kind] += number
    masked = pl.concat_str("between", pl.coalesce("masked", "token"))
    changed = parts.filter(pl.col("kind").is_not_null().any().over("row"))
    joined = changed.group_by("row", maintain_order=True).agg(masked.str.join("").alias("text"))
    # More may begin right after a mask: QQ12345 after a mobile number, an address after a QQ number.
    return texts.scatter(joined["row"], _mask_texts(joined["text"], counts))


def _find_kinds(tokens: pl.Series) -> pl.DataFrame:
    """Find the tokens that are personal: columns `token`, `kind` and `masked`, the token with its value replaced."""
    groups = pl.lit(tokens).str.extract_groups(
        f"^(?:(?<qq>{_QQ})|(?<wechat>{_WECHAT}))?(?<value>{_VALUE}|{_ACCOUNT})(?<unit>.*)$"
    )
    parts = pl.select(tokens.alias("token"), groups.alias("groups")).unnest("groups")
    value = pl.col("value")
    number = parts["value"].str.replace_all("[ -]", "")
    digits = _read_digits(number.str.replace_all("[^0-9Xx]", ""))
    # 微信：Android is not an account, 微信号：Android may be one.
    announced = pl.col("wechat").str.contains("(?i)号|账|帐|id") | (
        pl.col("wechat").str.contains("[:：]") & value.str.contains("[0-9]")
    )
    kind = (
        pl.when(number.str.contains(_MOBILE))
        .then(pl.lit("mobile"))
        .when(number.str.contains(_IDENTITY) & _check_identity(digits))
        .then(pl.lit("identity_card"))
        .when(number.str.contains(_CARD) & _check_luhn(digits))
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


def _read_digits(numbers: pl.Series) -> npt.NDArray[np.uint8]:
    """Read the last 20 digits of each number, uint8 [numbers, 20]: 0 before its first, 10 for an X."""
    places = "".join(numbers.str.tail(20).str.zfill(20).str.to_uppercase()).encode("ascii")
    digits = np.frombuffer(places, np.uint8).reshape(-1, 20) - ord("0")
    digits[digits == ord("X") - ord("0")] = 10
    return digits


def _check_identity(digits: npt.NDArray[np.uint8]) -> pl.Series:
    """Check the last digit by GB 11643-1999 (ISO 7064 MOD 11-2), where X is written for 10."""
    weights = [2**place % 11 for place in range(17, -1, -1)]
    return pl.Series(digits[:, 2:] @ np.array(weights) % 11 == 1)


def _check_luhn(digits: npt.NDArray[np.uint8]) -> pl.Series:
    """Check by Luhn: double every second digit from the right and add up all digits; the sum must end in 0."""
    once, doubled = digits[:, 1::2], digits[:, ::2] * 2
    return pl.Series((once + doubled - 9 * (doubled > 9)).sum(axis=1) % 10 == 0)
