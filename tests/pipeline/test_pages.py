"""Pages: what is content and what is not, encodings, hostile pages, and archives that are whole, cut or broken."""

import gzip
import io
import random
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline import pages
from conan_embedding.pipeline.files import FileError, Stretch, read_chunks
from conan_embedding.pipeline.pages import LONGEST_PAGE, PAGE, read_html, read_warc
from conan_embedding.pipeline.tables import PROBLEM
from conan_embedding.pipeline.text import MissingExtraError

for library in ("trafilatura", "warcio"):
    pytest.importorskip(library, reason="the extra [web] is not installed")

PARAGRAPHS = [
    "据记者三月五日报道，今年要扎实推进乡村振兴，稳住农业基本盘。记者在河北多地采访时看到，春耕备耕正在有序展开。",
    "“今年我们村的冬小麦长势不错。”村民说，去年秋天播种时墒情好，加上技术员多次下地指导，苗情比往年要好一成以上。",
    "与此同时，当地还推广了水肥一体化技术。这项技术每亩可节水四十立方米，节肥两成左右，受到农户的欢迎。",
]
TITLE = "河北春耕有序展开"
NAVIGATION = "".join(f"<li><a href='/{place}'>{place}频道</a></li>" for place in ("首页", "财经", "体育", "科技"))
NAVIGATION = f"<div class='nav'><ul>{NAVIGATION}</ul></div>"
FOOTER = "<div class='footer'><p>关于我们|广告服务</p><p>Copyright &copy; 1996-2024 版权所有 京ICP证000007号</p></div>"
RELATED = "<div class='related'><ul>" + "<li><a href='/r'>相关新闻看看怎么样</a></li>" * 6 + "</ul></div>"
BODY = "".join(f"<p>　　{paragraph}</p>" for paragraph in PARAGRAPHS)


def document(body: str, head: str = f"<title>{TITLE}_新闻中心_某某网</title>") -> str:
    return f"<!DOCTYPE html><html lang='zh-CN'><head>{head}</head><body>{NAVIGATION}{body}{FOOTER}</body></html>"


def post(writer: str, text: str) -> str:
    return (
        f"<table><tr><td class='side'><div>{writer}</div><p>积分 128</p></td>"
        f"<td class='post'><table><tr><td class='t_f'>{text}</td></tr></table></td></tr></table>"
    )


LAYOUTS = {
    "news": document(
        f"<div class='main'><h1>{TITLE}</h1><div class='info'>2024年03月05日 来源：某社 <a>评论(35)</a></div>"
        f"<div id='content'>{BODY}</div>{RELATED}</div><div class='comment'><p>网友甲：写得真好</p></div>"
    ),
    "blog": document(
        f"<header><h1>某某网</h1></header><article class='post'><h2 class='entry-title'>{TITLE}</h2>{BODY}</article>"
        "<section id='comments'><ol><li>张三：学到了，谢谢博主分享</li></ol></section>",
        f"<title>{TITLE} | 某某网</title>",
    ),
    "forum": document(f"<h1>{TITLE}</h1>" + post("老农", "".join(PARAGRAPHS)) + post("技术员", "网友甲路过")),
    "old": document(
        "<table><tr><td><font size=5>" + TITLE + "</font><br>" + "<br><br>".join(PARAGRAPHS) + "</td></tr></table>",
        f"<title>{TITLE} - 某某网</title>",
    ),
    "bare": document("".join(f"<div><span>{paragraph}</span></div>" for paragraph in PARAGRAPHS)),
}


