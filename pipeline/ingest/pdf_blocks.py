"""Read a PDF into the blocks of a document: lines joined to paragraphs, headings by outline or size, ruled tables.

pdfminer (within pdfplumber) finds the characters and the order of columns, pdfplumber the tables. What a PDF does not
say is found by rules, whose thresholds are chosen here, by reading the chunks of manuals and papers.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import Any

from ...schemas.errors import MissingExtraError
from .chunks import HAN, Block
from .files import FileError

HEADING_SIZE = 1.12
"""Chosen here: from this many times the size of the body on, a line is a heading: 12 pt (小四) is, over 10.5 (五号)."""
LONGEST_HEADING = 60
"""Chosen here: characters."""
MARGIN = 0.1
"""Chosen here: the share of a page's height, at its top and its bottom, in which running headers and footers stand."""
REPEATED = 1 / 3
"""Chosen here: on this share of the pages, and at least two, a line in the margin is a running header or footer."""
INDENT = 1.5
"""Chosen here: characters by which the first line of a paragraph is indented at least; Chinese paragraphs by two."""
UNKNOWN_GLYPHS = 0.1
"""Chosen here: from this share of characters on that the fonts don't name, a file is rejected."""

_TAIL = 2048
"""Bytes at the end of a file among which %%EOF stands; Acrobat looks through 1,024."""

_SPACED = re.compile(rf"(?<!\S)({HAN})\s+(?={HAN}(?!\S))")  # 目　录
_WORD = re.compile("[!-~]*")
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_BESIDE_HAN = re.compile(rf"(?<={HAN})\n|\n(?={HAN})")
_GLYPH = re.compile(r"\(cid:\d+\)")


@dataclass(frozen=True)
class Line:
    """A line of a page, or a table, which has no size. Distances are in points, from the left and from the top."""

    text: str
    page: int
    left: float = 0.0
    right: float = 0.0
    top: float = 0.0
    height: float = 0.0  # of the page
    size: float = 0.0  # of most of its characters


def parse_pdf(data: bytes) -> tuple[list[Block], list[tuple[str, str]]]:
    """Return the blocks of a PDF, and what was lost: reasons and details.

    Raises:
        FileError: the file can't be read, or has no text.
        MissingExtraError: pdfplumber is not installed.
    """
    try:
        import pdfplumber
    except ImportError as error:
        raise MissingExtraError("reading PDF files", "documents") from error
    logging.getLogger("pdfminer").addHandler(logging.NullHandler())  # silenced: it warns of each odd font
    try:
        with pdfplumber.open(BytesIO(data), laparams={"line_margin": 1.5}) as pdf:  # Chinese is set with wide spacing
            levels = _read_outline(pdf)
            pages = [_read_page(page) for page in pdf.pages]
    except Exception as error:  # on broken files, the libraries may raise anything
        if "PDFPasswordIncorrect" in repr(error):
            raise FileError("unreadable", "it is encrypted; save it without a password") from error
        raise FileError("unreadable", f"not a readable PDF: {type(error).__name__} {error}") from error
    lines = [line for page, _ in pages for line in page]
    if not lines:
        raise FileError("no_content", f"no text in {len(pages)} pages, so probably a scan; run OCR (ocrmypdf) on it")
    text = "".join(line.text for line in lines)
    unknown = len(_GLYPH.findall(text))
    if unknown >= UNKNOWN_GLYPHS * len(_GLYPH.sub(".", text)):
        raise FileError("encoding", f"its fonts don't say what {unknown:,} of its characters are; run OCR on it")
    lost = [
        ("no_content", f"page {number} is a picture without text; run OCR on it")
        for number, (page, has_images) in enumerate(pages, 1)
        if has_images and not page
    ]
    if b"%%EOF" not in data[-_TAIL:]:
        lost.append(("truncated", "the file breaks off, so that pages may be missing"))
    return list(_find_blocks(_drop_running_lines(lines, len(pages)), levels)), lost


def _read_outline(pdf: Any) -> dict[str, int]:
    """Return the levels of the titles in the PDF's outline (bookmarks), without white space."""
    try:
        return {_squeeze(title or ""): level for level, title, *_ in pdf.doc.get_outlines()}
    except Exception:  # no outline, or a broken one: headings are told by their size
        return {}


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _read_page(page: Any) -> tuple[list[Line], bool]:
    """Return a page's lines in reading order, and whether it has pictures; a table stands where its first line did."""
    from pdfminer.layout import LTChar, LTTextBoxHorizontal, LTTextLine

    tables = [table for table in page.find_tables() if len(table.rows) > 1 and len(table.columns) > 1]
    placed: set[int] = set()
    lines = []
    for line in (line for box in page.layout if isinstance(box, LTTextBoxHorizontal) for line in box):
        text = _SPACED.sub(r"\1", line.get_text().strip())
        characters = [each for each in line if isinstance(each, LTChar)] if isinstance(line, LTTextLine) else []
        if not text or not characters:
            continue
        top = page.height - line.y1
        across, down = (line.x0 + line.x1) / 2, top + line.height / 2
        inside = next((n for n, table in enumerate(tables) if _holds(table.bbox, across, down)), None)
        if inside is None:
            [(size, _)] = Counter(round(each.size * 2) / 2 for each in characters).most_common(1)
            lines.append(Line(text, page.page_number, line.x0, line.x1, top, float(page.height), size))
        elif inside not in placed:
            placed.add(inside)
            lines.append(Line(_write_table(tables[inside].extract()), page.page_number))
    has_images = bool(page.images)
    page.close()  # frees its objects; pages are read once
    return lines, has_images


