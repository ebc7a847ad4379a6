"""Normalise texts, as ingest does once for all later stages."""

import html
from collections.abc import Callable
from functools import cache
from html.entities import name2codepoint
from itertools import count

import polars as pl

from ...schemas.errors import MissingExtraError
from .glyphs import ANY_GLYPH, GLYPHS, LIST_MARK
from .kernel_loading import kernels_pay
from .references import join_halves

DEEPEST = 16
"""The number of passes in which `normalise` decodes markup within markup."""

_CALL = 1 << 20
"""Chosen here: bytes of text that `simplify` converts per call."""

_BETWEEN = "\x1f"
"""Separates the texts of a call. `normalise` removes it from every text, and opencc has no phrase that contains it."""

_ENTITIES = {f"&{name};": chr(point) for name, point in name2codepoint.items() if name != "amp"}
_ENTITIES |= {"&apos;": "'"}
"""HTML 4's named entities. Pages don't use the 2,000 others of HTML 5, and some look like C code (`&in;`)."""

_NUMERIC_ENTITY = r"&#(?:[0-9]{1,7}|[xX][0-9a-fA-F]{1,6});"
_HALF = "&#(?:5[5-7]|[xX][dD])"  # of a surrogate pair

_BLOCK_TAGS = (
    "article aside blockquote body br center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 head header hr html iframe li link main meta nav noscript ol option p pre section table tbody tfoot "
    "thead title tr ul"
)
_INLINE_TAGS = (
    "a abbr audio b big button cite code col colgroup del em embed font i img input ins kbd label mark q s "
    "small span strike strong sub sup svg textarea tt u video wbr rb rp ruby"
)
_CELL_TAGS = "td th rt"  # become a space, which keeps two cells, or a word and its gloss, apart
TAG_NAMES = frozenset(f"{_BLOCK_TAGS} {_INLINE_TAGS} {_CELL_TAGS} script style".split())
"""The names of tags that `normalise` removes, in lower case; in text, others are code, as in `vector<int>`."""

# An attribute has a value, or is one of the few that need none: so `a<b and c>d` is not a tag.
_ATTRIBUTES = (
    r"""(?:\s+(?:[a-zA-Z:_-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
    r"""|async|defer|disabled|checked|hidden|nowrap|noshade|controls|selected|allowfullscreen))*\s*/?"""
)


def _tags(names: str) -> str:
    """Return the pattern of opening and closing tags with these names (separated by spaces), in lower or upper case.

    Capitalised names don't match, since `List<Object>` and `<Button>` are code.
    """
    longest_first = sorted(names.split(), key=len, reverse=True)
    return f"</?(?:{'|'.join(longest_first)}|{'|'.join(longest_first).upper()}){_ATTRIBUTES}>"


_BLOCK = _tags(_BLOCK_TAGS)
_INLINE = _tags(_INLINE_TAGS)
_CELL = _tags(_CELL_TAGS)
_UNSEEN = r"(?s)<!--.*?-->|<!(?:DOCTYPE|doctype)[^<>]*>" + "".join(
    rf"|<{name}{_ATTRIBUTES}>.*?</{name}\s*>" for name in ("script", "SCRIPT", "style", "STYLE")
)

# One-letter generics in code look like tags: `Box<A>` is matched as a whole and put back.
_GENERIC = r"[A-Za-z0-9_]<[abiqsuABIPQSU]>"

_LINE_BREAK = r"\r\n?|[\x0b\x0c\x{85}\x{2028}\x{2029}]"
_INVISIBLE = (
    r"\x1b\[[0-9;?]*[A-Za-z]|"  # colours of a terminal
    r"[\x00-\x08\x0e-\x1f\x7f-\x{9f}\x{ad}\x{61c}\x{180e}\x{200b}-\x{200f}\x{202a}-\x{202e}\x{2060}-\x{206f}"
    r"\x{feff}\x{fff9}-\x{fffb}\x{e0000}-\x{e007f}]"
)
"""Control characters and sequences, soft hyphen, zero-width characters, bidi marks, byte-order mark, tag characters."""

_FULL_WIDTH = [chr(0xFEE0 + ord(character)) for character in "0123456789"] + [
    chr(0xFEE0 + ord(first) + step) for first in "Aa" for step in range(26)
]
_HALF_WIDTH = [chr(ord(character) - 0xFEE0) for character in _FULL_WIDTH]

_ORDINARY = (
    r"\n\x20-\x7e\x{a1}-\x{ac}\x{ae}-\x{2ff}"  # Latin
    r"\x{400}-\x{482}\x{48a}-\x{52f}"  # Cyrillic
    r"\x{2010}-\x{2027}\x{2030}-\x{205e}\x{2190}-\x{2328}\x{2460}-\x{27bf}"  # punctuation, symbols
    r"\x{3001}-\x{3029}\x{3041}-\x{3096}\x{309b}-\x{30ff}\x{3400}-\x{4dbf}\x{4e00}-\x{9fff}\x{ac00}-\x{d7a3}"
    r"\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff20}\x{ff3b}-\x{ff40}\x{ff5b}-\x{ff65}\x{fe0f}\x{1f300}-\x{1faff}"
)
"""Most characters of Chinese texts; no step changes them, and NFC composes none with the one before it."""
_UNUSUAL = f"[^{_ORDINARY}]"
_OTHER_BLANK = r"[^\S\n ]"
_LOOSE = rf"{_OTHER_BLANK}|  | \n|\n |\n{{3}}|\A[ \n]|[ \n]\z"
"""White space that isn't tidy: blanks other than a space, runs, spaces at a line break, any at either end."""
_CHANGEABLE = f"[&<]|{_UNUSUAL}|{_LOOSE}"
"""Is found in every text that `normalise` changes: 3 % of 300,000 Chinese texts, which hold 30 % of their bytes."""