def outcome(page: bytes | str, **given: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The row of a page, or its problem."""
    data = page.encode() if isinstance(page, str) else page
    ((rows, problems),) = read_html([data[:100], data[100:]], "page.html", **given)
    assert rows.schema == PAGE and problems.schema == PROBLEM and rows.height + problems.height == 1
    return (rows.row(0, named=True), None) if rows.height else (None, problems.row(0, named=True))


def reason(page: bytes | str, **given: str) -> str:
    row, problem = outcome(page, **given)
    assert problem is not None, row
    return str(problem["reason"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_content_is_kept_and_the_rest_is_not(layout: str) -> None:
    row, _ = outcome(LAYOUTS[layout])
    assert row is not None
    assert (row["_file"], row["_line"], row["title"], row["language"]) == ("page.html", 1, TITLE, "zh-CN")
    assert all(paragraph in row["text"] for paragraph in PARAGRAPHS)
    assert not any(other in row["text"] for other in ("频道", "版权", "相关新闻", "网友甲", "张三", "|", TITLE))


def test_a_table_of_data_is_lines() -> None:
    table = "".join(f"<tr><td>{place}</td><td>{price}</td></tr>" for place, price in (("河北", 2650), ("山东", 2680)))
    row, _ = outcome(document(f"<div><h1>{TITLE}</h1>{BODY}<table>{table}</table></div>"))
    assert row is not None and row["text"].endswith("\n河北 2650\n山东 2680")


def test_what_a_page_says_of_itself() -> None:
    meta = (
        f"<title>{TITLE}</title><link rel='canonical' href='https://news.example.cn/a.html'>"
        "<meta property='article:published_time' content='2024-03-05T10:00:00+08:00'>"
    )
    row, _ = outcome(document(BODY, meta))
    assert row is not None and (row["url"], row["date"]) == ("https://news.example.cn/a.html", "2024-03-05")


@pytest.mark.parametrize(
    ("declared", "shown"),
    [
        (f"{TITLE}_新闻中心_某某网", TITLE),
        (f"{TITLE} - 某某网", TITLE),
        (f"{TITLE}｜某某网", TITLE),
        ("Python 的 snake_case 命名", "Python 的 snake_case 命名"),
        ("A-B测试与2023-2024年", "A-B测试与2023-2024年"),
        ("_某某网", "_某某网"),
    ],
)
def test_titles_lose_the_name_of_their_site(declared: str, shown: str) -> None:
    row, _ = outcome(document(BODY, f"<title>{declared}</title>"))
    assert row is not None and row["title"] == shown


GBK = "<meta http-equiv='Content-Type' content='text/html; charset=gb2312'>"
BIG5 = "<meta charset=big5>"
UTF8 = "<meta charset='utf-8'>"


@pytest.mark.parametrize(
    ("encoding", "declaration", "given"),
    [
        ("gbk", GBK, {}),
        ("gbk", "", {}),
        ("gbk", UTF8, {}),
        ("gb18030", GBK, {}),
        ("utf-8", "", {}),
        ("utf-8", GBK, {}),
        ("utf-8-sig", "", {}),
        ("utf-16", "", {}),
        ("gbk", "", {"encoding": "gbk"}),
        ("utf-16-le", UTF8, {"encoding": "utf-16-le"}),
    ],
)
def test_simplified_pages_in_any_encoding(encoding: str, declaration: str, given: dict[str, str]) -> None:
    extra = "㐀𠀀" if encoding == "gb18030" else ""
    page = document(BODY + f"<p>{extra}完，谢谢阅读。</p>", f"{declaration}<title>{TITLE}</title>")
    row, _ = outcome(page.encode(encoding), **given)
    assert row is not None and row["title"] == TITLE
    assert row["text"] == "\n".join([*PARAGRAPHS, f"{extra}完，谢谢阅读。"])


@pytest.mark.parametrize("declaration", [BIG5, "", UTF8])
def test_traditional_pages_in_big5(declaration: str) -> None:
    lines = ["記者在臺灣各地採訪時看到，農民們正在準備春耕，今年的天氣比往年要暖和許多。" for _ in range(3)]
    lines = [f"{place}：{line}" for place, line in zip(("臺北", "臺中", "高雄"), lines, strict=True)]
    page = document("".join(f"<p>{line}</p>" for line in lines), declaration + "<title>農民準備春耕</title>")
    row, _ = outcome(page.encode("big5", "ignore"))
    assert row is not None and (row["title"], row["text"]) == ("農民準備春耕", "\n".join(lines))


def test_half_characters_go() -> None:
    row, _ = outcome(
        document(BODY.replace("有序展开。", "有序展开。&#55357;&#56832;&#xD800;"), f"<title>{TITLE}</title>")
    )
    assert row is not None and row["text"] == "\n".join(PARAGRAPHS)


def test_text_that_is_not_in_the_encoding_is_a_problem() -> None:
    page = document(BODY, f"<title>{TITLE}</title>")
    assert reason(page.encode("gbk"), encoding="utf-8") == "encoding"
    assert reason(page, encoding="no-such") == "encoding"
    assert reason(page.encode().replace("冬小麦".encode(), b"\xe5\x86")) == "encoding"
    assert outcome(page.encode().replace("关于我们".encode(), b"\xe5\x86"))[0] is not None  # beside the content


EMPTY = "<html><head><title>空</title></head><body><div></div></body></html>"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", "no_content"),
        (" \n", "no_content"),
        ("只有文字，没有标签。" * 30, "no_content"),
        ('{"json": [1, 2]}', "no_content"),
        (b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(50_000), None),
        (EMPTY, "no_content"),
        (document(BODY, ""), "no_content"),
        (document("<ul>" + "<li><a href='/n'>新闻标题：春耕有序展开</a></li>" * 30 + "</ul>"), "no_content"),
        (b"<html>" + b" " * LONGEST_PAGE, "too_long"),
        (document("<br>" * 200_000), "too_long"),
    ],
)
def test_what_is_no_page(page: bytes | str, expected: str | None) -> None:
    assert reason(page) in ({expected} if expected else {"no_content", "encoding"})


def test_a_rejected_page_shows_its_beginning() -> None:
    _, problem = outcome(("\0开始" + "无标签" * 500).encode("gbk"))
    assert problem is not None and problem["record"].startswith("␀开始无标签") and len(problem["record"]) == 200


DEEP = 100_000
HOSTILE = {
    "boxes": "<div>" * DEEP,
    "bold": "<b>" * DEEP,
    "tables": "<table><tr><td>" * DEEP,
    "lists": "<ul><li>文" * DEEP,
    "side by side": "<table><tr><td>甲</td></tr></table>" * (DEEP // 40),
    "paragraphs": "<div><p>甲乙丙</p></div>" * (DEEP // 40),
    "attributes": "<p " + " ".join(f"a{number}=x" for number in range(4 * DEEP)) + ">",
    "attributes behind quotes": "<p x='>' y=\"<\" " + " ".join(f"a{number}" for number in range(4 * DEEP)) + ">",
    "slashes": "<p/" + "/".join(f"a{number}" for number in range(4 * DEEP)) + ">",
    "long attribute": "<p class='" + "x" * 20 * DEEP + "'>",
    "open quotes": "<a b='" * DEEP,
    "open tags": "<" * 10 * DEEP,
    "open comments": "<!--x" * DEEP,
    "declarations": "<meta " * DEEP,
    "title": "<title>" + "a - " * DEEP + "</title>",
    "nested JSON": "<script type='application/ld+json'>" + '{"@graph":' * DEEP + "</script>",
    "NUL bytes": "\0" * DEEP,
    "half characters": "&#xD800;&#xDFFF;&#0;&#x110000;" * 100,
    "codecs": "<meta charset=punycode><meta charset=unicode_escape>",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_end(name: str) -> None:
    page = f"<html><head><title>{TITLE}</title></head><body>{HOSTILE[name]}{BODY}"
    row, problem = outcome(page.encode("gbk"))
    assert row is not None or (problem is not None and problem["reason"] in ("no_content", "too_long"))


def test_an_attribute_flood_costs_its_tag_alone() -> None:
    flood = "<p " + " ".join(f"a{number}=x" for number in range(5_000)) + ">"
    row, _ = outcome(document(flood + BODY))
    assert row is not None and row["text"] == "\n".join(PARAGRAPHS)
    long_value = f"<img alt='一 {'= > ' * 2_000}'>"
    assert pages._TAG.sub(pages._without_flood, long_value) == long_value


# Archives.

HTML_TYPE = ("Content-Type", "text/html; charset=utf-8")


def page_of(number: int) -> bytes:
    return document(BODY + f"<p>这是第{number}页的最后一段，内容到此结束。</p>").encode()


class Archive:
    """What an archive is to hold, written by warcio; `ends` are the offsets behind its records."""

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


def found(data: bytes, size: int = 1 << 16) -> tuple[pl.DataFrame, pl.DataFrame, FileError | None]:
    """Rows, problems and what ended an archive, handed over in chunks of a size."""
    rows, problems = [pl.DataFrame(schema=PAGE)], [pl.DataFrame(schema=PROBLEM)]
    try:
        for good, bad in read_warc((data[at : at + size] for at in range(0, len(data), size)), "a.warc"):
            rows.append(good)
            problems.append(bad)
    except FileError as error:
        return pl.concat(rows), pl.concat(problems), error
    return pl.concat(rows), pl.concat(problems), None


def chunked(body: bytes) -> bytes:
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
        body=chunked(zlib.compress(page_of(5))),
        headers=(HTML_TYPE, ("Content-Encoding", "deflate"), ("Transfer-Encoding", "chunked")),
    )
    archive.response(6, headers=(HTML_TYPE, ("Content-Encoding", "gzip")))  # stored unpacked
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

    rows, problems, ended = found(archive.file.getvalue())
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
    rows, problems, ended = found(archive, size)
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
            for good, bad in read_warc(read_chunks(Stretch(str(path))), "a"):
                rows += good["_line"].to_list()
                assert bad.is_empty()
        except FileError as error:
            ended = error
        blank = 0 if packed else 4  # the empty lines behind a record
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
    rows, _, ended = found(archive + damage + archive)
    assert rows["_line"].to_list()[:6] == [1, 2, 3, 4, 5, 6]
    assert ended is not None and ended.reason == "broken_record" and ended.line is not None and ended.line >= 7


def test_mutated_archives_end_and_keep_what_was_before(archive: bytes) -> None:
    drawn = random.Random(1)
    starts = [at for at in range(len(archive)) if archive.startswith(b"WARC/1.0", at)]
    for _ in range(60):
        at = drawn.randrange(len(archive))
        broken = archive[:at] + drawn.randbytes(drawn.randrange(1, 5)) + archive[at + drawn.randrange(5) :]
        rows, _, _ = found(broken)
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
    monkeypatch.setattr(pages, "_BATCH_CHARACTERS", 300)
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
    pages._extractor.cache_clear()
    with pytest.raises(MissingExtraError, match=r"conan-embedding\[web\]"):
        list(read_warc([archive], "a"))
