"""Find personal data in texts, check that it is valid, and replace it with a mask that names its kind."""

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
"""The mask for each kind of personal data."""

# A candidate is matched to its full length: a number with all its digits and decimals, an address with the path in
# `scp host:path`. So no match is part of something longer, and the match alone decides whether it is personal data.
_ADDRESS = r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"
_PATH = ":[A-Za-z~/_.]"
_GROUPED_CARD = r"[0-9]{4}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3}(?-u:\b))?"
_GROUPED_MOBILE = "1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}"
_NUMBER = rf"(?:{_GROUPED_CARD}|{_GROUPED_MOBILE}|[0-9]{{17}}[Xx]|[0-9])[0-9]*(?:\.[0-9]+)*"
_VALUE = rf"{_ADDRESS}(?:{_PATH})?|{_NUMBER}"

# Words that announce an account; they are kept. An ASCII word must start at a word boundary: 加qq, not aqq.
_QQ = r"(?:(?-u:\b)(?i:qq)|扣扣|企鹅)[ :：号码群是为加吧（(\[]{0,6}"
_WECHAT = r"(?:微信|(?-u:\b)(?i:wx|vx))(?:[ :：号码账帐是为]|(?i:id)){1,6}|加我?[vV][:：] ?"
_ACCOUNT = "[a-zA-Z][-_a-zA-Z0-9]{5,}"
_UNIT = "[a-zA-Z_%万亿元块人个只位名年月]?"  # QQ 10000人 is not an account

_TOKEN = rf"(?:{_QQ}|{_WECHAT})(?:(?:{_VALUE}){_UNIT}|{_ACCOUNT})|{_VALUE}"
# Fast prefilters, searched for in every text: a text with personal data matches at least one of them.
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
    """Mask mobile numbers, identity cards, e-mail addresses, bank cards, QQ numbers and WeChat ids.

    A mobile number needs a valid prefix; an identity card a date and the check digit of GB 11643; a bank card an
    issuer's prefix and the Luhn check digit (ISO/IEC 7812). None of these may be part of a longer number. A QQ number
    or WeChat id must follow a word that announces it; that word is kept. The columns hold texts or lists of texts.
    Masking a masked frame changes nothing.

    Returns the masked frame and the number of masked values of each kind in MASKS.
    """
    parts = [_list_texts(frame, column) for column in columns]
    masked, counts = mask_texts(pl.concat([part["text"] for part in parts]))
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
    """List the texts of a column, or of the lists in it: columns `row` (the row in the frame) and `text`."""
    texts = frame.select(pl.row_index("row"), pl.col(column).alias("text"))
    if frame.schema[column] == pl.String:
        return texts
    return texts.filter(pl.col("text").list.len() > 0).explode("text").drop_nulls("text")


def mask_texts(texts: pl.Series) -> tuple[pl.Series, dict[str, int]]:
    """Mask personal data in a series of texts, as `mask_personal_data` does in a frame; null stays null."""
    counts = dict.fromkeys(MASKS, 0)
    return _mask(texts, counts), counts


def _mask(texts: pl.Series, counts: dict[str, int]) -> pl.Series:
    """Mask a series of texts and add to `counts`; only texts that may hold personal data are split into tokens."""
    addresses, numbers, accounts = (texts.str.contains(pattern).fill_null(False) for pattern in _WORTH_READING)
    rows = (addresses | numbers | accounts).arg_true()
    found = texts.gather(rows)
    tokens = found.str.extract_all(_TOKEN)
    kinds = _find_kinds(tokens.explode().drop_nulls().unique())
    if kinds.is_empty():
        return texts
    # A text alternates between gaps and tokens and ends with a gap: an empty last token makes them equal in number.
    between, token = pl.col("text").str.split(_TOKEN, literal=False), pl.concat_list("token", pl.lit(""))
    parts = pl.DataFrame({"row": rows, "text": found, "token": tokens}).select("row", token, between=between)
    parts = parts.explode("between", "token").join(kinds, on="token", how="left", maintain_order="left")
    for kind, number in parts["kind"].drop_nulls().value_counts().iter_rows():
        counts[kind] += number
    masked = pl.concat_str("between", pl.coalesce("masked", "token"))
    changed = parts.filter(pl.col("kind").is_not_null().any().over("row"))
    joined = changed.group_by("row", maintain_order=True).agg(masked.str.join("").alias("text"))
    # Repeat, as a mask can reveal further data right after it: QQ12345 after a mobile number.
    return texts.scatter(joined["row"], _mask(joined["text"], counts))


def _find_kinds(tokens: pl.Series) -> pl.DataFrame:
    """Find the tokens that are personal data: columns `token`, `kind` and `masked` (the token with its mask)."""
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
    """Read the last 20 digits of each number, uint8 [numbers, 20]: padded with 0 on the left, 10 for an X."""
    places = "".join(numbers.str.tail(20).str.zfill(20).str.to_uppercase()).encode("ascii")
    digits = np.frombuffer(places, np.uint8).reshape(-1, 20) - ord("0")
    digits[digits == ord("X") - ord("0")] = 10
    return digits


def _check_identity(digits: npt.NDArray[np.uint8]) -> pl.Series:
    """Whether the check digit is right by GB 11643-1999 (ISO 7064 MOD 11-2), where X is written for 10."""
    weights = [2**place % 11 for place in range(17, -1, -1)]
    return pl.Series(digits[:, 2:] @ np.array(weights) % 11 == 1)


def _check_luhn(digits: npt.NDArray[np.uint8]) -> pl.Series:
    """Whether the Luhn sum ends in 0: every second digit from the right is doubled, then all digits are added up."""
    once, doubled = digits[:, 1::2], digits[:, ::2] * 2
    return pl.Series((once + doubled - 9 * (doubled > 9)).sum(axis=1) % 10 == 0)
