"""The funnel: its figures are those of the rows."""

from pathlib import Path

from conan_embedding.pipeline.report.elements import format_size
from conan_embedding.pipeline.report.funnel import render_funnel
from report_pages import Page, facts_of, render, rows_of, write_ingest


def test_figures_are_those_of_the_rows(scored_corpus: Path) -> None:
    html = render(render_funnel, scored_corpus)
    low = 3  # scores 0.31, 0.34, 0.37
    text = {
        "web": sum(len((f"问题{number}" + "答" * (number + 1)).encode()) for number in range(low, 12)),
        "news": sum(len((f"标题{number}" + "文" * 40).encode()) for number in range(8)),
    }
    stages = rows_of(html, "Funnel")
    assert [row[:4] for row in stages] == [
        ["ingest", "33", "2", "31"],
        ["filter", "31", "11", "20"],
        ["dedup", "20", "0", "20"],
        ["score", "20", "3", "17"],
    ]
    assert stages[3][4:] == [f"{17 / 33:.1%}", format_size(sum(text.values())), "2"]
    assert rows_of(html, "By source") == [
        ["web", "23", "12", "12", "9", "39.1%", format_size(text["web"])],
        ["news &amp; &lt;b&gt;", "8", "8", "8", "8", "100.0%", format_size(text["news"])],
    ]
    assert [row[0] for row in rows_of(html, "By category")] == ["web page", "news"]
    assert facts_of(html)["rows kept"] == "17 after score"


def test_compared_corpora_are_next_to_each_other(scored_corpus: Path, tmp_path: Path, pair) -> None:
    write_ingest(tmp_path / "other", [pair("问题", "答", "web"), pair("问题", "答" * 4, "own")])
    html = render(render_funnel, scored_corpus, tmp_path / "other")
    stages = rows_of(html, "Funnel</h2>.*?<thead>.*?rows out")
    assert stages == [
        ["ingest", "31", "93.9%", "2", "100.0%"],
        ["filter", "20", "60.6%", "–", "–"],
        ["dedup", "20", "60.6%", "–", "–"],
        ["score", "17", "51.5%", "–", "–"],
    ]
    sources = {row[0]: row[1:] for row in rows_of(html, "By source")}
    assert sources["web"] == ["23", "9", "39.1%", "281.0 B", "1", "100.0%", "9.0 B"]
    assert sources["own"] == ["0", "0", "0.0%", "0.0 B", "1", "100.0%", "18.0 B"]


def test_an_interrupted_stage_is_said(scored_corpus: Path) -> None:
    (scored_corpus / "score" / ".incomplete").touch()
    page = Page(render(render_funnel, scored_corpus))
    assert any("The numbers on this page are incomplete" in text and "conan score" in text for text in page.all("p"))
