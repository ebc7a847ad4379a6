"""Personal data in a text: found, checked and replaced by its kind."""

from collections.abc import Collection

import polars as pl

MASKS = {"mobile": "[手机号]", "identity_card": "[身份证号]", "email": "[邮箱]", "bank_card": "[银行卡号]"}
"""What `mask_personal_data` puts in the place of each kind."""

_EMAIL = r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"

# A text as numbers and what lies between; digits as long as they run, so that no part of a longer number counts.
_GROUPED_CARD = r"[0-9]{4}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3})?"
_GROUPED_MOBILE = r"1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}"
_TOKEN = rf"{_GROUPED_CARD}|{_GROUPED_MOBILE}|[0-9]{{17}}[Xx]|[0-9]+|[^0-9]+"
_WORTH_READING = rf"[0-9]{{11}}|{_GROUPED_CARD}|{_GROUPED_MOBILE}"

_MOBILE = r"^(?:86)?1[3-9][0-9]{9}$"
_IDENTITY = r"^[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx]$"
# UnionPay, Visa, Mastercard, American Express, JCB (ISO/IEC 7812 issuer numbers).
_CARD = r"^(?:62[0-9]{14,17}|4[0-9]{15}|5[1-5][0-9]{14}|3[47][0-9]{13}|35[0-9]{14})$"


def mask_personal_data(
    frame: pl.DataFrame, columns: Collection[str] = ("query", "positive", "negatives")
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Put the kind in the place of mobile numbers, identity cards, e-mail addresses and bank cards.

    Mobile numbers have a valid prefix, identity cards a date and the check digit of GB 11643, bank cards an
    issuer's prefix and the check digit of Luhn (ISO/IEC 7812); none is part of a longer number. The columns hold
    texts or lists of them. Returns the frame and how many of each kind of MASKS were masked.
    """
    counts = dict.fromkeys(MASKS, 0)
    for column in columns:
        if frame.schema[column] == pl.String:
            frame = frame.with_columns(_masked(frame[column], counts))
        else:
            rows = frame.select(column).with_row_index("row").explode(column).drop_nulls(column)
            lists = rows.with_columns(_masked(rows[column], counts)).group_by("row").agg(column)
            masked = frame.select(pl.row_index("row")).join(lists, on="row", how="left", maintain_order="left")
            frame = frame.with_columns(masked[column].fill_null([]))
    return frame, counts


def _masked(texts: pl.Series, counts: dict[str, int]) -> pl.Series:
    """Mask one series of texts and add to the counts; only texts with a candidate are taken apart."""
    name = texts.name
    counts["email"] += int(texts.str.count_matches(_EMAIL).sum())
    texts = texts.str.replace_all(_EMAIL, MASKS["email"])

    rows = texts.str.contains(_WORTH_READING).fill_null(False).arg_true()
    if not len(rows):
        return texts
    tokens = pl.DataFrame({"row": rows, "token": texts.gather(rows).str.extract_all(_TOKEN)}).explode("token")
    kinds = _kinds(tokens["token"].filter(tokens["token"].str.contains("[0-9]{4}")).unique())
    before, after = (pl.col("token").shift(step).over("row") for step in (1, -1))
    alone = (before != ".").fill_null(True) & ~after.str.contains("^[0-9]").fill_null(False)
    tokens = tokens.join(kinds, on="token", how="left", maintain_order="left").with_columns(
        pl.when(alone).then("kind").alias("kind")
    )
    for kind, found in tokens["kind"].drop_nulls().value_counts().iter_rows():
        counts[kind] += found
    masked = tokens.with_columns(pl.coalesce(pl.col("kind").replace_strict(MASKS, default=None), "token").alias(name))
    joined = masked.group_by("row", maintain_order=True).agg(pl.col(name).str.join(""))
    return texts.scatter(joined["row"], joined[name])


def _kinds(numbers: pl.Series) -> pl.DataFrame:
    """The kind of each number that is personal: columns token, kind."""
    number = pl.col("token").str.replace_all("[ -]", "")
    return (
        numbers.alias("token")
        .to_frame()
        .with_columns(
            pl.when(number.str.contains(_MOBILE))
            .then(pl.lit("mobile"))
            .when(number.str.contains(_IDENTITY) & _identity_checks(number))
            .then(pl.lit("identity_card"))
            .when(number.str.contains(_CARD) & _luhn_checks(number))
            .then(pl.lit("bank_card"))
            .alias("kind")
        )
        .drop_nulls("kind")
    )


def _digit(number: pl.Expr, place: int) -> pl.Expr:
    return number.str.slice(place, 1).cast(pl.Int32, strict=False)


def _identity_checks(number: pl.Expr) -> pl.Expr:
    """GB 11643-1999, after ISO 7064 MOD 11-2: the last place is 10, written X, or a digit."""
    weighted = pl.sum_horizontal(_digit(number, place) * (2 ** (17 - place) % 11) for place in range(17))
    last = pl.when(number.str.ends_with("X") | number.str.ends_with("x")).then(10).otherwise(_digit(number, 17))
    return (weighted + last) % 11 == 1


def _luhn_checks(number: pl.Expr) -> pl.Expr:
    """Luhn's: from the right, every second digit doubled and its digits added; the sum ends in 0."""
    padded = number.str.zfill(20)
    once = pl.sum_horizontal(_digit(padded, place) for place in range(1, 20, 2))
    twice = pl.sum_horizontal(_digit(padded, place) * 2 - 9 * (_digit(padded, place) > 4) for place in range(0, 20, 2))
    return (once + twice) % 10 == 0
