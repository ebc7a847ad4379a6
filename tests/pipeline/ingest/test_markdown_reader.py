"""Markdown documents as a title and the text after it."""

from base64 import b64encode
from pathlib import Path
from time import process_time

import pytest
from conan_embedding.pipeline.ingest import markdown_reader
from conan_embedding.pipeline.ingest.markdown_reader import find_heading, split_title
from conan_embedding.pipeline.ingest.shown_records import BASE64
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples
from read_files import Reader, reader


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


def test_a_document(read: Reader) -> None:
    found = read("# 题\r\n\r\n文", "a.md", read="markdown")
    assert found.values("query", "positive", "negatives", "meta", "text", "_line") == [
        ("题", "\n\n文", [], {"title": "题"}, "# 题\n\n文", 1)
    ]
    assert read("", "b.md", read="markdown").values("query", "positive") == [(None, "")]


def test_a_document_with_broken_bytes_is_rejected_with_its_text(read: Reader) -> None:
    data = "# 题目在这里\n\n今天天气很好。".encode() + b"\xff"
    found = read(data, "a.md", read="markdown")
    assert (found.rows, found.problems) == ([], [(1, "encoding", BASE64 + b64encode(data).decode())])


TITLES = [
    ("# 题\n\n文。\n\n## 节\n\n更多", "题", "文。\n\n## 节\n\n更多"),
    ("序。\n\n### 题 ###\n文", "题", "文"),
    ("没有题目。\n\n只有文。", None, "没有题目。\n\n只有文。"),
    ("", None, ""),
    ("#\n\n# 题\n文", "题", "文"),  # a heading without text
    # underlined
    ("题\n===\n\n文", "题", "文"),
    ("题\n-----\n文", "题", "文"),
    ("[#]: author: (x)\n\n题\n======\n文", "题", "文"),
    ("一\n二\n===\n文", "一 二", "文"),
    ("- 项\n---\n\n# 题\n文", "题", "文"),
    ("甲 | 乙\n--- | ---\n1 | 2\n\n# 题\n文", "题", "文"),
    (f"{'长' * 1001}\n---\n\n# 题\n文", "题", "文"),
    # not headings
    ("```bash\n# install\n```\n\n# 题\n\n文", "题", "文"),
    ("~~~~\n# a\n~~~\n# b\n~~~~\n# 题\n文", "题", "文"),
    ("```\n# 没有结束\n\n# 也没有", None, "```\n# 没有结束\n\n# 也没有"),
    ("    # 代码\n\n# 题\n文", "题", "文"),
    ("> # 引文\n\n- # 列表\n\n# 题\n文", "题", "文"),
    ("<!--\n# 注释\n-->\n\n# 题\n文", "题", "文"),
    ("<script>\n# a\n</script>\n\n# 题\n文", "题", "文"),
    # markup in titles
    ("# **题** *一* `码` ~\n文", "题 一 码 ~", "文"),
    ("# [题](http://a.cn) ![徽章](b.svg)\n文", "题", "文"),
    ("# ![题](b.png)\n文", "题", "文"),
    ("# [题][1]\n文\n\n[1]: http://a.cn", "题", "文\n\n[1]: http://a.cn"),
    ("# 甲 &amp; 乙 &#55357;&#56832; \\*\n文", "甲 & 乙 😀 *", "文"),
    ("# <a name='a'></a>题 <!-- omit in toc -->\n文", "题", "文"),
    ("# List<String> 与 vector<int><sup>2</sup><BR>题\n文", "List<String> 与 vector<int>2 题", "文"),
    ("# 题 {#id .class}\n文", "题", "文"),
    # without the space
    ("#题目\n\n文", "题目", "文"),
    ("##题目\n文\n\n## 节", "题目", "文\n\n## 节"),
    ("#标签 #另一个\n\n# 题\n文", "题", "文"),
    ("#话题#文\n\n# 题\n文", "题", "文"),
    ("#include <a>\n\n# 题\n文", "题", "文"),
    ("#标签 不是题目", None, "#标签 不是题目"),
    # HTML
    ("<h1 align='center'>某 <b>题</b>&amp;</h1>\n<p>简介</p>\n\n文", "某 题&", "<p>简介</p>\n\n文"),
    ("<div>\n<h2></h2><h3>题\n二</h3>尾\n</div>", "题 二", "尾\n</div>"),
    ("<div>\n\n# 题\n\n</div>", "题", "</div>"),
    ("<h1><img src='a.png'></h1>\n\n# 题\n文", "题", "文"),
    # front matter
    ("---\ntitle: 题\ndate: 2020\n---\n文", "题", "文"),
    ("---\ntitle: '题'\n---\n\n## 节\n\n文", "题", "## 节\n\n文"),
    ("---\ndate: 2020\n---\n# 题\n文", "题", "文"),
    ("---\ntitle: ''\n---\n# 题\n文", "题", "文"),
    ("---\ntitle: [甲, 乙]\n---\n# 题\n文", "题", "文"),
    ("---\n\n# 题\n\n文\n\n---\n\n尾", "题", "文\n\n---\n\n尾"),
]


@pytest.mark.parametrize(("text", "title", "body"), TITLES)
def test_the_title(read: Reader, text: str, title: str | None, body: str) -> None:
    ((query, positive),) = read(text, "a.md", read="markdown").values("query", "positive")
    assert (query, positive.strip()) == (title, body)


@pytest.mark.parametrize(("text", "title", "body"), [case for case in TITLES if case[1] and case[0][:1] not in "-"])
def test_the_title_far_below(text: str, title: str, body: str) -> None:
    """Only the beginning of a document is parsed at first."""
    for size in (400, 600, 9_000):
        before = "文字。\n\n" * (size // 5)
        found, _, after = split_title(before + text)
        assert (found, after.strip()) == (title, body)


parts = [
    "# 题\n",
    "```\n",
    "文\n",
    "\n",
    "===\n",
    "- 项\n",
    "<h1>头</h1>\n",
    "<div>\n",
    "<!--",
    "-->\n",
    "> ",
    "  ",
    "#节\n",
]


@max_examples(60)
@given(st.lists(st.sampled_from(parts), max_size=16))
def test_parsing_beginnings_first_changes_nothing(parts: list[str]) -> None:
    text = "".join(parts)
    found = []
    for sizes in ((), (2, 5, 12, 25, 50), range(100)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(markdown_reader, "_BEGINNINGS", sizes)
            found.append(find_heading(text))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "text",
    [
        ">" * 100_000,
        "- " * 50_000,
        "# " + "[" * 900,
        "`" * 100_000,
        "|" * 50_000 + "\n" + "|-" * 25_000,
        "<h1>" * 50_000,
    ],
    ids=["quotes", "lists", "brackets", "ticks", "table", "headings"],
)
def test_hostile_documents_end(text: str) -> None:
    begun = process_time()
    split_title(f"{text}\n\n# 题\n文")
    assert process_time() - begun < 5
