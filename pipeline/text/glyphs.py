"""Characters that PDF text and GB 18030 have in place of others: radicals and private-use characters.

Text taken from a PDF is what its fonts say. Many have one glyph for 文 and the radical ⽂, and name the radical; those
of symbols name private-use characters. One that is not listed here can be anything: U+E412 is an emoji on old
telephones and a camera in an icon font.
"""

from unicodedata import normalize

_KANGXI_RADICALS = {chr(point): normalize("NFKC", chr(point)) for point in range(0x2F00, 0x2FD6)}
_KANGXI_RADICALS["⼾"] = "户"  # Unicode's 戶 is Traditional; fonts for Simplified Chinese show 户, as in ⽤⼾

# EquivalentUnifiedIdeograph.txt of Unicode 14, in its order. NFKC knows only two of them.
_OTHER_RADICALS = dict(
    zip(
        map(chr, [*range(0x2E81, 0x2E9A), *range(0x2E9B, 0x2EF4)]),
        "厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑彐忄心扌攵旡日月歺母民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗𦉫羊𦍌𦍋耂肀"
        "聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦页风飞食𩙿飠饣𩠐马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀龟",
        strict=True,
    )
)

# GB 18030-2000, and therefore Python's codec, has these in private use; the editions of 2005 and 2022 do not.
_GB_18030 = dict(
    zip(
        "\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7\ue816\ue817\ue818\ue81e\ue826\ue82b\ue82c"
        "\ue831\ue832\ue83b\ue843\ue854\ue855\ue864",
        "︐︒︑︓︔︕︖︗︘︙ḿ𠂇𠂉𠃌龴龵龶龷𡗗龸𢦏龹龺𤇾龻",
        strict=True,
    )
)

# The font Symbol: Unicode's VENDORS/ADOBE/symbol.txt joined with VENDORS/APPLE/SYMBOL.TXT.
_SYMBOL_FONT = dict(zip(map(chr, range(0xF8E6, 0xF8FF)), "⏐⎯®©™⎛⎜⎝⎡⎢⎣⎧⎨⎩⎪⎮⎞⎟⎠⎤⎥⎦⎫⎬⎭", strict=True))

GLYPHS = _KANGXI_RADICALS | _OTHER_RADICALS | _GB_18030 | _SYMBOL_FONT | {"\uf020": " ", "\uf0b7": "•"}
"""The character that each stands for. The last two are space and bullet of Symbol as Word writes them."""

LIST_MARK = r"(?m)^([^\S\n]*)[\x{f021}-\x{f0ff}]"
"""A glyph of any symbol font (its code + U+F000) that begins a line: as a rule a ●, ■ or ✓ of Wingdings."""

ANY_GLYPH = r"[\x{2e80}-\x{2fd5}\p{Co}]"
"""Is found in every text that the others change."""
