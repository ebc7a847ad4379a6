"""Find mobile, identity card and bank card numbers, however their digits are grouped.

A token is a run of groups of digits with the characters around it. Every series of whole groups in a run may be a
number. It is one if its digits pass the checks of a kind and its grouping is usual; an unusual grouping, such as
138-001-38000, must also have no neighbours, because dates, prices and tables are groups of digits, too.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

# Patterns of tokens, in which characters are as people write them.
_FULL_WIDTH = "０１２３４５６７８９"
_DIGIT = "[0-9０-９]"
_SPACE = r"\t\p{Zs}\x{200b}-\x{200d}\x{2060}\x{feff}"  # `normalise` removes those without width
_DASH = "‐-―−⁃﹘﹣－-"
_DOT = ".．·•・"
_CLOSING = r")）\]】"
_TEN = "XxＸｘⅩⅹ×"  # the check digit 10 of an identity card; GB 11643 means the Roman numeral
_UNITS = "万亿元块人个只位名年月"  # 13800-138000元 is a range of prices
# Links and hashes stay: one in ten of the ids in them that are as long as a card number passes its check.
_LINK = r"(?:://|www\.|\.(?:com|cn|net|org)/)[!#-;=?-~]*"
_HASH = "[0-9a-f]{32,}|[0-9A-F]{32,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

NUMBERS = (
    rf"{_LINK}|{_HASH}|[A-Za-z_/$¥￥(（\[【]?{_DIGIT}+(?:(?:[A-Za-z_/{_DOT}{_TEN}]|[{_SPACE}{_CLOSING}{_DASH}]{{1,3}}){_DIGIT}+)*"
    rf"(?:[{_SPACE}{_DASH}]{{0,3}}[{_TEN}])?[A-Za-z_/%{_UNITS}]?"
)
"""The tokens that may hold numbers."""
MAYBE_NUMBERS = rf"[0-9](?:[{_DOT}{_SPACE}{_CLOSING}{_DASH}]{{0,3}}[0-9]){{10}}"
"""A fast prefilter: every text with a number in ASCII digits matches."""

# From here on every digit, separator and X is its ASCII character.
_PREFIX = "(?:0|0?86|0086)"  # the trunk prefix, the country code
MOBILE = f"^{_PREFIX}?1[3-9][0-9]{{9}}$"
_USUAL_MOBILE = rf"^{_PREFIX}?[0-9]{{3}}(?:[0-9]{{8}}|(?:[ -]+|\.|\)[ -]*)[0-9]{{4}}(?:[ -]+|\.)[0-9]{{4}})$"
_UNUSUAL_MOBILE = rf"^{_PREFIX}?1[0-9]{{2,6}}(?:[ )-]+[0-9]{{2,}}){{1,4}}$|^[0-9](?:[ -]+[0-9]){{10}}$"
_DATED = "^19[0-9]{2,}[ -]|^[0-9]{3}[ -]+(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]$"  # 1998-12-12345, 165 20190501

_IDENTITY = "^[1-9][0-9]{5}(?:18|19|20)[0-9]{9}[0-9X]$"
_ANY_IDENTITY = "^[0-9]+(?:[ -]+[0-9]+){0,5}[ -]*X?$|^[0-9](?:[ -]+[0-9]){16}[ -]+[0-9X]$"

# UnionPay, Visa, Mastercard (2221 to 2720 since 2017), American Express, JCB (ISO/IEC 7812 issuer numbers), and cards
# of 19 digits from before UnionPay: of ICBC (9558), ABC (95599), Bank of China (456351) and CCB (436742).
_CARD = (
    "^(?:62[0-9]{14,17}|4[0-9]{15}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    "|3[47][0-9]{13}|35[0-9]{14}|(?:9558[0-9]{2}|95599[0-9]|456351|436742)[0-9]{13})$"
)
_USUAL_CARD = r"^[0-9]{15,19}$|^[0-9]{4}(?:(?:[ -]+|\.)[0-9]{4}){3}(?:(?:[ -]+|\.)[0-9]{1,3})?$"
_UNUSUAL_CARD = "^[0-9]{4,6}(?:[ -]+[0-9]{2,}){1,4}$"  # 62751234-62751235 is two landlines

_MAYBE_NUMBER = "|".join(pattern.strip("^$") for pattern in (MOBILE, _IDENTITY, _CARD))
"""A prefilter of tokens, searched for in their digits and X alone: every token with a number matches."""

_FEWEST_DIGITS, _MOST_DIGITS, _MOST_GROUPS = 11, 19, 18
"""Limits of a number: the digits of an identity card may each be a group of their own."""


def mask_numbers(tokens: pl.Series, masks: Mapping[str, str]) -> pl.DataFrame:
    """Find the tokens that hold numbers: columns `token` and `masked`, where each number is the mask of its kind."""
    tokens = tokens.filter(tokens.str.count_matches(_DIGIT) >= _FEWEST_DIGITS)
    tokens = tokens.filter(~tokens.str.contains(f"^(?:{_LINK}|{_HASH})$"))
    texts = tokens.to_frame("text").select(_to_ascii(pl.col("text"))).to_series()
    likely = texts.str.replace_all("[^0-9X]", "").str.contains(_MAYBE_NUMBER)
    tokens, texts = tokens.filter(likely), texts.filter(likely)
    if tokens.is_empty() or (numbers := _find_kinds(_list_series(_split_into_groups(texts)))).is_empty():
        return pl.DataFrame(schema={"token": pl.String, "masked": pl.String})
    # The longest of the numbers that begin at the same digit, and the first of those that overlap.
    numbers = numbers.sort("row", "start", "stop", descending=[False, False, True])
    numbers = numbers.filter(pl.col("start") >= pl.col("stop").cum_max().shift(1, fill_value=0).over("row"))
    end = pl.col("stop").shift(1, fill_value=0).over("row")
    parts = numbers.with_columns(tokens.gather(numbers["row"]).alias("token")).select(
        "token",
        "stop",
        text=pl.col("token").str.slice(end, pl.col("start") - end) + pl.col("kind").replace_strict(masks, default=None),
    )
    rest = pl.col("token").first().str.slice(pl.col("stop").last())
    return parts.group_by("token").agg(masked=pl.col("text").str.join("") + rest)


def _split_into_groups(texts: pl.Series) -> pl.DataFrame:
    """Split tokens in ASCII into their groups of digits, one row for each; an X is a group of its own.

    `row` is the token's place, `text` the token, and text[start:stop] the group. `before` and `after` are the
    characters around it; `previous` and `following` are the groups next to it.
    """
    row, digits = pl.col("row"), pl.col("digits")
    first, last = row.ne_missing(row.shift(1)), row.ne_missing(row.shift(-1))
    return (
        texts.to_frame("text")
        .lazy()
        .select(pl.row_index("row"), "text")
        .with_columns(group=pl.col("text").str.extract_all("[^0-9X]*(?:[0-9]+|X)"))
        .explode("group")
        .with_columns(
            before=pl.col("group").str.extract("^([^0-9X]*)"),
            digits=pl.col("group").str.extract("([0-9X]+)$"),
            stop=pl.col("group").str.len_chars().cast(pl.Int64).cum_sum().over("row"),
        )
        .with_columns(
            start=pl.col("stop") - digits.str.len_bytes().cast(pl.Int64),
            after=pl.when(last).then(pl.col("text").str.slice(pl.col("stop"))).otherwise(pl.col("before").shift(-1)),
            previous=pl.when(first).then(pl.lit("")).otherwise(digits.shift(1)),
            following=pl.when(last).then(pl.lit("")).otherwise(digits.shift(-1)),
        )
        .collect()
    )


def _to_ascii(text: pl.Expr) -> pl.Expr:
    """Replace digits, separators and X by their ASCII characters, one for one: offsets stay the same."""
    for characters, character in ((_SPACE, " "), (_DASH, "-"), (_DOT, "."), (_CLOSING, ")"), (_TEN, "X")):
        text = text.str.replace_all(f"[{characters}]", character)
    return text.str.replace_many(list(_FULL_WIDTH), list("0123456789"))


def _list_series(groups: pl.DataFrame) -> pl.DataFrame:
    """List every series of up to _MOST_GROUPS groups of a token whose digits begin as those of a number."""
    rows = groups["row"].to_numpy()
    ends = groups["digits"].str.len_bytes().cum_sum().to_numpy()
    begins = np.concatenate([[0], ends[:-1]])
    firsts, sizes = np.arange(groups.height)[:, None], np.arange(_MOST_GROUPS)
    lasts = np.minimum(firsts + sizes, groups.height - 1)
    found = ends[lasts] - begins[firsts]
    whole = (firsts + sizes == lasts) & (rows[lasts] == rows[firsts])
    first, size = np.nonzero(whole & (found >= _FEWEST_DIGITS) & (found <= _MOST_DIGITS))
    series = groups.select("row", "text", "start", "before", "previous")[first].hstack(
        groups.select("stop", "after", "following")[first + size]
    )
    number = pl.col("text").str.slice(pl.col("start"), pl.col("stop") - pl.col("start"))
    digits = number.str.replace_all("[ .)-]", "")
    return series.with_columns(number=number, digits=digits).filter(
        pl.col("digits").str.contains(f"{MOBILE}|{_IDENTITY}|{_CARD}")
    )


def _find_kinds(series: pl.DataFrame) -> pl.DataFrame:
    """Find the series that are numbers: columns `row`, `start`, `stop` and `kind`."""
    number, digits, before, after = (pl.col(name) for name in ("number", "digits", "before", "after"))
    places = _read_digits(series["digits"])
    opened = before.is_in(list("(（[【"))
    bracketed = opened & number.str.contains(r"^[0-9]+\)[^)]*$")  # (138)00138000
    apart = ~number.str.contains(" ")  # a space separates a number from its neighbours, unless it has some itself
    begins = (pl.col("previous") == "") & (opened | (before == ""))
    begins |= pl.col("previous").str.contains(f"^{_PREFIX}$") | (apart & before.str.contains(" "))
    ends = after == ""
    ends |= (pl.col("following") != "") & apart & after.str.contains(" ")
    whole = (after != "") | (pl.col("following") == "")  # no digit right after an X
    alone = begins & ends & whole
    mobile = number.str.contains(_USUAL_MOBILE) | (
        alone & number.str.contains(_UNUSUAL_MOBILE) & ~number.str.contains(_DATED)
    )
    amount = before.is_in(list("$¥￥")) | after.str.contains("^[元%]")
    in_table = (pl.col("previous").str.len_bytes() == 4) | (pl.col("following").str.len_bytes() == 4)
    card = number.str.contains(_USUAL_CARD) & (~in_table | (number == digits)) | (
        alone & number.str.contains(_UNUSUAL_CARD)
    )
    born = digits.str.slice(6, 8).str.to_date("%Y%m%d", strict=False).is_not_null()
    kind = (
        pl.when((before == ".") | (after == "."))  # part of a decimal, a version or an address
        .then(None)
        .when(digits.str.contains(MOBILE) & mobile & ~amount & (bracketed | ~number.str.contains(r"\)")))
        .then(pl.lit("mobile"))
        .when(
            digits.str.contains(_IDENTITY) & number.str.contains(_ANY_IDENTITY) & whole & born & _check_identity(places)
        )
        .then(pl.lit("identity_card"))
        .when(digits.str.contains(_CARD) & card & _check_luhn(places))
        .then(pl.lit("bank_card"))
    )
    start = pl.col("start") - bracketed.cast(pl.Int64)  # the mask also replaces the bracket that opens in front
    return series.select("row", start, "stop", kind=kind).drop_nulls("kind")


def _read_digits(numbers: pl.Series) -> npt.NDArray[np.uint8]:
    """Read the digits of each number, uint8 [numbers, 20]: padded with 0 on the left, 10 for an X."""
    places = "".join(numbers.str.zfill(20)).encode("ascii")
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
