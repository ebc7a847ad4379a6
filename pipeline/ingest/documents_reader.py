"""Read documents (Markdown, HTML, DOCX, PPTX, PDF) as chunks, each with the path of headings that leads to it."""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import groupby
from pathlib import PurePosixPath
from typing import NamedTuple

import polars as pl

from ...schemas.errors import MissingExtraError
from ...schemas.source_settings import Source
from .chunks import HAN, Block, cut
from .file_kinds import PACKED
from .files import UNPACKED_FLOOR, UNPACKED_RATIO, FileError, FileSplit, read_chunks
from .front_matter import find_title, split_front_matter
from .html_reader import extract_markdown
from .markdown_blocks import parse_markdown
from .pdf_blocks import parse_pdf
from .problems import Frames, no_problems, problem
from .text_encodings import read_text

CHUNK: dict[str, pl.DataType | type[pl.DataType]] = {
    "_file": pl.String,
    "_line": pl.Int64,
    "query": pl.String,
    "positive": pl.String,
    "title": pl.String,
    "headings": pl.List(pl.String),
    "page": pl.Int64,
}
"""The columns of a chunk, without `meta`, a struct of the last three. `_line` is null: most formats have no lines."""

LONGEST_DOCUMENT = 128 << 20
"""Chosen here: bytes; the libraries hold a document in memory several times over."""

