"""The key by which texts are compared: their letters and digits, and the signs that change what a text says.

What differs between copies of a text is dropped: punctuation, white space, width, case. The signs without which `-5`
would be `5`, `1.5` would be `15` and `C++` would be `C#` are kept. They are judged by the characters next to them; a
word is made of Latin, Greek or Cyrillic letters and of digits:

| sign | is kept | so these differ |
|---|---|---|
| symbols and emoji (Unicode's S: `+ = < × ° $`) and `% ‰ & @ ′ ″` | always | `C++` and `C`, `50%` and `50` |
| `.` | before a word | `.NET` and `NET`, `1.5` and `15` |
| `-` and `#` | before or after a word | `-5` and `5`, `A-` and `A`, `C#` and `C` |
| `/ \\ : * _ |` and the dash of a range (`3—5`, `3～5`: both become `3-5`) | within a word | `1/2` and `12` |
| anything else | never; between digits it becomes a space | `1、2` and `12` |

Between digits, spaces around a sign don't matter: `6 / 3` is `6/3`, and not `6 * 3`. `...`, `--` and `##` are
punctuation, and so are backquotes and lines drawn of characters. `1,000` is `1000`.
"""

import unicodedata
from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .kernels import Bytes, Offsets, Texts, code_point, inner_kernel, kernel, utf8_buffers

TABLED = 0x40000
"""The number of code points in the tables. Beyond them are only private use, tags and variation selectors."""
NO_ENTRY = np.uint32(0xFFFFFFFF)
"""Marks a character that can't be looked up; its text is folded by Polars first."""

# The kinds of characters. The first four don't depend on their neighbours; _WIDE is kept, and has four bytes of UTF-8.
_DROPPED, _SPACE, _OTHER, _WORD, _WIDE, _DIGIT, _POINT, _HYPHEN, _HASH, _JOINER, _COMMA = range(11)

_FIRST_SPECIAL = np.uint32(_WIDE << 26)

_SIGNS = (
    {".": (".", _POINT), "#": ("#", _HASH), ",": (",", _COMMA), "`": ("`", _DROPPED)}
    | dict.fromkeys("-‐‑‒–−", ("-", _HYPHEN))
    | dict.fromkeys("~∼〜—―", ("-", _JOINER))
    | dict.fromkeys("/⁄∕", ("/", _JOINER))
    | dict.fromkeys(":∶", (":", _JOINER))
    | {sign: (sign, _JOINER) for sign in "\\*_|"}
)
"""How a sign is written, and its kind."""
_EXPONENTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
"""What `fold` does to these depends on the character before."""
_KEPT = r"[\p{L}\p{M}\p{N}\p{S}%‰&@′″]"
_NEVER_KEPT = r"[\x{fe00}-\x{fe0f}\x{180b}-\x{180f}\x{20e3}\x{2500}-\x{257f}\x{fffc}\x{fffd}]"
"""Variation selectors, the frame of a keycap, box drawing, and the marks of what is missing."""


def match_key(column: pl.Expr) -> pl.Expr:
    """Return the key by which texts are compared. A text of which nothing is kept is its own key. Null stays null."""
    return column.map_batches(_match_series, return_dtype=pl.String, is_elementwise=True)


def match_keys(texts: Texts) -> pa.LargeStringArray:
    """Compute the keys of a string column; that of a null is empty."""
    offsets, data = utf8_buffers(texts)
    keys, skipped = _keys(offsets, data, folding_table(), offsets, data)
    if len(skipped):
        chosen = texts.cast(pa.large_string()).take(pa.array(skipped))  # `take` does not support string views
        folded = pl.DataFrame({"text": chosen}).select(fold(pl.col("text"))).to_series().to_arrow()
        by_polars, _ = _keys(*utf8_buffers(folded), _table(), *utf8_buffers(chosen))
        mask = np.zeros(len(texts), bool)
        mask[skipped] = True
        keys = pc.replace_with_mask(keys, pa.array(mask), by_polars)
    return keys


def fold(column: pl.Expr) -> pl.Expr:
    """Apply NFKC and lower case to texts, except that `10²` becomes `10^2` and an ellipsis a space."""
    exponents = column.str.replace_all(f"([0-9])([{_EXPONENTS}])", "$1^$2")
    return exponents.str.replace_all("[…‥]", " ").str.normalize("NFKC").str.to_lowercase()


def _match_series(texts: pl.Series) -> pl.Series:
    keys = pl.Series(texts.name, match_keys(texts.to_arrow()), dtype=pl.String)
    return keys.zip_with(texts.is_not_null(), pl.Series([None], dtype=pl.String))