def _holds(box: tuple[float, float, float, float], across: float, down: float) -> bool:
    left, top, right, bottom = box
    return left <= across <= right and top <= down <= bottom


def _write_table(rows: Sequence[Sequence[str | None]]) -> str:
    """Write a table as Markdown; its first row becomes the header."""
    cells = [[_unwrap((cell or "").strip()).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([head, "|" + " --- |" * len(cells[0]), *body])


def _unwrap(text: str) -> str:
    """Join the lines of a paragraph: with a space, except next to Chinese and within a hyphenated word."""
    return _BESIDE_HAN.sub("", _HYPHENATED.sub("", text)).replace("\n", " ")


def _drop_running_lines(lines: Sequence[Line], pages: int) -> list[Line]:
    """Drop page numbers, and headers and footers that are on many pages; they may differ in numbers."""

    def name(line: Line) -> str | None:
        is_outside = line.size > 0 and not MARGIN * line.height < line.top < (1 - MARGIN) * line.height
        return re.sub(r"\d+", "", _squeeze(line.text)) if is_outside else None

    found = Counter({(name(line), line.page) for line in lines})
    counts = Counter(text for text, _ in found)
    return [line for line in lines if (text := name(line)) is None or counts[text] < max(2, REPEATED * pages)]


def _find_blocks(lines: Sequence[Line], levels: dict[str, int]) -> Iterator[Block]:
    """Tell headings from prose and tables, and join lines of the same paragraph or heading."""
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[line.size] += len(line.text) if line.size else 0
    body = sizes.most_common(1)[0][0] if sizes else 0.0
    deepest = max((levels[title] for line in lines if (title := _squeeze(line.text)) in levels), default=0)
    larger = sorted({line.size for line in lines if _is_large(line, body)}, reverse=True)

    def level(line: Line) -> int:
        """Return the level of a heading, 0 for other lines; large ones are below those of the outline."""
        if outlined := levels.get(_squeeze(line.text)):
            return outlined
        return deepest + larger.index(line.size) + 1 if _is_large(line, body) else 0

    by_page = {page: list(group) for page, group in groupby(lines, lambda line: line.page)}
    paragraph: list[Line] = []
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        paragraph.append(line)
        heading = level(line)
        if following and level(following) == heading and _continues(line, following, by_page, is_heading=heading > 0):
            continue
        text = "\n".join(part.text for part in paragraph)
        if line.size:
            yield Block("heading" if heading else "prose", _unwrap(text), heading, paragraph[0].page)
        else:
            yield Block("whole", text, page=line.page)
        paragraph = []


def _is_large(line: Line, body: float) -> bool:
    return (
        line.size >= HEADING_SIZE * body > 0 and len(line.text) <= LONGEST_HEADING and line.text[-1] not in "。；，,;"
    )


def _continues(line: Line, following: Line, by_page: dict[int, list[Line]], is_heading: bool) -> bool:
    """Whether the next line continues a paragraph or heading: its first word did not fit, and it is not indented more.

    Two indented lines may be two paragraphs of one line each, or both of an indented block; the full stop decides.
    """
    if line.size != following.size or not line.size:
        return False
    if is_heading:  # one that needs two lines
        return line.page == following.page and following.top - line.top < 2 * line.size
    others = [*by_page[line.page], *by_page[following.page]]  # a page may have too few lines to tell its edges
    edges = [_find_edges(each, others) for each in (line, following)]
    indents = [each.left - left for each, (left, _) in zip((line, following), edges, strict=True)]
    word = _WORD.match(following.text)
    room = (2 + 0.6 * len(word[0] if word else "")) * line.size
    if line.right < edges[0][1] - room or indents[1] > indents[0] + INDENT * line.size:
        return False
    return min(indents) < INDENT * line.size or line.text[-1] not in "。！？：；.!?:;"


def _find_edges(line: Line, others: Iterable[Line]) -> tuple[float, float]:
    """Return the left and the right edge of a line's column: of the lines of its size above and below it."""
    indent = 2 * line.size  # a short line may end before an indented one begins
    near = [
        each
        for each in others
        if each.size == line.size and each.left < line.right + indent and line.left - indent < each.right
    ]
    return min(each.left for each in near), max(each.right for each in near)