def normalise(column: pl.Expr) -> pl.Expr:
    """Normalise text, as ingest does once for every text it reads.

    - The text becomes NFC.
    - HTML entities are decoded: HTML 4's named ones and numeric ones, with their semicolon.
    - HTML tags (of a list of names) are removed: a block tag becomes a line break, a cell a space, an inline tag
      nothing. Scripts, styles and comments are removed with their content. `a < b and c > d`, `List<String>` and
      `vector<int>` stay.
    - Line breaks of every kind become `\\n`. Control, zero-width, bidi and other invisible characters are removed, and
      the colours of a terminal.
    - Full-width letters and digits become ASCII. Chinese punctuation is kept.
    - Radicals become the ideographs that they look like (⽂ → 文), private-use characters what `glyphs` knows of them.
      A glyph of a symbol font that begins a line becomes `•`. Other private-use characters stay.
    - Runs of other white space become one space, and nothing at the ends of lines. Three or more line breaks become
      two.

    Passes are repeated until nothing changes, since one may decode markup for the next (`&amp;lt;br&amp;gt;`). The
    result is therefore a fixed point: normalising it again changes nothing. The price is that tags escaped for display
    are removed as well. A text nested deeper than DEEPEST, which nobody writes by accident, loses every `&` and `<`.
    Null stays null.
    """
    return column.map_batches(_until_stable, return_dtype=pl.String, is_elementwise=True)


def simplify(column: pl.Expr) -> pl.Expr:
    """Convert normalised text from Traditional to Simplified Chinese by phrases (opencc's `t2s`). Null stays null.

    Raises:
        MissingExtraError: opencc is not installed.
    """
    convert = _traditional_to_simplified()
    return column.map_batches(lambda texts: _converted(texts, convert), return_dtype=pl.String, is_elementwise=True)


def _until_stable(texts: pl.Series) -> pl.Series:
    """Apply passes until no text changes; each pass handles only the texts that the previous one changed."""
    texts = texts.rename("text")
    found = _find_changeable(texts)
    rows, pending = found.arg_true(), texts.filter(found)
    for depth in count():
        if not len(pending):
            break
        passed = _one_pass(pending if depth < DEEPEST else pending.str.replace_all("[&<]", ""))
        texts = texts.scatter(rows, passed)
        changed = (passed != pending) & passed.str.contains(_CHANGEABLE)
        rows, pending = rows.filter(changed), passed.filter(changed)
    return texts


