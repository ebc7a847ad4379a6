"""Extract titles and texts from web pages, in HTML files and in the responses of WARC archives."""

import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from io import BytesIO
from itertools import count
from typing import Any

import polars as pl

from ...schemas.errors import MissingExtraError
from ..text.references import join_halves
from .charsets import DAMAGED_SHARE, decode, detect, find_codec, measure_damage
from .files import FileError
from .problems import PROBLEM, Frames

PAGE = {
    "_file": pl.String,
    "_line": pl.Int64,
    "url": pl.String,
    "title": pl.String,
    "text": pl.String,
    "date": pl.String,
    "language": pl.String,
}

LONGEST_PAGE = 16 << 20
"""Chosen here: bytes of a page; a longer one is rejected."""

MOST_NODES = 100_000
"""Chosen here: elements and attributes of a page; with this many, trafilatura takes about five seconds."""

MOST_COMPARED = 10_000
"""Chosen here: elements up to which trafilatura also runs readability and justext, quadratic in paragraphs."""

MOST_ATTRIBUTES = 1_000
"""Chosen here: attributes of a tag. libxml2 compares each with all before it: 100,000 take 23 s, 400,000 minutes."""

SHORTEST_TEXT = 80
"""Chosen here: characters from which trafilatura accepts its first result. Its default is 250; Han text is denser."""

_BATCH_RECORDS = 2_000
_BATCH_CHARACTERS = 16 << 20
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 20

