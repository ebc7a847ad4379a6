"""Lines of text, and Markdown documents as a title and the text after it."""

from pathlib import Path

import pytest
from read_files import Reader, reader


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


def test_text(read: Reader) -> None:
    found = read("甲 乙\n\n\t\n丙\n", "a.txt", read="text")
    assert found.values("line", "line_number") == [("甲 乙", 1), ("丙", 4)]


def test_a_markdown_document(read: Reader) -> None:
    assert read("# 题\r\n\r\n文", "a.md", read="markdown").values("query", "positive", "_line") == [("题", "\n\n文", 1)]
    assert read("", "b.md", read="markdown").values("query") == [None]


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("# 题\n\n文。\n\n## 节\n\n更多", "题", "文。\n\n## 节\n\n更多"),
        ("序。\n\n### 题 ###\n文", "题", "文"),
        ("题\n===\n\n文", "题", "文"),
        ("题\n-----\n文", "题", "文"),
        ("[#]: author: (x)\n\n题\n======\n文", "题", "文"),
        ("# **题**\n文", "题", "文"),
        ("---\ntitle: 题\ndate: 2020\n---\n文", "题", "文"),
        ("---\ntitle: '题'\n---\n\n## 节\n\n文", "题", "## 节\n\n文"),
        ("---\ndate: 2020\n---\n# 题\n文", "题", "文"),
        ("没有题目。\n\n只有文。", None, "没有题目。\n\n只有文。"),
        ("#标签 不是题目", None, "#标签 不是题目"),
        ("", None, ""),
    ],
)
def test_the_title_of_a_markdown_document(read: Reader, text: str, title: str | None, body: str) -> None:
    ((query, positive),) = read(text, "a.md", read="markdown").values("query", "positive")
    assert (query, positive.strip()) == (title, body)
