"""The report page: whole, self-contained, of bounded size, whatever texts the corpus holds."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.pipeline.report.page import write_report
from conan_embedding.schemas.errors import CorpusError
from report_pages import HOSTILE, Page, write_ingest


def test_a_page_is_whole_and_loads_nothing(scored_corpus: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "page.html"
    assert write_report([scored_corpus], target) == target
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]
    html = target.read_text("utf-8")
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert page.all("h1") == ["my <corpus>"]
    assert "news & <b>" in page.all("th")
    loading = {"src", "srcset", "data", "action", "poster", "xlink:href"}
    assert not any(loading & attributes.keys() for _, attributes in page.elements)
    assert not {"img", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {link.removeprefix("#") for link in links} == set(names)
    assert len(set(names)) == len(names)
    style = "".join(page.all("style")) + "".join(attributes.get("style") or "" for _, attributes in page.elements)
    assert "url(" not in style
    assert "@import" not in style


def test_only_its_own_script_may_run(scored_corpus: Path, tmp_path: Path) -> None:
    html = write_report([scored_corpus], tmp_path / "page.html").read_text("utf-8")
    policy = next(own["content"] for tag, own in Page(html).elements if tag == "meta" and "http-equiv" in own)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';")


def test_what_is_not_there_is_left_out(scored_corpus: Path, tmp_path: Path, pair) -> None:
    page = Page(write_report([scored_corpus], tmp_path / "page.html").read_text("utf-8"))
    assert page.all("h2") == ["Funnel", "Rejects", "Scores", "Lengths", "Examples of rejects"]

    write_ingest(tmp_path / "plain", [pair("问题", "答案")])
    page = Page(write_report([tmp_path / "plain"], tmp_path / "page.html").read_text("utf-8"))
    assert page.all("h2") == ["Funnel", "Lengths"]
    assert not page.all("p")[-1].startswith("The numbers on this page are incomplete")

    with pytest.raises(CorpusError, match="no shards here"):
        write_report([tmp_path / "plain", tmp_path / "nothing"], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()
    assert not (tmp_path / "nothing").exists()


def test_compared_corpora_are_named_by_what_tells_them_apart(tmp_path: Path, pair) -> None:
    for name in ("a/corpus", "b/corpus"):
        write_ingest(tmp_path / name, [pair("问题", "答案")])
    corpora = [tmp_path / "a/corpus", tmp_path / "b/corpus"]
    page = Page(write_report(corpora, tmp_path / "page.html").read_text("utf-8"))
    assert page.all("h1") == ["a/corpus and b/corpus"]
    assert page.all("h2") == ["Settings that differ", "Funnel", "Lengths"]
    with pytest.raises(CorpusError, match="compared with itself"):
        write_report([corpora[0], tmp_path / "b/../a/corpus"], tmp_path / "page.html")
    with pytest.raises(CorpusError, match="5 corpora; a report compares at most 4"):
        write_report([*corpora * 2, tmp_path / "c"], tmp_path / "page.html")


def test_the_size_is_bounded_whatever_is_in_it(
    tmp_path: Path, pair: Callable[..., dict[str, Any]], write_shards: Callable[..., None]
) -> None:
    """200 sources with names, rules and texts of what takes most bytes; one text is a megabyte."""
    names = [f'{number}"{HOSTILE}' * 3 for number in range(200)]
    long = '"' * 300
    rows = [pair(f"{long}{name}", long, name, score=0.5, mismatched=0.1, rank=3) for name in names]
    rows[0]["positive"] = "<\u202e答" * 350_000
    bad = [row | {"reason": f"{long}{number}", "detail": long} for number, row in enumerate(rows)]
    write_shards(tmp_path / "corpus", "dedup", rows)
    write_shards(tmp_path / "corpus", "score", rows, rejects=[row | {"score": 0.3} for row in bad])
    for number in range(10):
        folder = tmp_path / "corpus" / "train" / f"run{number}"
        folder.mkdir(parents=True)
        steps = [{"step": step, "loss": 1.5, "positive_score": 0.8, "negative_score": 0.1} for step in range(1000)]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, steps)))
    results = [
        {"model": f"{long}{model}", "set": f"{long}{place}", "metric": long, "value": 0.123}
        for model in range(20)
        for place in range(200)
    ]
    (tmp_path / "corpus" / "evaluation").mkdir()
    (tmp_path / "corpus" / "evaluation" / "metrics.json").write_text(json.dumps(results))
    file = write_report([tmp_path / "corpus"], tmp_path / "page.html")
    assert file.stat().st_size < 2_000_000
    page = Page(file.read_text("utf-8"))
    assert page.all("h2")[-2:] == ["Evaluation", "Examples of rejects"]
    notes = {text for text in page.all("p") if "shown" in text or "left out" in text}
    assert "The first 8 of 10 runs are shown." in notes
    assert "The best is bold. 8 more are left out." in notes
    assert "The first 100 of 200 are shown." in notes
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
