"""Find personal data in texts, check that it is valid, and replace it with a mask that names its kind."""

from collections.abc import Callable, Collection
from functools import partial
from typing import TypeAlias

import polars as pl

from .personal_numbers import MAYBE_NUMBERS, MOBILE, NUMBERS, mask_numbers

MASKS = {
    "mobile": "[手机号]",
    "identity_card": "[身份证号]",
    "email": "[邮箱]",
    "bank_card": "[银行卡号]",
    "qq": "[QQ号]",
    "wechat": "[微信号]",
}
"""The mask for each kind of personal data."""

# A candidate is matched to its full length: a number with its decimals, an address with the path in `scp host:path`. So
# no match is part of something longer, and the match alone decides whether it is personal data.
_LOCAL = r"[\p{Latin}0-9._%+-]+[@＠﹫]"
_ADDRESS = (
    rf"(?:{_LOCAL}(?:[\p{{Latin}}0-9-]+[.．])+(?:xn--[A-Za-z0-9-]+|\p{{Latin}}{{2,}})"
    rf"|{_LOCAL}(?:[\p{{L}}0-9-]+[.．])+(?:中国|中國|公司|网络|網絡|网址|香港|台湾|台灣|com|net|org|cn|hk|tw|jp|kr))"
)
_PATH = ":[A-Za-z~/_.]"
_CREDENTIALS = r"://[^\s/@＠]*@"  # ssh://git@host
_VALUE = rf"(?:{_ADDRESS}(?:{_PATH})?|[0-9]+(?:\.[0-9]+)*)"

# Words that announce an account; they are kept. An ASCII word must start at a word boundary: 加qq, not aqq.
_QQ = r"(?:(?-u:\b)(?i:qq|q群)|扣扣|企鹅)[ :：号码群是为加吧（(\[]{0,6}|\[QQ号\] ?[、/或和] ?"
_ANY_WECHAT = "微信|(?-u:\\b)(?i:wx|vx|wechat|weixin)"
_WECHAT = rf"(?:{_ANY_WECHAT})(?:[ :：号码账帐是为]|(?i:id)){{1,6}}|薇信[ :：号码是为]{{0,6}}|加我?[vV][:：] ?"
_IDENTITY = "身份证[件号码 :：是为（(]{0,6}"
_ACCOUNT = "[a-zA-Z][-_a-zA-Z0-9]{5,}"
_UNIT = "[a-zA-Z_%万亿元块人个只位名年月]?"  # QQ 10000人 is not an account

_ACCOUNTS = (
    rf"(?:{_QQ}|{_WECHAT})(?:{_VALUE}{_UNIT}|{_ACCOUNT})|{_IDENTITY}{_VALUE}|{_CREDENTIALS}|{_ADDRESS}(?:{_PATH})?"
)
# Fast prefilters, searched for in every text: a text with personal data matches at least one of them.
_WORTH_READING = (
    r"@[\p{L}0-9-]+[.．]",
    r"(?:微信|薇信|扣扣|企鹅|(?i:qq|q群|wx|vx|wechat|weixin)|[vV][:：])[ :：号码账帐群是为加吧（(\[\]、/或和idID]{0,12}"
    r"[a-zA-Z0-9][-_a-zA-Z0-9]{4}"
    "|身份证[件号码 :：是为（(]{0,6}[0-9]{15}",
    MAYBE_NUMBERS,
    "[０-９]|＠|﹫",
)

FindMasks: TypeAlias = Callable[[pl.Series], pl.DataFrame]
"""Finds the tokens that hold personal data: columns `token` and `masked` (the token with its masks)."""

# Names of SSH algorithms (RFC 4251 §6), units of systemd, images of a resolution (icon@2x.png), a server of Git.
_NO_ADDRESS = (
    r"[@＠﹫](?:openssh\.com|libssh\.org|[1-4]x\..*|.*\.(?:service|socket|timer|png|jpe?g|gif|svg|webp))$|^git[@＠﹫]"
)
_QQ_NUMBER = "^[1-9][0-9]{4,10}$"
_WECHAT_ID = "^[a-zA-Z][-_a-zA-Z0-9]{5,19}$"  # Weixin's own rule
_OLD_IDENTITY = "^[1-8][0-9]{7}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}$"  # of 15 digits, until 1999


