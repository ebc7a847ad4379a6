"""Web pages: what is extracted as content, encodings, hostile pages."""

import random
from typing import Any

import pytest
from conan_embedding.pipeline.ingest import html_reader
from conan_embedding.pipeline.ingest.html_reader import LONGEST_PAGE, PAGE, read_html
from conan_embedding.pipeline.ingest.problems import PROBLEM
from web_pages import BODY, EMPTY, PARAGRAPHS, TITLE, document

for library in ("trafilatura", "warcio"):
    pytest.importorskip(library, reason="the extra [web] is not installed")

RELATED = "<div class='related'><ul>" + "<li><a href='/r'>相关新闻看看怎么样</a></li>" * 6 + "</ul></div>"


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
    """Return the row of a page, or its problem."""
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
    lines = ["恒記者在臺灣各地採訪時看到，農民們正在準備春耕，這裏今年的天氣比往年要暖和許多。" for _ in range(3)]
    lines = [f"{place}：{line}" for place, line in zip(("臺北", "臺中", "高雄"), lines, strict=True)]
    page = document("".join(f"<p>{line}</p>" for line in lines), declaration + "<title>農民準備春耕</title>")
    row, _ = outcome(page.encode("cp950", "ignore"))
    assert row is not None and (row["title"], row["text"]) == ("農民準備春耕", "\n".join(lines))


def test_latin_1_is_believed_last() -> None:
    """Servers declare it for anything."""
    declared = f"<meta charset=iso-8859-1><title>{TITLE}</title>"
    for encoding in ("gbk", "utf-8"):
        row, _ = outcome(document(BODY, declared).encode(encoding))
        assert row is not None and row["title"] == TITLE
    french = "<p>Aujourd’hui, il fait très beau et nous sommes allés nous promener à la forêt.</p>" * 3
    head = "<head><meta charset=iso-8859-1><title>Une belle journée</title></head>"
    row, _ = outcome(f"<html>{head}<body>{french}</body></html>".encode("cp1252"))
    assert row is not None and row["title"] == "Une belle journée" and "très beau" in row["text"]


def test_half_characters_are_joined_or_go() -> None:
    row, _ = outcome(
        document(BODY.replace("有序展开。", "有序展开。&#55357;&#56832;&#xD800;"), f"<title>{TITLE}</title>")
    )
    assert row is not None and row["text"] == "\n".join(PARAGRAPHS).replace("有序展开。", "有序展开。😀")


def test_text_that_is_not_in_the_encoding_is_a_problem() -> None:
    page = document(BODY, f"<title>{TITLE}</title>")
    assert reason(page.encode("gbk"), encoding="utf-8") == "encoding"
    assert reason(page, encoding="no-such") == "encoding"
    assert reason(page.encode().replace("冬小麦".encode(), b"\xe5\x86")) == "encoding"
    assert outcome(page.encode().replace("关于我们".encode(), b"\xe5\x86"))[0] is not None  # outside the content


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
    assert html_reader._TAG.sub(html_reader._drop_flood, long_value) == long_value
