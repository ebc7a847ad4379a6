"""Parse Markdown into the blocks of a document."""

import re
from collections.abc import Iterator
from functools import cache
from html import unescape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.tree import SyntaxTreeNode

from .chunks import Block
from .markdown_reader import ATTRIBUTES, WITHOUT_SPACE, read_inline

LONGEST_FORMULA = 200
"""Chosen here: lines; without a limit, a text full of opening signs would be searched to its end from each of them."""
LONGEST_TABLE = 10_000
"""Chosen here: the same for tables in HTML."""
LONGEST_NUMBER = 20
"""Chosen here: characters that may follow a formula on its last line, such as (1) or {#eq:mass}."""

_SLIDE = re.compile(r"<!-- Slide number: (\d+) -->")
"""The comment that markitdown writes before each slide."""

_WHOLE = ("table", "fence", "code_block", "whole")
_OPENING = re.compile(r"\$\$|\\\[|\\begin\{[^}]*\}|<(?:table|TABLE)\b")
_HTML_TABLE = re.compile(r"<table\b", re.IGNORECASE)
_HTML_HEADING = re.compile(r"<h([1-6])\b[^>]*>(.*?)</h\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


def parse_markdown(markdown: str) -> Iterator[Block]:
    """Yield the blocks of a document; items of lists are blocks of their own."""
    lines = markdown.split("\n")
    page = None
    for node in SyntaxTreeNode(_load_parser().parse(markdown)).children:
        text = _source(node, lines)
        if node.type == "heading":
            heading = ATTRIBUTES.sub("", _plain(node)).rstrip(" ¶")  # Sphinx writes links as ¶
            yield Block("heading", heading, int(node.tag[1]), page)
        elif slide := _SLIDE.match(text):
            page = int(slide[1])
        elif node.type in ("bullet_list", "ordered_list"):
            for place, item in enumerate(node.children):
                yield _make_block(item, lines, page, "\n" if place else "\n\n")
        elif node.type == "paragraph" and WITHOUT_SPACE.match(text):
            yield from _split_paragraph(text, page)
        elif node.type == "html_block" and _HTML_HEADING.search(text) and not _HTML_TABLE.search(text):
            yield from _split_html(text, page)
        elif not (node.type == "hr" or (node.type == "html_block" and text.startswith("<!--"))):
            yield _make_block(node, lines, page, "\n\n")


def _split_paragraph(text: str, page: int | None) -> Iterator[Block]:
    """Yield the headings without a space after their signs with which a paragraph begins, and the rest."""
    while heading := WITHOUT_SPACE.match(text):
        yield Block("heading", heading[1].strip(), len(text) - len(text.lstrip("#")), page)
        text = text[heading.end() :]
    if text.strip():
        yield Block("prose", text, 0, page)


def _split_html(html: str, page: int | None) -> Iterator[Block]:
    """Yield the headings in HTML, and the texts before, between and after them."""
    end = 0
    for heading in _HTML_HEADING.finditer(html):
        yield from _make_prose(html[end : heading.start()], page)
        yield Block("heading", " ".join(unescape(_TAG.sub(" ", heading[2])).split()), int(heading[1]), page)
        end = heading.end()
    yield from _make_prose(html[end:], page)


def _make_prose(html: str, page: int | None) -> Iterator[Block]:
    if _TAG.sub("", html).strip():
        yield Block("prose", html.strip(), 0, page)


def _make_block(node: SyntaxTreeNode, lines: list[str], page: int | None, glue: str) -> Block:
    is_whole = any(each.type in _WHOLE for each in node.walk())
    text = _source(node, lines)
    if node.type == "html_block":
        is_whole = bool(_HTML_TABLE.search(text))
    return Block("whole" if is_whole else "prose", text, 0, page, glue)


def _source(node: SyntaxTreeNode, lines: list[str]) -> str:
    start, end = node.map or (0, 0)
    return "\n".join(lines[start:end]).strip("\n").rstrip()


def _plain(node: SyntaxTreeNode) -> str:
    """Return the text of a heading without its markup."""
    return "".join(
        read_inline(each.type, each.content)
        for each in node.walk()
        if each.type in ("text", "code_inline", "softbreak", "hardbreak", "html_inline")
    ).strip()


@cache
def _load_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table")
    parser.block.ruler.before("fence", "whole", _find_whole, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    return parser


def _find_whole(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Find a formula (`$$` to `$$`, `\\[` to `\\]`, an environment of LaTeX) or a table in HTML, blank lines and all.

    A rule of markdown-it's parser.
    """
    first = _line(state, start)
    opening = _OPENING.match(first)
    if not opening:
        return False
    is_table = opening[0].startswith("<")
    closing = f"</{opening[0][1:]}>" if is_table else opening[0].replace("\\[", "\\]").replace("begin", "end")
    rest = first[opening.end() :]
    for number in range(start, min(end, start + (LONGEST_TABLE if is_table else LONGEST_FORMULA))):
        _, found, after = (rest if number == start else _line(state, number)).partition(closing)
        if found:
            break
    else:
        return False
    if len(after) > LONGEST_NUMBER:  # a paragraph that begins with a formula
        return False
    if not silent:
        token: Any = state.push("whole", "", 0)
        token.map = [start, number + 1]
        state.line = number + 1
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]