def mask_personal_data(
    frame: pl.DataFrame, columns: Collection[str] = ("query", "positive", "negatives")
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Mask mobile numbers, identity cards, e-mail addresses, bank cards, QQ numbers and WeChat ids.

    A mobile number needs a valid prefix; an identity card a date of birth and the check digit of GB 11643; a bank card
    an issuer's prefix and the Luhn check digit (ISO/IEC 7812). None of these may be part of a longer number. A QQ
    number, a WeChat id or an identity card of 15 digits must follow a word that announces it; that word is kept. The
    columns hold texts or lists of texts. Masking a masked frame changes nothing.

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
    masked, rows = _mask(texts, _judge_once(_mask_accounts), _judge_once(partial(mask_numbers, masks=MASKS)))
    before, after = (
        side.gather(rows)
        .to_frame("text")
        .select(pl.col("text").str.count_matches(mask, literal=True).sum().alias(kind) for kind, mask in MASKS.items())
        .row(0, named=True)
        for side in (texts, masked)
    )
    return masked, {kind: after[kind] - before[kind] for kind in MASKS}


def _judge_once(mask: FindMasks) -> FindMasks:
    """Return the function `mask` that does not judge a token again in which it has found nothing."""
    harmless = pl.Series(dtype=pl.String)

    def mask_others(tokens: pl.Series) -> pl.DataFrame:
        nonlocal harmless
        others = tokens.filter(~tokens.is_in(harmless.implode()))
        if others.is_empty():
            return pl.DataFrame(schema={"token": pl.String, "masked": pl.String})
        masks = mask(others)
        harmless = pl.concat([harmless, others.filter(~others.is_in(masks["token"].implode()))])
        return masks

    return mask_others


def _mask(texts: pl.Series, find_accounts: FindMasks, find_numbers: FindMasks) -> tuple[pl.Series, pl.Series]:
    """Mask texts until nothing changes; return them and the changed rows.

    A mask can reveal further data right after it: QQ12345 after a mobile number.
    """
    addresses, announced, numbers, wide = (texts.str.contains(pattern).fill_null(False) for pattern in _WORTH_READING)
    accounts, numbers = addresses | announced | wide, numbers | wide
    masked = _replace(texts, accounts.arg_true(), _ACCOUNTS, find_accounts)
    masked = _replace(masked, numbers.arg_true(), NUMBERS, find_numbers)
    read = (accounts | numbers).arg_true()
    rows = read.filter(masked.gather(read) != texts.gather(read))
    if rows.is_empty():
        return texts, rows
    again, _ = _mask(masked.gather(rows), find_accounts, find_numbers)
    return masked.scatter(rows, again), rows


def _replace(texts: pl.Series, rows: pl.Series, pattern: str, mask: FindMasks) -> pl.Series:
    """Replace the tokens that a pattern matches in these rows by what `mask` finds."""
    found = texts.gather(rows)
    tokens = found.str.extract_all(pattern)
    if (masks := mask(tokens.explode().drop_nulls().unique())).is_empty():
        return texts
    # A text alternates between gaps and tokens and ends with a gap: an empty last token makes them equal in number.
    gap, token = pl.col("text").str.split(pattern, literal=False), pl.concat_list("token", pl.lit(""))
    to_change = pl.col("token").list.eval(pl.element().is_in(masks["token"].implode())).list.any()
    parts = pl.DataFrame({"row": rows, "text": found, "token": tokens}).filter(to_change).select("row", token, gap=gap)
    parts = parts.explode("gap", "token").join(masks, on="token", how="left", maintain_order="left")
    text = pl.concat_str("gap", pl.coalesce("masked", "token")).str.join("")
    joined = parts.group_by("row", maintain_order=True).agg(text.alias("text"))
    return texts.clone().scatter(joined["row"], joined["text"])


def _mask_accounts(tokens: pl.Series) -> pl.DataFrame:
    """Find the tokens that are addresses or announced: columns `token` and `masked` (the token with its mask)."""
    groups = pl.lit(tokens).str.extract_groups(
        f"^(?:(?<qq>{_QQ})|(?<wechat>{_WECHAT})|(?<identity>{_IDENTITY}))?(?<value>{_VALUE}|{_ACCOUNT})(?<unit>.*)$"
    )
    parts = pl.select(tokens.alias("token"), groups.alias("groups")).unnest("groups")
    value = pl.col("value")
    account = (pl.col("unit") == "") & ~value.str.contains(MOBILE)
    # 微信：Android is not an account, 微信号：Android may be one.
    announced = pl.col("wechat").str.contains("(?i)薇|号|账|帐|id") | (
        pl.col("wechat").str.contains("[:：]") & value.str.contains("[0-9]")
    )
    kind = (
        pl.when(value.str.contains(f"^{_ADDRESS}$") & ~value.str.contains(_NO_ADDRESS))
        .then(pl.lit("email"))
        .when(pl.col("qq").is_not_null() & value.str.contains(_QQ_NUMBER) & account)
        .then(pl.lit("qq"))
        .when(announced & value.str.contains(f"{_QQ_NUMBER}|{_WECHAT_ID}") & account)
        .then(pl.lit("wechat"))
        .when(pl.col("identity").is_not_null() & value.str.contains(_OLD_IDENTITY))
        .then(pl.lit("identity_card"))
    )
    mask = kind.replace_strict(MASKS, default=None, return_dtype=pl.String)
    masked = pl.coalesce("qq", "wechat", "identity", pl.lit("")) + mask + pl.col("unit")
    return parts.select("token", masked=masked).drop_nulls("masked")