def _find_changeable(texts: pl.Series) -> pl.Series:
    """Tell which texts contain _CHANGEABLE; the kernel is six times as fast as the pattern."""
    if not kernels_pay(texts):
        return texts.str.contains(_CHANGEABLE)
    from .ordinary import find_changeable

    return find_changeable(texts, f"[&<]|{_UNUSUAL}|{_OTHER_BLANK}")


def _one_pass(texts: pl.Series) -> pl.Series:
    text = pl.col("text").str
    texts = _change(texts, _UNUSUAL, text.normalize("NFC"))
    texts = _change(texts, "&amp;", text.replace_all("&(?:amp;)+", "&"))
    texts = _change(texts, _HALF, pl.col("text").map_elements(join_halves, pl.String))
    entities = _ENTITIES | _numeric_entities(texts)
    decoded = text.replace_many(list(entities), list(entities.values()))
    texts = _change(texts, "&", decoded)
    texts = _change(
        texts,
        "<",
        text.replace_all(_UNSEEN, "")
        .str.replace_all(_BLOCK, "\n")
        .str.replace_all(_CELL, " ")
        .str.replace_all(r"<(?:sup|SUP)>\s*([-−–+]?[0-9])", "^$1")  # 10<sup>6</sup> is not 106
        .str.replace_all(f"({_GENERIC})|{_INLINE}", "$1"),
    )
    texts = _change(
        texts,
        _UNUSUAL,
        text.replace_all(_LINE_BREAK, "\n").str.replace_all(_INVISIBLE, "").str.replace_many(_FULL_WIDTH, _HALF_WIDTH),
    )
    known = text.replace_many(list(GLYPHS), list(GLYPHS.values())).str.replace_all(LIST_MARK, "${1}•")
    texts = _change(texts, ANY_GLYPH, known)
    return _change(
        texts,
        _LOOSE,
        text.replace_all(r"[^\S\n]{2,}|[^\S\n ]", " ")
        .str.replace_all(r" \n ?|\n ", "\n")
        .str.replace_all(r"\n{3,}", "\n\n")
        .str.strip_chars(),
    )


def _change(texts: pl.Series, pattern: str, step: pl.Expr) -> pl.Series:
    """Apply a step to the texts that contain the pattern, which are all that it can change: few, and it is slow."""
    found = texts.str.contains(pattern)
    if not found.any():
        return texts
    changed = texts.filter(found).to_frame().select(step).to_series()
    return texts.clone().scatter(found.arg_true(), changed)


def _numeric_entities(texts: pl.Series) -> dict[str, str]:
    """Map each numeric entity that occurs to its character, by HTML's table (&#150; is an en dash)."""
    found = texts.str.extract_all(_NUMERIC_ENTITY).explode().drop_nulls().unique()
    return {entity: html.unescape(entity) for entity in found.sort()}


@cache
def _traditional_to_simplified() -> Callable[[str], str]:
    try:
        import opencc
    except ImportError as error:
        raise MissingExtraError("simplify: true", "zh") from error
    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert


def _converted(texts: pl.Series, convert: Callable[[str], str]) -> pl.Series:
    """Convert the texts that contain a Han character, many per call: a call for each takes five times as long."""
    rows = texts.str.contains(r"\p{Han}").fill_null(False).arg_true()
    chinese = texts.gather(rows)
    calls = chinese.str.len_bytes().cum_sum() // _CALL
    parts = [pl.Series([], dtype=pl.String)]
    for call in pl.DataFrame({"text": chinese, "call": calls}).partition_by("call", maintain_order=True):
        found = convert(_BETWEEN.join(call["text"])).split(_BETWEEN)
        if len(found) != call.height:  # one contains _BETWEEN, as it was not normalised
            found = [convert(text) for text in call["text"]]
        parts.append(pl.Series(found))
    return texts.clone().scatter(rows, pl.concat(parts))
