"""Character encodings: what their names mean, how they are decoded, and which of them a text is in.

All readers of text decode here. Chinese encodings are read as browsers read them: each as the largest one that contains
it, with the signs that Windows added.
"""

import codecs
import re
from functools import cache

import charset_normalizer
import numpy as np
import polars as pl
import pyarrow as pa

DAMAGED_SHARE = 0.1
"""Chosen here: an encoding in which more than this share of the non-ASCII characters is undecodable is wrong."""

SAMPLE = 4 << 20
"""Chosen here: bytes of a file from which its encoding is told."""

CERTAIN = 16
"""Chosen here: this many characters valid in UTF-8 are not chance; 56,000 Chinese texts began with at most 7
in GB18030, and 2 in Big5."""

CHINESE = ("gb18030", "big5")
"""The encodings of Chinese other than Unicode's, each with all that it contains."""

_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "cp950": "big5",
    "big5hkscs": "big5",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
"""The encodings that browsers use in place of declared ones (WHATWG Encoding Standard, section 4.2)."""

_EURO = {"gb18030": b"\x80", "big5hkscs": b"\xa3\xe1"}
"""The euro sign in cp936 and cp950; Python's codecs lack it."""

_SIGNS_OF_BIG5 = str.maketrans("•､‾∼♁☉¥¢£", "‧﹑¯～⊕⊙￥￠￡")
"""Signs that Windows and browsers read otherwise than Python's big5hkscs; each has one code there."""

_FOREIGN = ["cp932", "euc_jp", "cp949", "cp1252", "cp1251", "koi8_r", "cp874"]
"""Encodings of other languages that a file can be said to be in: told, not read, since a guess may be wrong."""

_COMMON = re.compile(
    "[的一是不了在有人我他這这個个們们中来來上大为為和国國地到以說说時时要就出會会可也你對对生能而子那得于於着于下自之年过過發发後后"
    "作里用道行所然家種种事成方多經经麼么去法學学如都同現现當当沒没動动面起看定天分還还進进好小部其些主樣样理心本前開开但因從从想實实"
    "，。、？！：]"
)
_CLEARLY = 5  # lead in common characters that decides; each of 300 Chinese texts of 50 characters had it
_COMMON_SHARE = 0.1  # 1% of Chinese texts of 50 characters have less, and none in 3,000 of 200 has less than 0.095
_ORDINARY_SHARE = 0.25  # each of 12,787 texts of 16 characters that were Chinese throughout had more
_WIDE_SHARE = 0.2  # 99% of 7,810 Chinese texts of 200 characters have more, half of them 0.5
_ASCII = re.compile("[\t\n\r -~]")
_CHINESE_OR_ASCII = re.compile("[\t\n\r -~\u2010-\u2026\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
_LONGER = re.compile("[\u0800-\U0010ffff]")  # characters of three bytes or more in UTF-8
_FEW = 65_536  # bytes of lines that are not ASCII, by which Chinese encodings are compared


def find_codec(label: str) -> str | None:
    """Find the encoding that is read where `label` is declared; None if the label is unknown."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    return _SUPERSETS.get(name, name)


def decode(data: bytes, encoding: str, errors: str = "conan.replace") -> str:
    """Decode bytes as browsers do; a handler of `errors` must leave to `rescue` what Python's codecs lack.

    Raises:
        LookupError: the encoding is unknown, or not one of text.
    """
    codec = "big5hkscs" if encoding == "big5" else encoding
    if errors == "conan.replace" and codec not in _EURO:
        errors = "replace"  # the same, and faster
    text = data.decode(codec, errors)
    return text.translate(_SIGNS_OF_BIG5) if encoding == "big5" else text


def rescue(error: UnicodeError) -> tuple[str, int] | None:
    """Return the character at an error that only Python's codec doesn't know, and where to continue; else None."""
    assert isinstance(error, UnicodeDecodeError)
    euro = _EURO.get(error.encoding)
    return ("€", error.start + len(euro)) if euro and error.object.startswith(euro, error.start) else None


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return rescue(error) or ("\ufffd", error.end)


def _raise(error: UnicodeError) -> tuple[str, int]:
    rescued = rescue(error)
    if rescued is None:
        raise error
    return rescued


codecs.register_error("conan.replace", _replace)
codecs.register_error("conan.strict", _raise)


def find_fault(data: bytes, encoding: str) -> int | None:
    """Return the offset of the first undecodable bytes, or None if all of the data decodes."""
    try:
        decode(data, encoding, "conan.strict")
    except UnicodeDecodeError as error:
        return error.start
    return None


def measure_damage(text: str) -> float:
    """Compute the share of replacement characters among a text's non-ASCII characters."""
    foreign = _count_foreign(text)
    return text.count("\ufffd") / foreign if foreign else 0.0


def _count_foreign(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))


def detect(data: bytes) -> str:
    """Detect the encoding of Chinese text: see `judge`."""
    return judge(data)[0]


