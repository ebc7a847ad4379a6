"""The report page, parsed by the standard library and compared with the rows that it reports on."""

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.pools import write_pools
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.mine.methods import ceiling_sql
from conan_embedding.pipeline.report.charts import (
    choose_ticks,
    format_percent,
    format_size,
    render_histogram,
    render_lines,
)
from conan_embedding.pipeline.report.page import write_report
from conan_embedding.schemas.errors import CorpusError
from conan_embedding.schemas.pairs import PAIR, REJECTED_AT_INGEST
from conan_embedding.schemas.recipe import Recipe

HOSTILE = "\x00\x1b[31m</style></details><script>alert('一')</script><img src=http://evil.example/x onerror=run()>&amp;"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements and texts of a page. Fails if elements are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[str]:
        return [text for own, text in self.texts if own == tag]


def rows_of(html: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading."""
    table = re.search(rf"{heading}</h[23]>.*?<tbody>(.*?)</tbody>", html, re.DOTALL)
    assert table
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows]


def facts_of(html: str) -> dict[str, str]:
    return dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", html))


def steps_of(path: str) -> list[float]:
    """Return the height of each step of a histogram above its base line, in SVG units."""
    return [188 - float(height) for height in re.findall(r"V([\d.]+)H", path)]


def write_ingest(corpus: Path, *shards: list[dict[str, Any]], rejects: list[dict[str, Any]] = ()) -> None:
    """Write shards of ingest, whose rejects have their own columns: the file, line and record."""
    for number, rows in enumerate(shards):
        thrown = rejects if number == 0 else ()
        with ShardWriter(
            corpus / "ingest" / f"part-{number:05d}.parquet",
            PAIR,
            REJECTED_AT_INGEST,
            stage="ingest",
            version=1,
            fingerprint=str(number),
        ) as writer:
            writer.received(len(rows) + len(thrown))
            writer.keep(pa.Table.from_pylist(rows, PAIR))
            writer.reject(pa.Table.from_pylist(list(thrown), REJECTED_AT_INGEST))


@pytest.fixture
def scored_corpus(tmp_path: Path, pair: Callable[..., dict[str, Any]], write_shards: Callable[..., None]) -> Path:
    """Two sources through ingest, filter, dedup and score; one filter reject in four is hostile."""
    folder = tmp_path / "my <corpus>"
    web = [pair(f"问题{number}", "答" * (number + 1), "web") for number in range(12)]
    news = [pair(f"标题{number}", "文" * 40, "news & <b>", category="news") for number in range(8)]
    bad = [
        pair(f"{number}{HOSTILE}", HOSTILE * 9, "web") | {"reason": "markup", "detail": HOSTILE} for number in range(5)
    ]
    bad += [pair("问", "", "web") | {"reason": "empty_side", "detail": "0 < 1"}] * 6
    broken = {"source": "web", "file": "<i>/posts.jsonl", "line": 7, "record": '{"q": <b>', "reason": "broken_json"}
    broken_file = {"source": "web", "file": "posts.gz", "reason": "truncated", "detail": "after 0 bytes"}
    unread = [broken | {"detail": "not valid JSON"}, broken_file]
    write_ingest(folder, web + news[:4] + bad, news[4:], rejects=unread)
    write_shards(folder, "filter", web + news[:4], news[4:], rejects=bad)
    write_shards(folder, "dedup", web, news)
    scored = [row | {"score": 0.31 + number * 0.03, "mismatched": 0.1} for number, row in enumerate(web)]
    low = [row | {"reason": "score", "detail": f"{row['score']:.3g} < 0.4"} for row in scored if row["score"] < 0.4]
    write_shards(folder, "score", scored[len(low) :], news, rejects=low)
    return folder


def test_a_page_is_whole_and_loads_nothing(scored_corpus: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "page.html"
    assert write_report(scored_corpus, target) == target
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]
    html = target.read_text("utf-8")
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert page.all("h1") == ["my <corpus>"]
    loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    assert not any(loading & attributes.keys() for _, attributes in page.elements)
    assert not {"script", "img", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.elements}
    style = "".join(page.all("style")) + "".join(attributes.get("style") or "" for _, attributes in page.elements)
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_texts_are_text(scored_corpus: Path, tmp_path: Path) -> None:
    html = write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8")
    page = Page(html)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    visible = HOSTILE.replace("\x00", "␀").replace("\x1b", "␛")
    shown = page.all("bdi")
    # Three of the five hostile rejects are shown, each with query, positive and detail shortened.
    assert sum(shown.count(f"{number}{visible}"[:80] + "…") for number in range(5)) == 3
    assert shown.count(visible[:80] + "…") == 6
    assert "news & <b>" in page.all("th")
    assert "\x00" not in html
    # Six identical rows are one example.
    assert [tag for tag, _ in page.elements].count("details") == 5
    assert shown.count("问") == 1
    assert {'{"q": <b>', "<i>/posts.jsonl:7", "posts.gz"} <= set(shown)


def test_figures_are_those_of_the_rows(scored_corpus: Path, tmp_path: Path) -> None:
    html = write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8")
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
    rules = re.findall(r'class="name">(.*?)</span><span>(.*?)</span><span>(.*?)</span>', html)
    assert rules[2:] == [("empty_side", "6", "19.4%"), ("markup", "5", "16.1%"), ("score", "3", "15.0%")]
    assert sorted(rules[:2]) == [("broken_json", "1", "3.0%"), ("truncated", "1", "3.0%")]
    lengths = {"query": [3] * 15 + [4] * 2, "positive": sorted([*range(low + 1, 13), *[40] * 8])}
    assert [row[1:] for row in rows_of(html, "Scores and lengths")] == [
        [str(np.quantile(lengths[side], share, method="inverted_cdf")) for share in (0.05, 0.5, 0.95, 1)]
        for side in ("query", "positive")
    ]


def test_the_score_histogram_has_every_pair_and_the_cutoff(scored_corpus: Path, tmp_path: Path) -> None:
    html = write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8")
    figure = re.search(r"<figure><figcaption><b>Cosine of query.*?</figure>", html, re.DOTALL)
    assert figure
    assert "cutoff 0.4" in figure[0]
    areas = [steps_of(path) for path in re.findall(r'class="area s\d" d="(.*?)"', figure[0])]
    scores = [0.31 + number * 0.03 for number in range(12)]
    sides = ([each for each in scores if each >= 0.4], scores[:3], [0.1] * 12)
    for area, side in zip(areas, sides, strict=True):
        counts = Counter(int(np.float32(score) * np.float64(20)) for score in side)
        expected = [counts[place] for place in sorted(counts)]
        drawn = [height for height in area if height > 0]
        assert np.allclose(np.array(drawn) / sum(drawn), np.array(expected) / sum(expected), atol=0.01)


def test_what_is_not_there_is_left_out(scored_corpus: Path, tmp_path: Path, pair, write_shards) -> None:
    page = Page(write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8"))
    assert page.all("h2") == ["Funnel", "Rejects", "Scores and lengths"]

    write_ingest(tmp_path / "plain", [pair("问题", "答案")])
    page = Page(write_report(tmp_path / "plain", tmp_path / "page.html").read_text("utf-8"))
    assert page.all("h2") == ["Funnel", "Lengths"]
    assert not page.all("p")[-1].startswith("The numbers on this page are incomplete")

    with pytest.raises(CorpusError, match="no shards here"):
        write_report(tmp_path / "nothing", tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()
    assert not (tmp_path / "nothing").exists()


def test_the_cutoff_is_what_rejects_were_held_to_or_else_the_recipe_s(tmp_path: Path, pair, write_shards) -> None:
    good, bad = pair("问题", "答案", score=0.6), pair("问题", "答案", score=0.1)
    save_recipe(tmp_path, Recipe(score={"cutoff": 0.35}))
    write_shards(tmp_path, "dedup", [good])
    write_shards(tmp_path, "score", [good])
    assert "cutoff 0.35" in write_report(tmp_path, tmp_path / "page.html").read_text("utf-8")

    write_shards(tmp_path, "score", [], rejects=[bad | {"reason": "score", "detail": "0.1 < 0.55"}])
    html = write_report(tmp_path, tmp_path / "page.html").read_text("utf-8")
    assert "cutoff 0.55" in html
    assert Page(html).all("h2") == ["Funnel", "Rejects", "Scores and lengths"]  # although score kept no pair


def test_an_interrupted_stage_is_said(scored_corpus: Path, tmp_path: Path) -> None:
    (scored_corpus / "score" / ".incomplete").touch()
    page = Page(write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8"))
    assert any("The numbers on this page are incomplete" in text and "conan score" in text for text in page.all("p"))


def test_pools(scored_corpus: Path, tmp_path: Path) -> None:
    run = {"run_id": "a", "model_fingerprint": "f", "method": "topk", "margin": 0.95, "top_k": 3, "fingerprint": "p"}
    scores = [[0.5, 0.4], [0.9], []]
    tables = {
        "runs": [run | {"created_at": datetime(2025, 1, 1)}],
        "passages": [{"passage_id": number, "text": str(number), "cluster_id": number} for number in range(5)],
        "queries": [{"query_id": number, "text": str(number)} for number in range(3)],
        "positives": [
            {"query_id": q, "passage_id": p, "score": s} for q, p, s in ((0, 0, 0.8), (0, 1, 0.6), (1, 2, 0.7))
        ],
        "candidates": [
            {"query_id": q, "run_id": "a", "passage_ids": list(range(len(own))), "scores": own}
            for q, own in enumerate(scores)
        ],
    }
    write_pools(scored_corpus, {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}, ceiling_sql())
    html = write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8")
    assert "Negative pools" in Page(html).all("h2")
    facts = facts_of(html)
    assert [facts[name] for name in ("queries", "passages", "candidates", "replacements")] == ["3", "5", "3", "0"]
    assert facts["method"] == "topk, 0.95, top 3"
    assert float(facts["mean gap to top negative"]) == pytest.approx(((0.6 - 0.5) + (0.7 - 0.9)) / 2, abs=1e-3)


def test_training_and_evaluation(scored_corpus: Path, tmp_path: Path) -> None:
    step = {"retrieval": 1.0, "sts": 0.5, "positive_score": 0.8, "negative_score": 0.3, "tokens_per_second": 1200}
    log = [{"event": "start", "steps": 40, "parameters": 683520, "world_size": 2}]
    log += [{"step": number, "loss": 2.5 / number} | step for number in (10, 20, 30)]
    log[2]["mining"] = {"visited": 9, "flagged": 5, "replaced": 4, "exhausted": 1}
    log[3] |= {"loss": float("nan"), "mining": {"visited": 9, "flagged": 3, "replaced": 3, "exhausted": 2}}
    for name in ("finetune", "bootstrap"):
        (scored_corpus / "train" / name).mkdir(parents=True)
        text = "".join(json.dumps(entry) + "\n" for entry in log)
        (scored_corpus / "train" / name / "log.jsonl").write_text(text + '{"step": 40, "lo')
    (scored_corpus / "train" / "new").mkdir()
    (scored_corpus / "train" / "new" / "log.jsonl").write_text(json.dumps(log[0]) + "\n")
    rows = [
        ("bge <large>", "qa", "ndcg@10", 0.7),
        ("chosen here", "qa", "ndcg@10", 0.8125),
        ("chosen here", "sts", "spearman", None),
    ]
    (scored_corpus / "evaluation").mkdir()
    (scored_corpus / "evaluation" / "metrics.json").write_text(
        json.dumps([dict(zip(("model", "set", "metric", "value"), row, strict=True)) for row in rows])
    )
    html = write_report(scored_corpus, tmp_path / "page.html").read_text("utf-8")
    page = Page(html)
    assert page.all("h2")[-2:] == ["Training", "Evaluation"]
    assert page.all("h3")[-2:] == ["bootstrap", "finetune"]
    facts = facts_of(html)
    assert [facts[name] for name in ("step", "total steps", "parameters", "processes")] == ["30", "40", "683,520", "2"]
    assert (facts["negatives replaced"], facts["exhausted"], facts["median tokens/s"]) == ("7", "2", "1,200")
    assert rows_of(html, "Evaluation") == [["qa ndcg@10", "0.700", "0.812"], ["sts spearman", "–", "–"]]
    assert "<td><b>0.812</b></td>" in html
    assert "bge <large>" in page.all("th")


def test_a_line_breaks_where_a_value_is_none() -> None:
    x = np.arange(1.0, 7.0)
    values = np.array([1, 2, np.nan, 4, np.inf, 3])
    path = re.search(r'class="line s0" d="(.*?)"', render_lines("t", "u", x, {"a": values}))
    assert path
    assert (path[1].count("M"), path[1].count("L")) == (3, 1)
    assert "nan" not in path[1]
    nothing = np.full(6, np.nan)
    Page(render_lines("t", "u", x, {"a": nothing}))


def test_a_long_line_is_thinned_by_means() -> None:
    x = np.arange(1000.0)
    path = re.search(r'class="line s0" d="(.*?)"', render_lines("t", "u", x, {"a": x}))
    assert path
    points = [tuple(map(float, point.split())) for point in re.findall(r"[ML]([\d. ]+)", path[1])]
    assert 100 < len(points) <= 240
    heights = [(188 - down) / (188 - 12) * 1000 for _, down in points]
    across = [(place - 44) / (468 - 44) * 999 for place, _ in points]
    assert np.allclose(heights, across, atol=1.0)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (-0.2, 0.83), (3, 3), (0, 1e9), (0.999, 1.001), (-5, -5)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    found = choose_ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    step = found[1] - found[0]
    assert np.allclose(np.diff(found), step)
    assert float(f"{step:.1e}") / 10 ** np.floor(np.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** np.floor(np.log10(step) + 1e-9))
    )


def test_a_histogram_takes_any_range() -> None:
    for counts in ({0: 1}, {-20: 3, 19: 1}, {3: 10**9, 400: 1}):
        html = render_histogram("t", "u", {"a": counts}, str, (0.5, "m"))
        Page(html)
        (area,) = re.findall(r'class="area s0" d="(.*?)"', html)
        assert sum(height > 0 for height in steps_of(area)) == sum(
            count > max(counts.values()) / 1e4 for count in counts.values()
        )


def test_shares_and_sizes() -> None:
    assert [format_percent(*pair) for pair in ((0, 0), (0, 9), (9, 9), (1, 9999), (9999, 10000), (1, 3))] == [
        "0.0%", "0.0%", "100.0%", "&lt;0.1%", "&gt;99.9%", "33.3%",
    ]  # fmt: skip
    assert [format_size(count) for count in (0, 999, 999_960, 1_500_000, 2.5e15)] == [
        "0.0 B", "999.0 B", "1.0 MB", "1.5 MB", "2,500.0 TB",
    ]  # fmt: skip
