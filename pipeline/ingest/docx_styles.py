"""Tell the converter of DOCX files which paragraphs are headings."""

import zipfile
from io import BytesIO

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_DOCUMENT = "word/document.xml"
_OWN_LEVEL = "conan-heading-"
"""Begins the styles of paragraphs with an outline level of their own; the level follows."""
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
    own = (f"p.{_OWN_LEVEL}{level} => h{level}:fresh" for level in range(1, _DEEPEST + 1))
    return "\n".join([*own, *(f"p[style-name='{name}'] => h{level}:fresh" for name, level in quoted.items()), *_OTHERS])


def mark_outline_levels(data: bytes) -> bytes:
    """Give each paragraph with an outline level of its own a style for that level: mammoth only looks at styles."""
    from lxml import etree

    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = {member: archive.read(member) for member in archive.infolist()}
        document = next(content for member, content in members.items() if member.filename == _DOCUMENT)
        if b"outlineLvl" not in document:
            return data
        root = etree.fromstring(document, etree.XMLParser(resolve_entities=False))
    except Exception:  # damaged in one of many ways, which the converter will report
        return data
    for level in root.iterfind(f".//{_W}p/{_W}pPr/{_W}outlineLvl"):
        number, properties = level.get(f"{_W}val", ""), level.getparent()
        if number.isdecimal() and int(number) < 9:
            style = properties.find(f"{_W}pStyle")
            if style is None:
                style = etree.Element(f"{_W}pStyle")
                properties.insert(0, style)
            style.set(f"{_W}val", f"{_OWN_LEVEL}{min(int(number) + 1, _DEEPEST)}")
    marked = BytesIO()
    with zipfile.ZipFile(marked, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, etree.tostring(root) if member.filename == _DOCUMENT else content)
    return marked.getvalue()


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
