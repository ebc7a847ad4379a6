"""Read a Markdown document as one row: its title, and the text after it."""

import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser

import polars as pl
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ..text.normalise import TAG_NAMES
from ..text.references import join_halves
from .files import FileSplit
from .front_matter import find_title, split_front_matter
from .problems import RECORD, Frames, fitting, no_problems, problem
from .records import LINE
from .text_encodings import BROKEN, read_text

SEARCHED = 1 << 20
"""Chosen here: characters in which the first heading is looked for."""

LONGEST_TITLE = 1_000
"""Chosen here: characters. A longer heading is a paragraph with a rule right below it."""

_TAG_NAME = re.compile(r"</?([A-Za-z][A-Za-z0-9-]*)")
_BEGINNINGS = (512, 8_192)  # characters that are searched before the others: nearly all first headings are there
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
ATTRIBUTES = re.compile(r"\s*\{[#.:][^{}]*\}$")  # of a heading, in the dialects of kramdown and Pandoc
WITHOUT_SPACE = re.compile(
    r"#{1,6}[\u3000\u00a0]*([\u3400-\u9fff][^#\n]*)(?:\n|\Z)"
)  # `#标题` or `#　标题`; others are hashtags


def read_markdown(split: FileSplit, encoding: str | None = None) -> Iterator[Frames]:
    """Read a file as one row, even if it is empty, so that its missing title is reported.

    The row has the whole `text`, the title as `query` (of the front matter, else the first heading), what follows it as
    `positive`, no `negatives`, and the first heading in `meta`.

    Raises:
        FileError: see text_encodings.read_text.
    """
    text, cut = read_text(split.path, encoding)
    whole = pl.DataFrame({"_file": [split.name], "_line": [1], "text": [text]}, LINE)
    good, bad = fitting(whole) if text.strip() else (whole, no_problems())
    cuts = problem(split.name, None, None, "truncated", cut) if cut else no_problems()
    yield good.with_columns(*_make_pair(text), pl.col("text").alias(RECORD)), pl.concat([bad, cuts])


def _make_pair(markdown: str) -> list[pl.Expr]:
    if BROKEN in markdown:  # the row is rejected with its text
        title, heading, body = None, None, None
    else:
        title, heading, body = split_title(markdown)
    return [
        pl.lit(title, pl.String).alias("query"),
        pl.lit(body, pl.String).alias("positive"),
        pl.lit([], pl.List(pl.String)).alias("negatives"),
        pl.struct(title=pl.lit(heading, pl.String)).alias("meta"),
    ]


def split_title(markdown: str) -> tuple[str | None, str | None, str]:
    """Return a document's title, its first heading, and the text after the one that gave the title."""
    front, body = split_front_matter(join_halves(markdown.replace("\r", "\n")))
    heading, end = find_heading(body)
    if title := find_title(front):
        return title, heading, body
    return heading, heading, body[end:].strip(" ")


def find_heading(markdown: str) -> tuple[str | None, int]:
    """Find the text of the first heading that has one, and where it ends: in Markdown or HTML, not in code or lists."""
    for size in _BEGINNINGS:
        heading, end = _search(markdown[: markdown.rfind("\n\n", 0, size) + 1])  # whole blocks
        if heading and "[" not in heading:  # a link may be defined further down
            return heading, end
    return _search(markdown[:SEARCHED])


def _search(markdown: str) -> tuple[str | None, int]:
    parser = _load_parser()
    links: dict[str, object] = {}
    tokens = parser.parse(markdown, links)
    starts = [0, *(found.end() for found in re.finditer("\n", markdown)), len(markdown) + 1]
    for token, inner in zip(tokens, [*tokens[1:], *tokens[-1:]], strict=True):
        heading = ""
        if token.level or not token.map:
            continue
        end = starts[token.map[1]] - 1
        if token.type == "heading_open" and len(inner.content) <= LONGEST_TITLE:
            inline: list[Token] = []
            parser.inline.parse(inner.content, parser, links, inline)
            heading = ATTRIBUTES.sub("", _get_text(inline))
        elif token.type == "html_block":
            heading, length = _find_html_heading(token.content)
            end = starts[token.map[0]] + length
        elif token.type == "paragraph_open" and (found := WITHOUT_SPACE.match(inner.content)):
            end = starts[token.map[0] + 1] - 1
            heading = found[1] if markdown[end:].strip() else ""
        if heading := heading.strip():
            return heading, end
    return None, 0


@cache
def _load_parser() -> MarkdownIt:
    """Return a parser of blocks: of what is within them, only the first heading is needed."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def _get_text(tokens: list[Token]) -> str:
    """Return the text of inline tokens without markup; the descriptions of images only if there is nothing else."""
    text = "".join(read_inline(one.type, one.content) for one in tokens if one.type != "image")
    return text.strip() or " ".join(token.content for token in tokens if token.type == "image")


def read_inline(kind: str, content: str) -> str:
    """Return the text of an inline token without markup: tags of HTML are, but not code such as `vector<int>`."""
    if kind in ("softbreak", "hardbreak"):
        return " "
    if kind != "html_inline":
        return content
    tag = _TAG_NAME.match(content)
    name = tag[1] if tag else ""
    if name.lower() == "br":
        return " "
    return "" if not tag or (name.lower() in TAG_NAMES and name in (name.lower(), name.upper())) else content


def _find_html_heading(html: str) -> tuple[str, int]:
    """Find the text of the first heading in HTML that has one, and where it ends."""
    finder = _HeadingFinder()
    finder.feed(html)
    return finder.heading, finder.end


class _HeadingFinder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.heading, self.end = "", 0
        self._parts: list[str] | None = None  # of the heading that is open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _HEADINGS and not self.heading:
            self._parts = []

    def handle_data(self, data: str) -> None:
        if self._parts is not None:
            self._parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in _HEADINGS and self._parts is not None:
            self.heading, self._parts = " ".join("".join(self._parts).split()), None
            line, column = self.getpos()
            before = sum(map(len, self.rawdata.split("\n")[: line - 1])) + line - 1 + column
            self.end = self.rawdata.index(">", before) + 1
