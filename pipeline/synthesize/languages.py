"""The languages in which queries are written, and the scripts by which they are told apart."""

from typing import NamedTuple


class Language(NamedTuple):
    """A language's English name, and a regular expression for one of the characters that a text in it must have."""

    name: str
    script: str


LANGUAGES = {
    "zh": Language("Chinese", r"\p{Han}"),
    "en": Language("English", r"\p{Latin}"),
    "ar": Language("Arabic", r"\p{Arabic}"),
    "bn": Language("Bengali", r"\p{Bengali}"),
    "cs": Language("Czech", r"\p{Latin}"),
    "de": Language("German", r"\p{Latin}"),
    "el": Language("Greek", r"\p{Greek}"),
    "es": Language("Spanish", r"\p{Latin}"),
    "fa": Language("Persian", r"\p{Arabic}"),
    "fi": Language("Finnish", r"\p{Latin}"),
    "fr": Language("French", r"\p{Latin}"),
    "he": Language("Hebrew", r"\p{Hebrew}"),
    "hi": Language("Hindi", r"\p{Devanagari}"),
    "id": Language("Indonesian", r"\p{Latin}"),
    "it": Language("Italian", r"\p{Latin}"),
    "ja": Language("Japanese", r"[\p{Hiragana}\p{Katakana}]"),
    "ko": Language("Korean", r"\p{Hangul}"),
    "ms": Language("Malay", r"\p{Latin}"),
    "nl": Language("Dutch", r"\p{Latin}"),
    "pl": Language("Polish", r"\p{Latin}"),
    "pt": Language("Portuguese", r"\p{Latin}"),
    "ru": Language("Russian", r"\p{Cyrillic}"),
    "sv": Language("Swedish", r"\p{Latin}"),
    "sw": Language("Swahili", r"\p{Latin}"),
    "te": Language("Telugu", r"\p{Telugu}"),
    "th": Language("Thai", r"\p{Thai}"),
    "tr": Language("Turkish", r"\p{Latin}"),
    "uk": Language("Ukrainian", r"\p{Cyrillic}"),
    "vi": Language("Vietnamese", r"\p{Latin}"),
    "yo": Language("Yoruba", r"\p{Latin}"),
}
"""Those of MIRACL (arXiv 2210.09984) and the larger ones of Europe and South-East Asia, by their ISO 639-1 codes."""
