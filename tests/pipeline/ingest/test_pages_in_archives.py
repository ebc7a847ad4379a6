"""Web archives, whole, cut short or broken: their pages and their other records."""

import gzip
import io
import random
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.ingest import html_reader
from conan_embedding.pipeline.ingest.files import FileError, FileSplit, read_chunks
from conan_embedding.pipeline.ingest.html_reader import LONGEST_PAGE, PAGE, read_warc
from conan_embedding.pipeline.ingest.problems import PROBLEM
from conan_embedding.schemas.errors import MissingExtraError
from web_pages import BODY, EMPTY, PARAGRAPHS, document

for library in ("trafilatura", "warcio"):
    pytest.importorskip(library, reason="the extra [web] is not installed")

HTML_TYPE = ("Content-Type", "text/html; charset=utf-8")


def page_of(number: int) -> bytes:
    return document(BODY + f"<p>这是第{number}页的最后一段，内容到此结束。</p>").encode()


class Archive:
    """Writes an archive with warcio; `ends` are the offsets after its records."""

    def __init__(self, packed: bool) -> None:
        from warcio.warcwriter import WARCWriter

        self.file = io.BytesIO()
        self.writer = WARCWriter(self.file, gzip=packed)
        self.ends: list[int] = []

    def record(self, kind: str, url: str, body: bytes, status: str = "200 OK", headers: Any = (HTML_TYPE,)) -> None:
        from warcio.statusandheaders import StatusAndHeaders

        http = StatusAndHeaders(status, list(headers), protocol="HTTP/1.1") if kind == "response" else None
        self.writer.write_record(self.writer.create_warc_record(url, kind, payload=io.BytesIO(body), http_headers=http))
        self.ends.append(self.file.tell())

    def response(self, number: int, **given: Any) -> None:
        self.record("response", f"http://a.cn/{number}", given.pop("body", page_of(number)), **given)


def read_pages(data: bytes, size: int = 1 << 16) -> tuple[pl.DataFrame, pl.DataFrame, FileError | None]:
    """Read an archive in chunks of a size; return rows, problems and the error that ended it."""
    rows, problems = [pl.DataFrame(schema=PAGE)], [pl.DataFrame(schema=PROBLEM)]
    try:
        for good, bad in read_warc((data[at : at + size] for at in range(0, len(data), size)), "a.warc"):
            rows.append(good)
            problems.append(bad)
    except FileError as error:
        return pl.concat(rows), pl.concat(problems), error
    return pl.concat(rows), pl.concat(problems), None