def judge(data: bytes) -> tuple[str, bool]:
    """Detect the encoding of Chinese text, and say whether the text is long enough to be sure of it.

    It is UTF-8 if that fits, UTF-16, or the likelier of GB18030 and Big5. Text in which neither gives Chinese is in
    another encoding; where there is too little to name that one, it is taken for damaged UTF-8.
    """
    head = data[:SAMPLE]
    if b"\0" in head and (wide := find_utf_16(head)):
        return wide, True
    text = head.decode("utf-8", "replace")
    if is_utf_8(head):
        return "utf-8", not _is_valid_by_chance(text)
    few = b"\n".join(line for line in head.split(b"\n") if not line.isascii())[:_FEW]
    texts = {encoding: decode(few, encoding) for encoding in CHINESE}
    if measure_damage(text) <= max(DAMAGED_SHARE, min(map(measure_damage, texts.values()))) or _begins_as_utf_8(head):
        return "utf-8", True
    common = {encoding: len(_COMMON.findall(text)) for encoding, text in texts.items()}
    if len(_COMMON.findall(few.decode("utf-8", "replace"))) - max(common.values()) >= _CLEARLY:
        return "utf-8", True
    ordinary = {encoding: _count_ordinary(text, encoding) for encoding, text in texts.items()}
    is_clear = abs(common["gb18030"] - common["big5"]) >= _CLEARLY  # bytes broken in one may be valid in the other
    fits = common if is_clear else {one: ordinary[one] + common[one] - texts[one].count("\ufffd") for one in CHINESE}
    likely = max(CHINESE, key=fits.__getitem__)
    if _is_chinese(texts[likely], common[likely], ordinary[likely]):
        return likely, is_clear
    found = _name_foreign(few, likely)
    return found, is_clear if found == likely else _count_foreign(texts[likely]) >= 3 * CERTAIN


def _is_chinese(text: str, common: int, ordinary: int) -> bool:
    """Whether text has as many common and ordinary characters as Chinese; if it is short, as many ordinary ones."""
    foreign, kinds = _count_foreign(text), len({character for character in text if character > "\x7f"})
    return ordinary >= _ORDINARY_SHARE * foreign and (kinds < CERTAIN or common >= _COMMON_SHARE * foreign)


def _name_foreign(data: bytes, likely: str) -> str:
    """Name the encoding of text that does not seem Chinese in the likely encoding.

    It is that one if no other fits better but most of its characters are ordinary, else UTF-8.
    """
    text = decode(data, likely)
    few_ordinary = _count_ordinary(text, likely) < _ORDINARY_SHARE * _count_foreign(text)
    if few_ordinary and _count_foreign(text) <= 2:
        return "utf-8"
    best = charset_normalizer.from_bytes(data, cp_isolation=[*_FOREIGN, "gb18030", "big5hkscs"]).best()
    if best and best.encoding in _FOREIGN:
        return best.encoding
    return "utf-8" if few_ordinary else likely


def find_utf_16(data: bytes) -> str | None:
    """Tell UTF-16 without a byte order mark: pairs of bytes of other encodings rarely make common characters."""
    for encoding in ("utf-16-le", "utf-16-be"):
        text = data[:_FEW].decode(encoding, "replace")
        common = len(_ASCII.findall(text)) + len(_COMMON.findall(text))
        if common > _WIDE_SHARE * len(text) and len(_CHINESE_OR_ASCII.findall(text)) > (1 - DAMAGED_SHARE) * len(text):
            return encoding
    return None


def _is_valid_by_chance(text: str) -> bool:
    """Whether text decoded from UTF-8 may be Chinese in another encoding: only letters of two bytes, and few."""
    return not _LONGER.search(text) and 0 < _count_foreign(text) < CERTAIN


def is_utf_8(data: bytes) -> bool:
    """Whether bytes are valid UTF-8; ten times as fast as decoding them in Python."""
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    one = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    try:
        pl.Series(one).cast(pl.String)
    except pl.exceptions.PolarsError:
        return False
    return True


def is_surely_utf_8(data: bytes) -> bool:
    """Whether all of a text is valid UTF-8, and not by chance."""
    return find_fault(data, "utf-8") is None and _begins_as_utf_8(data)


def _begins_as_utf_8(data: bytes) -> bool:
    """Whether more characters before the first fault are valid UTF-8 than chance explains."""
    try:
        begin = data.decode()
    except UnicodeDecodeError as error:
        begin = data[: error.start].decode()
    return _count_foreign(begin) >= CERTAIN


def _count_ordinary(text: str, encoding: str) -> int:
    """Count the punctuation and characters of the first level, in which the standards put the frequent ones."""
    return sum(map(_list_ordinary(encoding).__contains__, text))


@cache
def _list_ordinary(encoding: str) -> frozenset[str]:
    leads = {"gb18030": (0xA1, 0xA3, *range(0xB0, 0xD8)), "big5": range(0xA1, 0xC7)}[encoding]
    pairs = (bytes([lead, trail]) for lead in leads for trail in range(0xA1 if encoding == "gb18030" else 0x40, 0xFF))
    return frozenset("".join(pair.decode(encoding, "ignore") for pair in pairs))
