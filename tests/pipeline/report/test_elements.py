"""The building blocks of a page."""

from conan_embedding.pipeline.report.elements import (
    escape_text,
    format_percent,
    format_size,
    render_facts,
    render_table,
)
from report_pages import HOSTILE, Page


def test_shares_and_sizes() -> None:
    assert [format_percent(*pair) for pair in ((0, 0), (0, 9), (9, 9), (1, 9999), (9999, 10000), (1, 3))] == [
        "0.0%", "0.0%", "100.0%", "&lt;0.1%", "&gt;99.9%", "33.3%",
    ]  # fmt: skip
    assert [format_size(count) for count in (0, 999, 999_960, 1_500_000, 2.5e15)] == [
        "0.0 B", "999.0 B", "1.0 MB", "1.5 MB", "2,500.0 TB",
    ]  # fmt: skip


def test_texts_are_escaped_shortened_and_keep_their_order() -> None:
    escaped = escape_text(HOSTILE + "\ud800", 1000)
    assert not set("<>\"'\x00\x1b\u202e\u2066\ud800") & set(escaped)
    assert escaped.startswith("␀␛[31m&lt;/style&gt;")
    assert escaped.endswith("&quot; \ufffdtxt.exe\ufffd\ufffd")
    assert escape_text("答" * 60) == "答" * 60
    assert escape_text("答" * 1_000_000) == "答" * 60 + "…"
    assert escape_text("<" * 61) == "&lt;" * 60 + "…"
    assert escape_text("\u200fשלום") == "\u200fשלום"  # a mark that reorders nothing is part of the text


def test_a_table_is_cut_and_says_so() -> None:
    page = Page(render_table(["a"], [[str(number)] for number in range(101)]))
    assert page.all("th") == ["a", *map(str, range(100))]
    assert page.all("p") == ["The first 100 of 101 are shown."]
    assert not Page(render_table(["a"], [["1"]])).all("p")


def test_facts_of_several_corpora_are_a_table() -> None:
    page = Page(render_facts({"a": {"rows": "1", "loss": "2"}, "b": {"rows": "3"}}))
    assert page.all("th") == ["a", "b", "rows", "loss"]
    assert page.all("td") == ["1", "3", "2", "–"]
