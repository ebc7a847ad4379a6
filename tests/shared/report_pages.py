"""Report pages: parsed by the standard library, and small corpora to report on."""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.report.subjects import Subject, open_subjects
from conan_embedding.schemas.pairs import PAIR, REJECTED_AT_INGEST

HOSTILE = (
    "\x00\x1b[31m</style></dl></script><script>alert('一')</script><img src=http://evil.example/x onerror=run()>"
    '&amp;" onload="run()" \u202etxt.exe\u2066'
)
"""Control characters, the ends of elements, quotes, marks that reorder text."""

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements and texts of a page. Fails if elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[str]:
        return [text for own, text in self.texts if own == tag]


def render(section: Callable[[Sequence[Subject]], str], *corpora: Path) -> str:
    """Render one section of a page about these corpora."""
    with open_subjects(corpora) as subjects:
        return section(subjects)


def rows_of(html: str, heading: str, after: str = "") -> list[list[str]]:
    """Return the cells of the first table after a heading, of those after the section `after`."""
    html = html[html.index(f">{after}</h2>") :] if after else html
    table = re.search(rf"<h[23][^>]*>{heading}.*?<tbody>(.*?)</tbody>", html, re.DOTALL)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows]


def facts_of(html: str) -> dict[str, str]:
    return dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", html))


def steps_of(path: str) -> list[float]:
    """Return the height of each step of a histogram above its base line, in SVG units."""
    return [164 - float(height) for height in re.findall(r"V([\d.]+)H", path)]


def write_ingest(corpus: Path, *shards: list[dict[str, Any]], rejects: list[dict[str, Any]] = ()) -> None:
    """Write shards of ingest, whose rejects have their own columns: the file, line and record."""
    for number, rows in enumerate(shards):
        thrown = rejects if number == 0 else ()
        with ShardWriter(
            corpus / "ingest" / f"part-{number:05d}.parquet",
            PAIR,
            REJECTED_AT_INGEST,
            stage="ingest",
            version=1,
            fingerprint=str(number),
        ) as writer:
            writer.received(len(rows) + len(thrown))
            writer.keep(pa.Table.from_pylist(rows, PAIR))
            writer.reject(pa.Table.from_pylist(list(thrown), REJECTED_AT_INGEST))


def figure_of(html: str, title: str) -> str:
    """Return the chart with this title."""
    figure = re.search(rf"<figure><figcaption><b>{re.escape(title)}</b>.*?</figure>", html, re.DOTALL)
    assert figure
    return figure[0]
