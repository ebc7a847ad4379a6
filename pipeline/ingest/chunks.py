"""Cut a document into chunks: at headings, then between paragraphs, then between sentences."""

import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise, takewhile
from typing import Literal, NamedTuple

HAN = "[\u2e80-\u2fdf\u3001-\u303f\u3400-\u9fff\uf900-\ufaff\uff01-\uff5e]"
"""A pattern for a Chinese character or punctuation mark, next to which a line break does not mean a space."""


class Block(NamedTuple):
    """A part of a document: a heading, prose that may be cut between sentences, or something that stays whole."""

    kind: Literal["heading", "prose", "whole"]
    text: str
    level: int = 0  # of a heading, from 1
    page: int | None = None  # or slide, from 1
    glue: str = "\n\n"  # separates it from the block before


class Chunk(NamedTuple):
    """A piece of a section; `headings` lead to it, outermost first."""

    headings: tuple[str, ...]
    text: str
    page: int | None


# A sentence ends after its punctuation and the closing quotes behind it. After Western punctuation, white space must
# follow, and before it no digit, as in `1. 安装`.
_CLOSING = "”’」』）】》"
_SENTENCE = re.compile(
    rf"(?<=[。！？；…])(?![。！？；…{_CLOSING}])|(?<=[。！？；…][{_CLOSING}])|(?<=[^\W\d][.!?;]\s)(?=\S)"
)
_CLAUSE = re.compile(r"(?<=[，、：])|(?<=,\s)(?=\S)")
_ANYWHERE = re.compile(r"(?=.)", re.DOTALL)
_KEPT = re.compile(
    r"\$\$.{1,1000}?\$\$|\$(?!\s)[^$\n]+(?<!\s)\$|\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\]|`[^`\n]+`", re.DOTALL
)
"""Formulas and code within a line. `$5 和 $6` is not a formula, as there is white space before the second sign.
The lengths are bounded so that a text full of opening signs takes no time."""


def cut(blocks: Iterable[Block], max_chars: int, overlap: int) -> Iterator[Chunk]:
    """Cut a document into chunks of at most `max_chars` characters; only what stays whole may be longer.

    A chunk begins with the last sentences of the chunk before it in the same section, `overlap` characters at most.
    """
    path: dict[int, str] = {}
    for is_heading, section in groupby(blocks, lambda block: block.kind == "heading"):
        if is_heading:
            for heading in section:
                path = {level: text for level, text in path.items() if level < heading.level}
                path[heading.level] = heading.text
            continue
        pieces = [piece for block in section for piece in _split_block(block, max_chars)]
        for parts in _fill(pieces, max_chars, overlap):
            if text := _join(parts).strip():
                yield Chunk(tuple(filter(None, path.values())), text, parts[0].page)


def _fill(pieces: Iterable[Block], max_chars: int, overlap: int) -> Iterator[list[Block]]:
    """Gather pieces into chunks."""
    parts: list[Block] = []
    size = 0
    for piece in pieces:
        added = len(piece.glue + piece.text.rstrip())
        if parts and size + added > max_chars:
            yield parts
            parts = _repeat(parts, min(overlap, max_chars - added))
            size = len(_join(parts))
        size += len(piece.glue) * bool(parts) + len(piece.text)
        parts.append(piece)
    if parts:
        yield parts


def _join(parts: Sequence[Block]) -> str:
    return "".join(part.glue * (place > 0) + part.text for place, part in enumerate(parts))


def _repeat(parts: Sequence[Block], room: int) -> list[Block]:
    """Return the last sentences of a chunk that fit into `room` characters."""
    paragraphs: list[Block] = []
    for part in reversed(list(takewhile(lambda part: part.kind == "prose", reversed(parts)))):
        if paragraphs and not part.glue:
            paragraphs[-1] = paragraphs[-1]._replace(text=paragraphs[-1].text + part.text)
        else:
            paragraphs.append(part)
    repeated: list[Block] = []
    for sentence in reversed([each for paragraph in paragraphs for each in _split_at(_SENTENCE, paragraph)]):
        if len(_join([sentence, *repeated])) > room:
            break
        repeated.insert(0, sentence)
    return repeated


def _split_block(block: Block, max_chars: int) -> list[Block]:
    """Split prose that is longer than a chunk into sentences, long sentences into clauses, long clauses anywhere."""
    pieces = [block]
    for pattern in (_SENTENCE, _CLAUSE, _ANYWHERE):
        pieces = [
            part
            for piece in pieces
            for part in (
                _split_at(pattern, piece) if piece.kind == "prose" and len(piece.text.strip()) > max_chars else [piece]
            )
        ]
    return pieces


def _split_at(pattern: re.Pattern[str], block: Block) -> list[Block]:
    """Split prose where the pattern matches outside formulas and code."""
    kept = [found.span() for found in _KEPT.finditer(block.text)]
    starts = [start for start, _ in kept]
    cuts = [found.start() for found in pattern.finditer(block.text)]
    outside = [at for at in cuts if not (place := bisect(starts, at - 1)) or kept[place - 1][1] <= at]
    edges = [0, *(at for at in outside if 0 < at < len(block.text)), len(block.text)]
    return [
        block._replace(text=block.text[start:end], glue="" if start else block.glue) for start, end in pairwise(edges)
    ]