def chunk(body: bytes) -> bytes:
    parts = [body[at : at + 700] for at in range(0, len(body), 700)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_every_record_is_a_page_a_problem_or_a_note() -> None:
    archive = Archive(packed=False)
    archive.record("warcinfo", "", b"software: x\r\n", headers=())
    archive.record("request", "http://a.cn/", b"GET / HTTP/1.1\r\n\r\n")
    archive.response(3)
    archive.response(4, body=gzip.compress(page_of(4)), headers=(HTML_TYPE, ("Content-Encoding", "gzip")))
    archive.response(
        5,
        body=chunk(zlib.compress(page_of(5))),
        headers=(HTML_TYPE, ("Content-Encoding", "deflate"), ("Transfer-Encoding", "chunked")),
    )
    archive.response(6, headers=(HTML_TYPE, ("Content-Encoding", "gzip")))  # stored decompressed
    archive.response(7, status="404 Not Found")
    archive.response(8, status="301 Moved", body=b"", headers=(("Location", "/x"),))
    archive.response(9, body=b"\x89PNG", headers=(("Content-Type", "image/png"),))
    archive.record("metadata", "http://a.cn/", b"fetchTimeMs: 9\r\n")
    archive.record("resource", "http://a.cn/robots.txt", b"User-agent: *\r\n")
    archive.response(12, body=EMPTY.encode())
    gb = page_of(13).decode().encode("gbk")
    archive.response(13, body=gb, headers=(("Content-Type", "Text/HTML;charset=GB2312"),))
    archive.response(
        14, body=zlib.compress(b"<p>" + b" " * 2 * LONGEST_PAGE), headers=(HTML_TYPE, ("Content-Encoding", "deflate"))
    )
    archive.response(15, body=b"<p>" + b" " * 2 * LONGEST_PAGE)
    archive.response(16)

    rows, problems, ended = read_pages(archive.file.getvalue())
    assert ended is None
    assert rows["_line"].to_list() == [3, 4, 5, 6, 13, 16]
    assert rows["url"].to_list() == [f"http://a.cn/{number}" for number in rows["_line"]]
    last = [f"这是第{number}页的最后一段，内容到此结束。" for number in rows["_line"]]
    assert rows["text"].to_list() == ["\n".join([*PARAGRAPHS, line]) for line in last]
    assert problems.select("line", "record", "reason", "detail").rows()[:4] == [
        (7, "http://a.cn/7", "not_a_page", "response 404 text/html; charset=utf-8"),
        (8, "http://a.cn/8", "not_a_page", "response 301"),
        (9, "http://a.cn/9", "not_a_page", "response 200 image/png"),
        (11, "http://a.cn/robots.txt", "not_a_page", problems["detail"][3]),
    ]
    assert problems["detail"][3].startswith("resource")
    assert problems.select("line", "reason").rows()[4:] == [(12, "no_content"), (14, "too_long"), (15, "too_long")]


@pytest.fixture(scope="module")
def archive() -> bytes:
    made = Archive(packed=False)
    for number in range(1, 7):
        made.response(number)
    return made.file.getvalue()


@pytest.mark.parametrize("size", [1, 1_000, 1 << 24])
def test_chunks_of_any_size_hold_the_same_pages(archive: bytes, size: int) -> None:
    rows, problems, ended = read_pages(archive, size)
    assert rows["_line"].to_list() == [1, 2, 3, 4, 5, 6] and problems.is_empty() and ended is None


@pytest.mark.parametrize("packed", [False, True])
def test_pages_before_a_cut_are_kept(packed: bool, tmp_path: Any) -> None:
    made = Archive(packed)
    for number in range(1, 4):
        made.response(number)
    whole = made.file.getvalue()
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    drawn = random.Random(0).sample(range(1, len(whole)), 30)
    for cut in {*drawn, *made.ends, *(end - 1 for end in made.ends), *(end + 9 for end in made.ends[:-1])}:
        path.write_bytes(whole[:cut])
        rows: list[int] = []
        ended = None
        try:
            for good, bad in read_warc(read_chunks(FileSplit(str(path))), "a"):
                rows += good["_line"].to_list()
                assert bad.is_empty()
        except FileError as error:
            ended = error
        blank = 0 if packed else 4  # the empty lines after a record
        complete = [number for number, end in enumerate(made.ends, 1) if cut >= end - blank]
        assert rows == complete or (packed and rows == [*complete, len(complete) + 1])
        between = any(end - blank <= cut <= end for end in made.ends)
        assert (ended is None) == between or (packed and ended is not None)
        if ended:
            assert ended.reason in ("truncated", "broken_record") and ended.line == len(rows) + 1


@pytest.mark.parametrize(
    "damage",
    [
        b"no record at all\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: response\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: -5\r\n\r\nabcde\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a\r\nContent-Length: 2\r\n\r\nabcde\r\n\r\n",
        b"WARC/1.0\r\n" + b"X: y\r\n" * 500_000,
        b"WARC/1.0\r\nX: " + b"y" * 8_000_000,
        bytes(3_000_000),
    ],
)
@pytest.mark.timeout(60)
def test_pages_before_a_broken_record_are_kept(archive: bytes, damage: bytes) -> None:
    rows, _, ended = read_pages(archive + damage + archive)
    assert rows["_line"].to_list()[:6] == [1, 2, 3, 4, 5, 6]
    assert ended is not None and ended.reason == "broken_record" and ended.line is not None and ended.line >= 7


def test_mutated_archives_end_and_keep_what_was_before(archive: bytes) -> None:
    drawn = random.Random(1)
    starts = [at for at in range(len(archive)) if archive.startswith(b"WARC/1.0", at)]
    for _ in range(60):
        at = drawn.randrange(len(archive))
        broken = archive[:at] + drawn.randbytes(drawn.randrange(1, 5)) + archive[at + drawn.randrange(5) :]
        rows, _, _ = read_pages(broken)
        whole = sum(start <= at for start in starts) - 1
        assert rows["_line"].to_list()[:whole] == list(range(1, whole + 1))


def test_batches_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Archive(packed=False)
    for number in range(1, 4_502):
        made.response(number, body=b"", headers=(("Content-Type", "image/png"),))
    sizes = [bad.height for _, bad in read_warc([made.file.getvalue()], "a")]
    assert sizes == [2_000, 2_000, 501]
    pages_made = Archive(packed=False)
    for number in range(1, 5):
        pages_made.response(number)
    monkeypatch.setattr(html_reader, "_BATCH_CHARACTERS", 300)
    assert [good.height for good, _ in read_warc([pages_made.file.getvalue()], "a")] == [2, 2, 0]


def test_what_the_file_raises_comes_after_its_pages(archive: bytes) -> None:
    def chunks() -> Iterator[bytes]:
        yield archive
        raise FileError("too_large", "unpacks without end")

    rows = []
    with pytest.raises(FileError, match="without end") as caught:
        rows.extend(good for good, _ in read_warc(chunks(), "a"))
    assert caught.value.reason == "too_large" and sum(good.height for good in rows) == 6


@pytest.mark.parametrize("library", ["trafilatura", "warcio.archiveiterator"])
def test_a_missing_extra_is_named(library: str, monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    html_reader._load_extractor.cache_clear()
    with pytest.raises(MissingExtraError, match=r"conan-embedding\[web\]"):
        list(read_warc([archive], "a"))