_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.ASCII | re.IGNORECASE)
_DECLARATION = re.compile(rb"<(?:meta|\?xml)\b[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
# Codecs that a page may ask for: some of Python's are not for text, and some take hours.
_ENCODING = re.compile(r"utf-8|gb18030|hz|big5.*|cp\d+|iso8859-\d+|(?:euc|iso2022|shift)_.*|koi8-.*|tis-620")

# A tag as HTML's tokenizer reads it: quotes only count after `=`. The pattern never backtracks, so its time is linear.
_VALUE = r"""=\s*+(?:"[^"]*+"?|'[^']*+'?)"""
_TAG = re.compile(rf"<[a-zA-Z](?:[^>=]++|{_VALUE}|=)*+>?")
_QUOTED = re.compile(_VALUE)
_SEPARATOR = re.compile(r"[\s/]+")

_CELLS = ("td", "th")
_TABLE_PARTS = ("table", "caption", "thead", "tbody", "tfoot")
_SITE_NAME = re.compile(r"\s*[_|｜](?![A-Za-z0-9])|\s+[-–—]+\s+")
_HTML = ("text/html", "application/xhtml+xml")
_NO_DATA = ("warcinfo", "request", "metadata", "arc_header")


def read_html(chunks: Iterable[bytes], name: str, encoding: str | None = None) -> Iterator[Frames]:
    """Read a file as one page: yield a frame with one row of PAGE, or one problem.

    Reasons of problems: `too_long` (over LONGEST_PAGE or MOST_NODES), `encoding`, `no_content` (no title or no text).

    Raises:
        FileError: raised by `chunks`.
        MissingExtraError: trafilatura is not installed.
    """
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > LONGEST_PAGE:
            break
    batch = _Batch(name)
    batch.add(1, None, b"".join(parts), None, encoding)
    yield batch.frames()


def read_warc(chunks: Iterable[bytes], name: str, encoding: str | None = None) -> Iterator[Frames]:
    """Read the pages of a decompressed WARC archive as rows of PAGE and problems; `_line` counts its records from 1.

    A page is a response with status 200 and a content type of HTML. Requests and the crawler's notes are skipped; other
    records are problems with the reason `not_a_page`. The remaining reasons are those of `read_html`.

    Raises:
        FileError: raised by `chunks`; or `truncated`, `broken_record`. The pages before the fault are yielded first.
        MissingExtraError: warcio or trafilatura is not installed.
    """
    batch = _Batch(name)
    damage = None
    try:
        for number, record, block in _read_records(chunks):
            if record.rec_type in _NO_DATA:
                continue
            url = record.rec_headers.get_header("WARC-Target-URI")
            status, content_type, page = "", record.content_type or "", b""
            if record.rec_type == "response":
                status, content_type, page = _parse_response(block)
            if status == "200" and content_type.partition(";")[0].strip().lower() in _HTML:
                batch.add(number, url, page, content_type, encoding)
            else:
                detail = " ".join(filter(None, (record.rec_type, status, content_type)))
                batch.reject(number, url or "", "not_a_page", detail)
            if batch.is_full:
                yield batch.frames()
                batch = _Batch(name)
    except FileError as error:
        damage = error
    yield batch.frames()
    if damage:
        raise damage


class _Batch:
    """Collects a file's rows and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.rows: list[tuple[object, ...]] = []
        self.problems: list[tuple[object, ...]] = []
        self.characters = 0

    def add(self, line: int, url: str | None, data: bytes, content_type: str | None, encoding: str | None) -> None:
        try:
            page = _extract_page(data, url, content_type, encoding)
        except FileError as error:
            begin = data[:1_000]
            self.reject(line, url or decode(begin, detect(begin))[:200], error.reason, error.detail)
        else:
            self.rows.append((self.file, line, *page))
            self.characters += sum(len(field or "") for field in page)

    def reject(self, line: int, record: str, reason: str, detail: str) -> None:
        self.problems.append((self.file, line, record.replace("\0", "␀"), reason, detail))

    @property
    def is_full(self) -> bool:
        return len(self.rows) + len(self.problems) >= _BATCH_RECORDS or self.characters >= _BATCH_CHARACTERS

    def frames(self) -> Frames:
        return pl.DataFrame(self.rows, PAGE, orient="row"), pl.DataFrame(self.problems, PROBLEM, orient="row")


def extract_markdown(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """Return a page's title, and its main text as Markdown with headings, lists, tables and code.

    Raises:
        FileError: the page is to be rejected, for the reasons of `read_html`.
        MissingExtraError: trafilatura is not installed.
    """
    _, tree, elements = _load_page(data, None, encoding)
    _, extract = _load_extractor()
    whole = {"favor_precision": False, "favor_recall": True, "include_formatting": True, "include_tables": True}
    try:
        found = extract(tree, fast=elements > MOST_COMPARED, **whole)
    except Exception as error:  # on unusual pages the libraries may raise anything
        raise FileError("no_content", f"{type(error).__name__}: {error}") from error
    if not found or not found.text:
        raise FileError("no_content", "no text")
    return _choose_title(found.title or "", tree.findtext(".//head//title") or ""), found.text


def _extract_page(
    data: bytes, url: str | None, content_type: str | None, encoding: str | None
) -> tuple[str | None, ...]:
    """Extract a page's URL, title, text, date and language. Raises FileError if the page is to be rejected."""
    html, tree, elements = _load_page(data, content_type, encoding)
    _, extract = _load_extractor()
    try:
        _flatten_tables(tree)
        found = extract(tree, url=url, fast=elements > MOST_COMPARED)
    except Exception as error:  # on unusual pages the libraries may raise anything
        raise FileError("no_content", f"{type(error).__name__}: {error}") from error
    title = _choose_title(found.title or "", tree.findtext(".//head//title") or "") if found else ""
    text = (found.text or "").removeprefix(f"{title}\n") if found else ""
    if "\ufffd" in html and "\ufffd" in title + text:
        raise FileError("encoding", "its text contains bytes that are invalid in its encoding")
    # All its bytes were decoded, so U+FFFD comes from references to half a surrogate pair, as in `&#55357;&#56832;`.
    title, text = (part.replace("\ufffd", "").strip() for part in (title, text))
    if not title or not text:
        raise FileError("no_content", "no title" if text else "no text")
    return found.url, title, text, found.date, tree.get("lang")


def _load_page(data: bytes, content_type: str | None, encoding: str | None) -> tuple[str, Any, int]:
    """Return a page's HTML, its tree, and the number of elements. Raises FileError if the page is to be rejected."""
    if len(data) > LONGEST_PAGE:
        raise FileError("too_long", f"more than {LONGEST_PAGE:,} bytes")
    html = _TAG.sub(_drop_flood, join_halves(_decode(data, content_type, encoding)))
    load, _ = _load_extractor()
    try:
        tree = load(html)
        if tree is None:
            raise FileError("no_content", "no HTML")
        elements, attributes = int(tree.xpath("count(//*)")), int(tree.xpath("count(//@*)"))
        if elements + attributes > MOST_NODES:
            raise FileError("too_long", f"{elements:,} elements with {attributes:,} attributes")
    except FileError:
        raise
    except Exception as error:  # on unusual pages the libraries may raise anything
        raise FileError("no_content", f"{type(error).__name__}: {error}") from error
    return html, tree, elements


@cache
def _load_extractor() -> tuple[Callable[[str], Any], Callable[..., Any]]:
    """Import the function that parses a page, and the one that extracts its title and text."""
    try:
        import trafilatura
        from trafilatura.settings import use_config
    except ImportError as error:
        raise MissingExtraError("reading web pages", "web") from error
    for library in ("trafilatura", "htmldate", "courlan"):  # silenced: rejects already report these pages
        logging.getLogger(library).addHandler(logging.NullHandler())
    config = use_config()
    config["DEFAULT"]["MIN_EXTRACTED_SIZE"] = str(SHORTEST_TEXT)
    extract = partial(
        trafilatura.bare_extraction,
        favor_precision=True,  # else short pages are kept whole, with navigation and footer
        include_comments=False,
        with_metadata=True,
        # max_date is today by default: the result would depend on the day.
        date_extraction_params={"original_date": True, "extensive_search": False, "max_date": "2099-12-31"},
        config=config,
    )
    return trafilatura.load_html, extract


def _choose_title(found: str, declared: str) -> str:
    """Choose a page's title, without the name of its site.

    Args:
        found: The title that trafilatura found, often a heading.
        declared: The text of the element `title`. If it ends with `found`, `found` is the site's name, not a title.
    """
    declared = " ".join(declared.split())
    title = declared if declared.endswith(found) else found
    return _SITE_NAME.split(title, maxsplit=1)[0].strip() or found


def _drop_flood(tag: re.Match[str]) -> str:
    """Return the tag, or an empty text if it has more than MOST_ATTRIBUTES."""
    if len(tag[0]) <= 2 * MOST_ATTRIBUTES:
        return tag[0]
    return tag[0] if len(_SEPARATOR.split(_QUOTED.sub(" ", tag[0]))) <= MOST_ATTRIBUTES else ""


def _flatten_tables(tree: Any) -> None:
    """Replace tables with blocks: a row that contains blocks (page layout) becomes a `div`, any other a paragraph."""
    from lxml import etree

    holds_blocks = etree.XPath("boolean(.//table or .//p or .//br or .//div or .//li or .//h1 or .//h2 or .//h3)")
    rows = [(row, holds_blocks(row)) for row in tree.iter("tr")]
    for row, is_box in rows:
        for cell in row.iterchildren(*_CELLS):
            cell.tag = "div" if is_box else "span"
            cell.tail = f"{cell.tail or ''} "
        row.tag = "div" if is_box else "p"
    for part in list(tree.iter(*_TABLE_PARTS, *_CELLS)):
        part.tag = "div"


def _decode(data: bytes, content_type: str | None, encoding: str | None) -> str:
    """Decode a page in the first encoding that decodes all of it, or else in the one that decodes most of it.

    Raises:
        FileError: even in that one, more than DAMAGED_SHARE can't be decoded; or `encoding` is unknown.
    """
    damage: dict[str, float] = {}
    for candidate in [find_codec(encoding) or encoding] if encoding else _guess_encodings(data, content_type):
        if candidate in damage:
            continue
        try:
            text = decode(data, candidate).removeprefix("\ufeff")
        except LookupError as error:
            raise FileError("encoding", f"unknown encoding {candidate!r}; try utf-8, gb18030 or big5") from error
        if "\ufffd" not in text:
            return text
        damage[candidate] = measure_damage(text)
    best = min(damage, key=damage.__getitem__)
    if damage[best] > DAMAGED_SHARE:
        raise FileError("encoding", f"not {' or '.join(damage)}")
    return decode(data, best).removeprefix("\ufeff")


def _guess_encodings(data: bytes, content_type: str | None) -> Iterator[str]:
    """Yield the encodings to try: by byte order mark, UTF-8, declared by the server or the page, detected."""
    yield from (encoding for mark, encoding in _MARKS.items() if data.startswith(mark))
    yield "utf-8"
    served = _CHARSET.search(content_type or "")
    declared = _DECLARATION.search(data, 0, 8_192)
    labels = [served[1] if served else "", declared[1].decode("ascii", "replace") if declared else ""]
    known = [found for label in labels if (found := find_codec(label)) and _ENCODING.fullmatch(found)]
    yield from (found for found in known if found != "cp1252")
    detected = detect(data)
    yield detected
    # Servers declare Latin-1 for anything, and any bytes are valid in it.
    if "cp1252" in known and detected == "utf-8" and measure_damage(decode(data, "utf-8")) > DAMAGED_SHARE:
        yield "cp1252"


def _read_records(chunks: Iterable[bytes]) -> Iterator[tuple[int, Any, bytes]]:
    """Yield each WARC record's number (from 1), the record, and its content, truncated to LONGEST_PAGE."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.limitreader import LimitReader
    except ImportError as error:
        raise MissingExtraError("reading WARC archives", "web") from error
    source = _ChunkFile(chunks)
    # Parsing records would take a cut within HTTP headers for the end of the file.
    records = ArchiveIterator(source, no_record_parse=True)
    records.reader.set_decomp(None)  # it would detect gzip itself, and ignore what it can't unpack
    for number in count(1):
        source.left = _LONGEST_HEADER
        try:
            record = next(records, None)
        except FileError as error:
            raise FileError(error.reason, error.detail, number) from error
        except Exception as error:  # warcio's errors have no base class
            raise FileError("broken_record", f"{type(error).__name__}: {error}", number) from error
        source.left = None
        if records.err_count:
            raise FileError("broken_record", "the previous record is not as long as it says", number)
        if record is None:
            return
        stream = record.raw_stream
        if not isinstance(stream, LimitReader):
            raise FileError("broken_record", "the record does not state its length", number)
        try:
            block = stream.read(LONGEST_PAGE + _CHUNK)
            while stream.read(_CHUNK):
                pass
        except FileError as error:
            raise FileError(error.reason, error.detail, number) from error
        if stream.limit:
            raise FileError("truncated", f"the file ends {stream.limit:,} bytes before the record does", number)
        yield number, record, block


class _ChunkFile:
    """A file over chunks, for warcio. Raises FileError after `left` bytes, since warcio reads headers of any length."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.chunk = memoryview(b"")
        self.left: int | None = None

    def read(self, size: int) -> bytes:
        while not self.chunk and (chunk := next(self.chunks, None)) is not None:
            self.chunk = memoryview(chunk)
        data, self.chunk = bytes(self.chunk[:size]), self.chunk[size:]
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise FileError("broken_record", f"a header of more than {_LONGEST_HEADER:,} bytes")
        return data


def _parse_response(block: bytes) -> tuple[str, str, bytes]:
    """Parse an HTTP response into status, content type and page (cut off if it is longer than LONGEST_PAGE)."""
    from warcio.bufferedreaders import ChunkedDataReader
    from warcio.statusandheaders import StatusAndHeadersParser

    stream = BytesIO(block)
    try:
        headers = StatusAndHeadersParser([], verify=False).parse(stream)
    except EOFError:
        return "", "", b""
    page = stream.read()
    if headers.get_header("Transfer-Encoding", "").lower() == "chunked":
        page = ChunkedDataReader(BytesIO(page)).read()
    bits = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
    for window in bits.get(headers.get_header("Content-Encoding", "").lower(), ()):
        try:
            page = zlib.decompressobj(window).decompress(page, LONGEST_PAGE + 1)
        except zlib.error:  # some crawlers store the decompressed page with the original header
            continue
        break
    return headers.get_statuscode(), headers.get_header("Content-Type", ""), page
