"""The scores: histograms have every pair, and the cuts that were made."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.report.scores import render_scores
from conan_embedding.schemas.recipe import Recipe
from report_pages import figure_of, render, rows_of, steps_of


def report(corpus: Path) -> str:
    return render(render_scores, corpus)


def test_the_histogram_has_every_pair_and_the_cutoff(scored_corpus: Path) -> None:
    figure = figure_of(report(scored_corpus), "All sources")
    assert "cutoff 0.4" in figure
    areas = [steps_of(path) for path in re.findall(r'class="area s\d" d="(.*?)"', figure)]
    scores = [0.31 + number * 0.03 for number in range(12)]
    sides = ([each for each in scores if each >= 0.4], scores[:3], [0.1] * 12)
    for area, side in zip(areas, sides, strict=True):
        counts = Counter(int(np.float64(np.float32(score)) * 50 + 1e-4) for score in side)  # bins of 0.02: 0.1 to 0.64
        expected = [counts[place] for place in sorted(counts)]
        drawn = [height for height in area if height > 0]
        assert np.allclose(np.array(drawn) / sum(drawn), np.array(expected) / sum(expected), atol=0.01)
    assert 'aria-label="All sources. pairs by cosine; kept: 9, most between' in figure


def test_each_source_has_its_chart_its_quantiles_and_its_cuts(tmp_path: Path, pair, write_shards) -> None:
    generator = np.random.default_rng(0)
    cosines = {name: generator.uniform(0.3, 0.9, 400).astype(np.float32) for name in ("a", "b")}
    rows = {
        name: [
            pair(f"{name}{row}", "答", name, score=float(s), mismatched=0.2, rank=1 + row % 5)
            for row, s in enumerate(of)
        ]
        for name, of in cosines.items()
    }
    cut = [row | {"reason": "score", "detail": f"{row['score']:.3g} < 0.4"} for row in rows["a"] if row["score"] < 0.4]
    cut += [
        row | {"reason": "score_quantile", "detail": f"{row['score']:.3g} < 0.45, quantile 0.1 of the source"}
        for row in rows["a"]
        if 0.4 <= row["score"] < 0.45
    ]
    gone = {row["pair_id"] for row in cut}
    cut += [
        row | {"reason": "score_rank", "detail": f"{row['rank']} > 3 among 100 passages"}
        for row in rows["b"]
        if row["rank"] > 3
    ]
    gone |= {row["pair_id"] for row in cut}
    write_shards(tmp_path / "c", "dedup", rows["a"] + rows["b"])
    write_shards(
        tmp_path / "c", "score", [row for row in rows["a"] + rows["b"] if row["pair_id"] not in gone], rejects=cut
    )
    html = report(tmp_path / "c")
    table = rows_of(html, "By source", after="Scores")
    assert [row[0] for row in table] == ["a", "b"]
    for row, of in zip(table, cosines.values(), strict=True):
        found = np.array(row[2:5], np.float64)
        assert np.allclose(found, np.quantile(of, (0.05, 0.5, 0.95)), atol=0.011)  # the bins are 0.005, and two digits
        assert row[1] == "400"
        assert row[7] == "20%"
    counts = Counter((row["source"], row["reason"]) for row in cut)
    assert [row[8:] for row in table] == [
        [str(counts["a", reason]) for reason in ("score", "score_quantile", "score_rank")],
        ["0", "0", "160"],
    ]
    assert re.findall(r'class="mark.*?">(.*?)</text>', figure_of(html, "a")) == ["cutoff 0.4", "quantile 0.45"]
    assert re.findall(r'class="mark.*?">(.*?)</text>', figure_of(html, "b")) == []
    ranks = figure_of(html, "Rank")
    assert "rank of the positive among 100 passages" in ranks
    (x,) = re.findall(r'class="mark" d="M([\d.]+) ', ranks)
    # Five ranks are four bins: 1, 2, 3–4, 5–8; rank 3 is log2(3) + 1 = 2.58 of them to the right.
    assert float(x) == pytest.approx(42 + (np.log2(3) + 1) / 4 * (374 - 42), abs=0.1)


def test_the_cutoff_is_what_rejects_were_held_to_or_else_the_recipe_s(tmp_path: Path, pair, write_shards) -> None:
    good, bad = pair("问题", "答案", score=0.6), pair("问题", "答案", score=0.1)
    corpus = tmp_path / "c"
    save_recipe(corpus, Recipe(score={"cutoff": 0.35, "cutoffs": {"title_content": 0.2}}))
    write_shards(corpus, "dedup", [good])
    write_shards(corpus, "score", [good])
    assert "cutoff 0.35" in report(corpus)

    write_shards(corpus, "score", [good | {"format": "title_content"}])
    assert "cutoff 0.2" in report(corpus)

    write_shards(corpus, "score", [pair("问题", "答案", score=0.3)])  # by `--set score.cutoff=0.3`
    assert "cutoff" not in figure_of(report(corpus), "All sources")

    write_shards(corpus, "score", [], rejects=[bad | {"reason": "score", "detail": "0.1 < 0.55"}])
    html = report(corpus)
    assert "cutoff 0.55" in html
    assert ">Scores</h2>" in html  # although score kept no pair


def test_sources_without_a_row_count_in_the_total(tmp_path: Path, pair, write_shards, monkeypatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.report.scores.ROWS", 1)
    rows = [pair(f"问{number}", "答", "ab"[number > 2], score=0.5) for number in range(5)]
    write_shards(tmp_path, "score", rows)
    html = report(tmp_path)
    assert "kept: 5, most between 0.5 and" in figure_of(html, "All sources")
    assert "kept: 3, most between 0.5 and" in figure_of(html, "a")
    assert "<figcaption><b>b</b>" not in html


def test_shards_of_earlier_versions_have_no_mismatched_pairs(tmp_path: Path, pair, write_shards) -> None:
    corpus = tmp_path / "c"
    write_shards(corpus, "score", [pair("问题", "答案", score=0.6, mismatched=0.2, rank=1)])
    (shard,) = corpus.glob("score/part-*.parquet")
    assert "with another passage" in re.sub(r'<p class="note">.*?</p>', "", report(corpus))
    footer = pl.read_parquet_metadata(shard)
    footer.pop("ARROW:schema")
    pl.read_parquet(shard).drop("mismatched", "rank").write_parquet(shard, metadata=footer)
    html = re.sub(r'<p class="note">.*?</p>', "", report(corpus))
    assert "with another passage" not in html
    assert rows_of(html, "By source", after="Scores")[0][1:8] == ["1", "0.60", "0.60", "0.60", "–", "–", "–"]
