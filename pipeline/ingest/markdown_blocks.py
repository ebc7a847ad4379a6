"""Parse Markdown into the blocks of a document."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.tree import SyntaxTreeNode

from .chunks import Block

LONGEST_FORMULA = 200
"""Chosen here: lines; without a limit, a text full of opening signs would be searched to its end from each of them."""
LONGEST_NUMBER = 20
"""Chosen here: characters that may follow a formula on its last line, such as (1) or {#eq:mass}."""

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_SLIDE = re.compile(r"<!-- Slide number: (\d+) -->")
"""The comment that markitdown writes before each slide."""

_WHOLE = ("table", "fence", "code_block", "formula")
_FORMULA = re.compile(r"\$\$|\\\[|\\begin\{[^}]*\}")


def read_title(markdown: str) -> tuple[str | None, str]:
    """Return the title in the front matter, if there is one, and the text after it."""
    found = _FRONT_MATTER.match(markdown)
    if not found:
        return None, markdown
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError:
        front = None
    if not isinstance(front, dict):
        return None, markdown  # it begins with a rule
    title = front.get("title")
    return str(title) if title else None, markdown[found.end() :]


def parse_markdown(markdown: str) -> Iterator[Block]:
    """Yield the blocks of a document; items of lists are blocks of their own."""
    lines = markdown.split("\n")
    page = None
    for node in SyntaxTreeNode(_load_parser().parse(markdown)).children:
        text = _source(node, lines)
        if node.type == "heading":
            yield Block("heading", _plain(node).rstrip(" ¶"), int(node.tag[1]), page)  # Sphinx writes links as ¶
        elif slide := _SLIDE.match(text):
            page = int(slide[1])
        elif node.type in ("bullet_list", "ordered_list"):
            for place, item in enumerate(node.children):
                yield _make_block(item, lines, page, "\n" if place else "\n\n")
        elif not (node.type == "hr" or (node.type == "html_block" and text.startswith("<!--"))):
            yield _make_block(node, lines, page, "\n\n")


def _make_block(node: SyntaxTreeNode, lines: list[str], page: int | None, glue: str) -> Block:
    is_whole = any(each.type in _WHOLE for each in node.walk())
    return Block("whole" if is_whole else "prose", _source(node, lines), 0, page, glue)


def _source(node: SyntaxTreeNode, lines: list[str]) -> str:
    start, end = node.map or (0, 0)
    return "\n".join(lines[start:end]).strip("\n").rstrip()


def _plain(node: SyntaxTreeNode) -> str:
    """Return the text of a heading without its markup."""
    return "".join(
        " " if each.type in ("softbreak", "hardbreak") else each.content
        for each in node.walk()
        if each.type in ("text", "code_inline", "softbreak", "hardbreak")
    ).strip()


@cache
def _load_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table")
    parser.block.ruler.before(
        "fence", "formula", _find_formula, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    return parser


def _find_formula(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Find lines from `$$` to `$$`, from `\\[` to `\\]`, or an environment of LaTeX. A rule of markdown-it's parser."""
    first = _line(state, start)
    opening = _FORMULA.match(first)
    if not opening:
        return False
    closing = opening[0].replace("\\[", "\\]").replace("begin", "end")
    rest = first[opening.end() :]
    for number in range(start, min(end, start + LONGEST_FORMULA)):
        _, found, after = (rest if number == start else _line(state, number)).partition(closing)
        if found:
            break
    else:
        return False
    if len(after) > LONGEST_NUMBER:  # a paragraph that begins with a formula
        return False
    if not silent:
        token: Any = state.push("formula", "", 0)
        token.map = [start, number + 1]
        state.line = number + 1
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]