SEPARATOR = " > "
"""Between the headings of a query, as in the breadcrumbs of web pages."""

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""The first bytes of Office's files before 2007, and of those with a password."""
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_SOFT_BREAK = re.compile(rf"(?<={HAN})\n(?={HAN})")  # within a Chinese paragraph, not for a space
_ESCAPED = re.compile(
    r"(?P<kept>\$\$[^$]{1,1000}\$\$|\$(?!\s)[^$\n]+(?<!\s)\$|`[^`\n]+`)|"
    r"(?P<slashes>(?:\\\\)*)\\(?P<sign>[*_`~\[\]<])|(?m:^(?P<begin> *\d*)\\(?P<mark>[-#>+.)]))"
)
"""The escapes of trafilatura in prose, which double the backslashes before a sign; formulas and code have none."""
_ESCAPED_IN_WORD = re.compile(r"\\([\[\]\\&<`>~=+|#.)-])")
_ESCAPED_CELL = re.compile(r"\\([\[\]\\&<`>~=+#.)-])")
"""The escapes of markdownify; in tables, `\\|` stays."""
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_ANCHOR = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(#[^)]*\)")  # a link within the document, such as [图 1](#_Ref1)
_SLIDE_LINE = re.compile(r"(?<!\|)\n(?!\|)")  # outside a table: lines of a slide are paragraphs
_NOTES = re.compile(r"(?m)^### Notes:$")
_EMPTY_HEADER = re.compile(r"(?m)^\|[ |]*\|\n(\|[-| ]+\|)\n(\|.*\|)$")


class Document(NamedTuple):
    """A parsed file: its title if it declares one, its blocks, and a reason and detail for each part that was lost."""

    title: str | None
    blocks: list[Block]
    losses: list[tuple[str, str]]


def read_documents(split: FileSplit, source: Source) -> Iterator[Frames]:
    """Read a file as rows of CHUNK. The query is the path of headings, or for a text without headings its title.

    Raises:
        FileError: the file is of another kind, can't be read, or has no text.
        MissingExtraError: the library that reads its kind is not installed.
    """
    name = PurePosixPath(split.name.partition("::")[0])
    name = PurePosixPath(name.stem) if name.suffix.lower() in PACKED else name
    parse = FORMATS.get(name.suffix.lower())
    if parse is None:
        raise FileError("unreadable", f"expected a name that ends with {', '.join(FORMATS)}; found {name.name}")
    document = parse(split, source)
    title, blocks = _take_title(document)
    chunks = list(cut(blocks, source.options.max_chars, source.options.overlap))
    if not chunks:
        raise FileError("no_content", "no text under its headings" if document.blocks else "no text")
    first = next((block.text for block in blocks if block.kind == "heading" and block.text), name.stem)
    rows = []
    for chunk in chunks:
        path = [title, *chunk.headings] if title and title not in chunk.headings else chunk.headings
        query = SEPARATOR.join(path) or name.stem
        rows.append((split.name, None, query, chunk.text, title or first, list(chunk.headings), chunk.page))
    frame = pl.DataFrame(rows, CHUNK, orient="row").with_columns(meta=pl.struct("title", "headings", "page"))
    lost = [problem(split.name, None, None, *loss) for loss in document.losses]
    yield frame, pl.concat([no_problems(), *lost])


def _take_title(document: Document) -> tuple[str | None, list[Block]]:
    """Return the document's title, and its blocks without it.

    If no title is declared, it is a first heading that has no text and no headings under it.
    """
    begin = document.blocks[:2]
    if (
        document.title is None
        and [block.kind for block in begin] == ["heading"] * 2
        and begin[1].level <= begin[0].level
    ):
        return begin[0].text, document.blocks[1:]
    return document.title, document.blocks


def _parse_markdown(split: FileSplit, source: Source) -> Document:
    text, cut_short = read_text(split.path, source.encoding)
    front, body = split_front_matter(text)
    blocks = [
        block._replace(text=_SOFT_BREAK.sub("", block.text)) if block.kind == "prose" else block
        for block in parse_markdown(body)
    ]
    return Document(find_title(front), blocks, [("truncated", cut_short)] if cut_short else [])


def _parse_html(split: FileSplit, source: Source) -> Document:
    title, markdown = extract_markdown(_read_file(split), source.encoding)
    blocks = [
        block._replace(text=_ESCAPED.sub(_unescape, block.text))
        if block.kind == "prose" or block.text[0] == "|"
        else block
        for block in _parse_converted(markdown)
    ]
    has_headings = any(block.kind == "heading" for block in blocks)
    return Document(None if has_headings else title, blocks, [])


def _unescape(found: re.Match[str]) -> str:
    if found["kept"]:
        return found["kept"]
    if found["sign"]:
        return found["slashes"][::2] + found["sign"]
    return found["begin"] + found["mark"]


def _parse_docx(split: FileSplit, _: Source) -> Document:
    from .docx_styles import mark_outline_levels, read_style_map

    data = mark_outline_levels(_read_office_file(split))
    # Escaped, as a command line of root is no heading: # systemctl start nginx
    options = {"style_map": read_style_map(data), "sup_symbol": "<sup>"}
    markdown = _convert("DocxConverter", ".docx", data, escape_misc=True, **options)
    blocks = [
        block
        if block.kind == "heading"
        else block._replace(text=(_ESCAPED_CELL if block.text[0] == "|" else _ESCAPED_IN_WORD).sub(r"\1", block.text))
        for block in _parse_converted(_EMPTY_HEADER.sub(r"\2\n\1", markdown))
    ]
    return Document(None, blocks, [])


def _parse_pptx(split: FileSplit, _: Source) -> Document:
    markdown = _convert("PptxConverter", ".pptx", _read_office_file(split)).replace("\v", "\n")
    blocks = _parse_converted(_SLIDE_LINE.sub("\n\n", _NOTES.sub("", markdown)))
    return Document(
        None, [block for _, slide in groupby(blocks, lambda block: block.page) for block in _order(slide)], []
    )


def _order(slide: Iterable[Block]) -> list[Block]:
    """Put the title of a slide first, wherever it stands; a slide without one is not part of the slide before."""
    blocks = sorted(slide, key=lambda block: block.kind != "heading")
    return blocks if blocks[0].kind == "heading" else [Block("heading", "", 1), *blocks]


def _parse_pdf(split: FileSplit, _: Source) -> Document:
    return Document(None, *parse_pdf(_read_file(split)))


FORMATS: dict[str, Callable[[FileSplit, Source], Document]] = {
    ".md": _parse_markdown,
    ".markdown": _parse_markdown,
    ".html": _parse_html,
    ".htm": _parse_html,
    ".docx": _parse_docx,
    ".pptx": _parse_pptx,
    ".pdf": _parse_pdf,
}


def _read_file(split: FileSplit) -> bytes:
    parts, size = [], 0
    for chunk in read_chunks(split, enter_archives=False):
        parts.append(chunk)
        size += len(chunk)
        if size > LONGEST_DOCUMENT:
            raise FileError("too_long", f"more than {LONGEST_DOCUMENT:,} bytes in one document")
    return b"".join(parts)


def _read_office_file(split: FileSplit) -> bytes:
    """Read a DOCX or PPTX file, which is a zip archive, and check that it is one."""
    data = _read_file(split)
    if data.startswith(_OLE):
        if _ENCRYPTED in data:
            raise FileError("unreadable", "it is encrypted; save it without a password")
        raise FileError("unreadable", "a file of Office before 2007; save it as .docx or .pptx")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # zipfile raises one of many for a damaged directory
        raise FileError("unreadable", f"not a DOCX or PPTX file, or only a part of one: {error}") from error
    if size > max(UNPACKED_FLOOR, UNPACKED_RATIO * len(data)):
        raise FileError("too_large", f"decompresses to {size:,} bytes, over {UNPACKED_RATIO} times its size")
    return data


def _convert(name: str, extension: str, data: bytes, escape_misc: bool = False, **options: str) -> str:
    """Convert a file to Markdown with one of markitdown's converters."""
    try:
        from markitdown import StreamInfo, converters
    except ImportError as error:
        raise MissingExtraError("reading DOCX and PPTX files", "documents") from error
    escapes = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": escape_misc}
    try:
        converter = getattr(converters, name)()
        return str(converter.convert(BytesIO(data), StreamInfo(extension=extension), **escapes, **options).markdown)
    except Exception as error:  # on broken files, the libraries may raise anything
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error


def _parse_converted(markdown: str) -> list[Block]:
    """Return the blocks of a converted file, without pictures and without links to other parts of it."""
    plain = _ANCHOR.sub(r"\1", _IMAGE.sub("", markdown))
    return [block for block in parse_markdown(plain) if block.text]
