"""The rejects: counts by rule, and examples of each stage, rule and source, masked and escaped."""

import re
from pathlib import Path

from conan_embedding.pipeline.report.rejects import render_examples, render_rejects
from report_pages import HOSTILE, Page, render, rows_of


def test_counts_are_those_of_the_rows(scored_corpus: Path) -> None:
    html = render(render_rejects, scored_corpus)
    assert rows_of(html, "Rejects") == [
        ["broken_json", "ingest", "1", "3.0%"],
        ["truncated", "ingest", "1", "3.0%"],
        ["empty_side", "filter", "6", "19.4%"],
        ["markup", "filter", "5", "16.1%"],
        ["score", "score", "3", "15.0%"],
    ]


def test_hostile_texts_are_text(scored_corpus: Path) -> None:
    html = render(render_examples, scored_corpus)
    page = Page(html)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    visible = HOSTILE.replace("\x00", "␀").replace("\x1b", "␛").replace("\u202e", "\ufffd").replace("\u2066", "\ufffd")
    shown = page.all("bdi")
    # Three of the five hostile rejects are shown, each with query, positive and detail shortened.
    assert sum(shown.count(f"{number}{visible}"[:100] + "…") for number in range(5)) == 3
    assert shown.count(visible[:100] + "…") == 6
    assert "\x00" not in html
    # Six identical rows are one example.
    assert shown.count("问") == 1
    assert {'{"q": <b>', "<i>/posts.jsonl:7", "posts.gz"} <= set(shown)


def test_personal_data_is_masked_wherever_it_is(tmp_path: Path, pair, write_shards) -> None:
    mobile = "13812345678"
    row = pair(f"电话{mobile}", "长" * 95 + mobile) | {"reason": "markup", "detail": f"found {mobile}"}
    write_shards(tmp_path, "filter", [pair("问题", "答案")], rejects=[row])
    html = render(render_examples, tmp_path)
    assert re.findall(r"<bdi>(.*?)</bdi>", html) == ["found [手机号]", "电话[手机号]", "长" * 95 + "[手机号]"]
    assert "1381" not in html


def test_every_rule_has_an_example_before_any_source_has_a_second(
    tmp_path: Path, pair, write_shards, monkeypatch
) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.report.rejects._MOST", 3)
    bad = [
        pair(f"{source}{number}", "答", source) | {"reason": reason, "detail": "1 > 0"}
        for source, reason, count in (
            ("a", "wordless", 9),
            ("b", "wordless", 5),
            ("c", "wordless", 3),
            ("a", "emoji", 1),
        )
        for number in range(count)
    ]
    write_shards(tmp_path, "filter", [pair("问题", "答案")], rejects=bad)
    rows = rows_of(render(render_examples, tmp_path), "Examples of rejects")
    assert [row[:5] for row in rows] == [
        ["filter", "emoji", "a", "1", "1 &gt; 0"],
        ["filter", "wordless", "a", "9", "1 &gt; 0"],
        ["filter", "wordless", "b", "5", "1 &gt; 0"],
    ]


def test_the_table_is_all_there_without_the_script(scored_corpus: Path) -> None:
    page = Page(render(render_examples, scored_corpus))
    hidden = [attributes.get("class") for _, attributes in page.elements if "hidden" in attributes]
    assert hidden == ["filters"]
    columns = [int(own["data-column"]) for tag, own in page.elements if tag == "select"]
    heads = page.all("th")[-6:]
    assert heads == ["stage", "rule", "source", "rows", "detail", "texts"]
    assert [heads[column] for column in columns] == ["stage", "rule", "source"]
    assert page.all("option") == ["every stage", "every rule", "every source"]


def test_compared_corpora_have_their_own_examples(scored_corpus: Path, tmp_path: Path, pair, write_shards) -> None:
    bad = [pair("问", "", "web") | {"reason": "empty_side", "detail": "0 < 1"}] * 2
    write_shards(tmp_path / "other", "filter", [pair("问题", "答案")], rejects=bad)
    corpora = [scored_corpus, tmp_path / "other"]
    rules = {row[0]: row[1:] for row in rows_of(render(render_rejects, *corpora), "Rejects")}
    assert rules["empty_side"] == ["filter", "6", "19.4%", "2", "66.7%"]
    assert rules["markup"] == ["filter", "5", "16.1%", "0", "0.0%"]
    examples = rows_of(render(render_examples, *corpora), "Examples of rejects")
    assert [row[-1] for row in examples] == ["my &lt;corpus&gt;"] * 9 + ["other"]
