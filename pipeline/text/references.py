"""Character references of HTML that stand for half a character."""

import re

_PAIR = re.compile(r"&#(\d{5}|[xX][dD][89abAB][0-9a-fA-F]{2});&#(\d{5}|[xX][dD][c-fC-F][0-9a-fA-F]{2});")


def join_halves(text: str) -> str:
    """Replace two references to the halves of a surrogate pair, `&#55357;&#56832;`, with the character, 😀.

    Java and JavaScript escape emoji so. In HTML each half alone is a replacement character.
    """
    return _PAIR.sub(_join, text) if "&#" in text else text


def _join(pair: re.Match[str]) -> str:
    high, low = (int(half[1:], 16) if half[0] in "xX" else int(half) for half in pair.groups())
    if 0xD800 <= high <= 0xDBFF and 0xDC00 <= low <= 0xDFFF:
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    return pair[0]
