"""Tell the converter of DOCX files which paragraph styles are headings."""

import zipfile
from io import BytesIO

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DEEPEST = 6  # levels of headings in HTML
_TITLES = ("Title", "标题", "標題")
_OTHERS = [*(f"p[style-name='toc {level}'] => !" for level in range(1, 10)), "b => span", "i => span"]
"""Leaves out tables of contents, which repeat the headings, and the marks of bold and italic text."""


def read_style_map(data: bytes) -> str:
    """Return a style map for mammoth: titles, and styles with an outline level, whatever they are called.

    mammoth itself knows headings only by their names in Word, but styles of one's own (一级标题) inherit the level.
    """
    found = dict.fromkeys(_TITLES, 1) | _read_outline_levels(data)
    quoted = {name.replace("\\", "\\\\").replace("'", "\\'"): level for name, level in found.items()}
    return "\n".join([*(f"p[style-name='{name}'] => h{level}:fresh" for name, level in quoted.items()), *_OTHERS])


def _read_outline_levels(data: bytes) -> dict[str, int]:
    """Read the levels of the paragraph styles that are headings, from 1, by name."""
    from lxml import etree

    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            root = etree.fromstring(archive.read("word/styles.xml"), etree.XMLParser(resolve_entities=False))
    except Exception:  # there are no styles, or they are damaged in one of many ways, which the converter will report
        return {}
    styles = {style.get(f"{_W}styleId"): style for style in root.iter(f"{_W}style")}
    levels = {}
    for style in styles.values():
        name, ancestor, seen = style.find(f"{_W}name"), style, set()
        while ancestor is not None and id(ancestor) not in seen:  # a style may be based on itself
            seen.add(id(ancestor))
            level = ancestor.find(f"{_W}pPr/{_W}outlineLvl")
            if level is not None:
                break
            based_on = ancestor.find(f"{_W}basedOn")
            ancestor = None if based_on is None else styles.get(based_on.get(f"{_W}val"))
        else:
            continue
        number = level.get(f"{_W}val", "")
        if name is not None and number.isdecimal() and int(number) < 9:  # 9 is the level of the body
            levels[name.get(f"{_W}val")] = min(int(number) + 1, _DEEPEST)
    return levels