def _keys(
    offsets: Offsets, data: Bytes, table: NDArray[np.uint32], own_offsets: Offsets, own_data: Bytes
) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """Return the keys, and the rows that the table is not enough for; see `_write_keys`."""
    ends, written, skipped = _write_keys(offsets, data, table, own_offsets, own_data)
    return pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(written)), skipped


@cache
def _table() -> NDArray[np.uint32]:
    """Build the table for folded texts: each code point's kind, and what is written if it is kept.

    The lowest three bytes of an entry are UTF-8. Then follow two bits with their number, and the kind.
    """
    points = np.delete(np.arange(TABLED), slice(0xD800, 0xE000))
    text = pl.col("text")
    kind = (
        pl.when(text.str.contains(r"\p{Zs}"))
        .then(_SPACE)
        .when(text.str.contains(_NEVER_KEPT) | ~text.str.contains(_KEPT))
        .then(_DROPPED)
        .when(text.str.len_bytes() == 4)
        .then(_WIDE)
        .when(text.str.contains(r"\p{Nd}"))
        .then(_DIGIT)
        .when(text.str.contains(r"\p{L}") & text.str.contains(r"[\p{Latin}\p{Greek}\p{Cyrillic}]"))
        .then(_WORD)
        .otherwise(_OTHER)
    )
    kinds = pl.DataFrame({"text": [chr(point) for point in points]}).select("text", kind=kind.cast(pl.UInt32))
    table = np.full(TABLED, NO_ENTRY, np.uint32)
    table[points] = _entries(kinds["text"], kinds["kind"].to_numpy())
    for sign, (written, number) in _SIGNS.items():
        table[ord(sign)] = _entries(pl.Series([written]), np.array([number], np.uint32))[0]
    return table


@cache
def folding_table() -> NDArray[np.uint32]:
    """Build the table for other texts. An entry is that of the character to which one folds, or made of several."""
    plain = _table()
    assigned = [chr(point) for point in range(TABLED) if unicodedata.category(chr(point)) not in ("Cn", "Cs")]
    composing = _composing(assigned)
    independent = [character for character in assigned if _is_independent(character, composing)]
    frame = pl.DataFrame({"text": independent}).with_columns(folded=fold(pl.col("text")))
    same = pl.col("text") == pl.col("folded")
    table = np.full(TABLED, NO_ENTRY, np.uint32)
    points = [ord(character) for character in frame.filter(same)["text"]]
    table[points] = plain[points]
    size = pl.col("folded").str.len_bytes()
    for character, folded in frame.filter(~same & (size <= 3) & (size <= pl.col("text").str.len_bytes())).iter_rows():
        entries = plain[[ord(each) for each in folded]]
        kinds = entries >> np.uint32(26)
        if len(folded) == 1:
            table[ord(character)] = entries[0]
        elif kinds[0] in (_DROPPED, _OTHER, _WORD, _DIGIT) and (kinds == kinds[0]).all():
            table[ord(character)] = _entries(pl.Series([folded]), kinds[:1])[0]
    return table


def _entries(written: pl.Series, kinds: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Make a table's entries from what is written for each character and its kind."""
    offsets, data = utf8_buffers(written.to_arrow())
    sizes = np.where(kinds <= _SPACE, 0, np.minimum(np.diff(offsets), 3)).astype(np.uint32)
    entries = kinds << np.uint32(26) | sizes << np.uint32(24)
    for i in range(3):
        places = np.minimum(offsets[:-1] + i, len(data) - 1)
        entries |= np.where(i < sizes, data[places], 0).astype(np.uint32) << np.uint32(8 * i)
    return entries


def _is_independent(character: str, composing: set[str]) -> bool:
    """Return whether what a character folds to is the same after and before every other."""
    parts = unicodedata.normalize("NFKD", character)
    return not (parts[0] in composing or unicodedata.combining(parts[0]) or "Σ" in parts or character in _EXPONENTS)


def _composing(characters: list[str]) -> set[str]:
    """Return the characters that NFKC may compose with the one before: jamo, second halves of canonical pairs."""
    pairs = (unicodedata.decomposition(character).split() for character in characters)
    return {chr(point) for point in range(0x1160, 0x1200)} | {
        chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")
    }


@kernel
def _write_keys(
    offsets: Offsets, data: Bytes, table: NDArray[np.uint32], own_offsets: Offsets, own_data: Bytes
) -> tuple[Offsets, Bytes, NDArray[np.int64]]:
    """Return (offsets, data, skipped rows) of the keys; the key of a row with a character without entry is empty.

    A text of which nothing is kept has its `own` text as its key.
    """
    rows = len(offsets) - 1
    ends = np.zeros(rows + 1, np.int64)
    written = np.empty(offsets[rows] - offsets[0] + own_offsets[rows] - own_offsets[0] + 4, np.uint8)
    skipped = np.empty(rows, np.int64)
    skips = size = 0
    for row in range(rows):
        start, at, end = size, offsets[row], offsets[row + 1]
        before = np.uint32(0)  # the entry of the character before
        digit_end = digit_size = -1  # of the last digit: where it ends here and in the key
        while at < end:
            point, width = code_point(data, at)
            entry = table[np.uint64(point)] if point < TABLED else np.uint32(0)
            length = int(np.int64(entry >> np.uint32(24) & np.uint32(3)))
            if entry >= _FIRST_SPECIAL:
                if entry == NO_ENTRY:
                    break
                kind = _kind(entry)
                after = at + width
                if kind == _DIGIT:
                    if size == digit_size and at != digit_end:
                        written[size] = _between_digits(data, digit_end, at, table)
                        size += 1
                    digit_end, digit_size = after, size + length
                elif kind == _WIDE:
                    written[size + 3] = data[after - 1]
                    length = 4
                elif not _is_kept(kind, _kind(before), _kind_at(data, after, end, table)):
                    length = 0
                    if kind == _COMMA and _kind(before) == _DIGIT and _is_thousands(data, after, end, table):
                        digit_end = after
            written[size] = entry & np.uint32(0xFF)
            written[size + 1] = entry >> np.uint32(8) & np.uint32(0xFF)
            written[size + 2] = entry >> np.uint32(16) & np.uint32(0xFF)
            size += length
            before = entry
            at += width
        if at < end:
            skipped[skips] = row
            skips += 1
            size = start
        elif size == start:
            for i in range(own_offsets[row], own_offsets[row + 1]):
                written[size] = own_data[i]
                size += 1
        ends[row + 1] = size
    return ends, written, skipped[:skips]


@inner_kernel
def _is_kept(kind: int, before: int, after: int) -> bool:
    """Return whether a sign is kept, by its kind and those of the characters before and after it."""
    word_before, word_after = before in (_WORD, _DIGIT), after in (_WORD, _DIGIT)
    if kind == _POINT:
        return word_after and before != _POINT
    if kind == _JOINER:
        return word_before and word_after
    return kind != _COMMA and (word_before or word_after) and kind != before and kind != after


@inner_kernel
def _between_digits(data: Bytes, at: int, end: int, table: NDArray[np.uint32]) -> np.uint32:
    """Return what is written between two digits if nothing from `at` to `end` was: a sign alone, otherwise a space."""
    sign = np.uint32(0)
    while at < end:
        point, width = code_point(data, at)
        entry = table[np.uint64(point)] if point < TABLED else np.uint32(0)
        kind = _kind(entry)
        if kind in (_HYPHEN, _JOINER) and not sign:
            sign = entry & np.uint32(0xFF)
        elif kind != _SPACE:
            return np.uint32(0x20)
        at += width
    return sign or np.uint32(0x20)


@inner_kernel
def _is_thousands(data: Bytes, at: int, end: int, table: NDArray[np.uint32]) -> bool:
    """Return whether exactly three digits follow."""
    digits = 0
    while digits < 4 and _kind_at(data, at, end, table) == _DIGIT:
        at += code_point(data, at)[1]
        digits += 1
    return digits == 3


@inner_kernel
def _kind(entry: np.uint32) -> int:
    return int(entry >> np.uint32(26))


@inner_kernel
def _kind_at(data: Bytes, at: int, end: int, table: NDArray[np.uint32]) -> int:
    """Return the kind of the character at data[at]; at the end of the text, that of one that is dropped."""
    if at == end:
        return _DROPPED
    point, _ = code_point(data, at)
    return _kind(table[point]) if point < TABLED else _DROPPED


@inner_kernel
def character_key(point: np.uint32 | int, table: NDArray[np.uint32]) -> np.uint32:
    """Return a key of one character in the folding table, whatever its neighbours; 0 for signs that may be dropped.

    A character that can't be looked up is its own key, with a bit that no other key has.
    """
    entry = table[np.uint64(point)] if point < TABLED else NO_ENTRY
    kind = _kind(entry)
    if entry == NO_ENTRY or kind == _WIDE:
        return np.uint32(point) | np.uint32(1 << 31)
    return entry & np.uint32(0xFFFFFF) if kind in (_OTHER, _WORD, _DIGIT) else np.uint32(0)
