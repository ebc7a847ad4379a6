"""Ranks against brute force, and the cuts of score: by cosine, by quantile, by rank."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.score.cuts import judge
from conan_embedding.pipeline.score.stage import score
from conan_embedding.schemas.settings import ScoreSettings, SourcePrompts
from score_runs import ONE, change_weights, notes, reference, scores, settings


def ranked(read, corpus: Path) -> pl.DataFrame:
    columns = ["pair_id", "source", "query", "positive", "score", "mismatched", "rank", "reason", "detail"]
    frames = [read(corpus, folder) for folder in ("score", "score/rejected")]
    return pl.concat(frames, how="diagonal").filter(pl.col("score").is_not_null()).select(columns).sort("pair_id")


@pytest.fixture
def many(pair) -> list[dict]:
    """Pairs of two sources, some with one positive or with a query that is another's positive."""
    made = [
        pair(f"一丁{chr(0x4E00 + number)}", chr(0x4E80 + 7 * (number % 33)) * (1 + number % 4), "ab"[number % 3 == 0])
        for number in range(40)
    ]
    return [*made, pair(made[3]["positive"], "丈"), pair(made[4]["positive"], "三", "b")]


def test_ranks_are_those_of_brute_force_among_the_sample(tmp_path: Path, bge: Path, many, write_shards, read) -> None:
    change_weights(bge, 20)  # so that cosines differ by more than rounding
    write_shards(tmp_path, "dedup", many[:25], many[25:])
    score(tmp_path, settings(bge, -1, among=20), ONE)
    found = ranked(read, tmp_path)
    first: dict[str, str] = {}
    for row in sorted(many, key=lambda row: row["pair_id"]):
        first.setdefault(row["positive"], row["pair_id"])
    sample = sorted(first, key=lambda text: first[text])[:20]
    assert len(first) > 25
    scored = {text: reference(bge, [{"query": q, "positive": text} for q in found["query"]]) for text in sample}
    for number, row in enumerate(found.iter_rows(named=True)):
        others = [text for text in sample if text not in (row["positive"], row["query"])]
        cosines = [scored[text][number] for text in others]
        assert row["rank"] == 1 + sum(cosine > row["score"] + 1e-5 for cosine in cosines), row
        assert np.abs(np.array(cosines) - row["mismatched"]).min() < 1e-5
    assert found["rank"].max() > 10 and found["rank"].min() == 1
    assert found["mismatched"].n_unique() > 10


def test_each_source_has_its_own_prompts(tmp_path: Path, bge: Path, many, write_shards, read) -> None:
    change_weights(bge, 20)
    write_shards(tmp_path, "dedup", many[:25], many[25:])
    chosen = settings(bge, -1, among=100, prompts={"query": "一", "passage": "丁"})
    score(tmp_path, chosen, ONE, {"b": SourcePrompts(query="丈三", passage="")})
    before = {"a": ("一", "丁"), "web": ("一", "丁"), "b": ("丈三", "")}
    rows = [
        row | {"query": before[row["source"]][0] + row["query"], "positive": before[row["source"]][1] + row["positive"]}
        for row in many
    ]
    expected = dict(zip([row["pair_id"] for row in many], reference(bge, rows), strict=True))
    found = scores(read, tmp_path)
    assert [found[each] for each in expected] == pytest.approx(list(expected.values()), abs=1e-5)

    first: dict[int, dict] = {}
    for row, prompted in sorted(zip(many, rows, strict=True), key=lambda each: each[0]["pair_id"]):
        first.setdefault(row["cluster_id"], row | {"prompted": prompted["positive"]})
    ranks = dict(ranked(read, tmp_path).select("pair_id", "rank").iter_rows())
    for row, prompted in list(zip(many, rows, strict=True))[::5]:
        others = [one for one in first.values() if one["positive"] not in (row["positive"], row["query"])]
        cosines = reference(bge, [{"query": prompted["query"], "positive": one["prompted"]} for one in others])
        assert ranks[row["pair_id"]] == 1 + sum(cosines > expected[row["pair_id"]] + 1e-5)

    assert score(tmp_path, chosen, ONE, {"b": SourcePrompts(query="丈三", passage="")}).skipped == 2
    assert score(tmp_path, chosen, ONE, {"b": SourcePrompts(query="丈", passage="")}).skipped == 0


def test_ranks_depend_neither_on_shards_nor_on_workers(tmp_path: Path, bge: Path, many, write_shards, read) -> None:
    change_weights(bge, 20)  # cosines far enough apart: vectors of other batches differ in their last bits
    write_shards(tmp_path / "one", "dedup", many)
    write_shards(tmp_path / "other", "dedup", many[30:], many[10:30][::-1], many[:10])
    score(tmp_path / "one", settings(bge, 0, among=20), ONE)
    score(tmp_path / "other", settings(bge, 0, among=20), Engine(workers=2))
    one, other = (ranked(read, tmp_path / name) for name in ("one", "other"))
    assert one["rank"].to_list() == other["rank"].to_list()
    np.testing.assert_allclose(one["mismatched"], other["mismatched"], atol=1e-6)


def test_another_cut_encodes_nothing(tmp_path: Path, bge: Path, many, write_shards, read, no_model) -> None:
    write_shards(tmp_path, "dedup", many[:25], many[25:])
    score(tmp_path, settings(bge, -1, among=20), ONE)
    whole = ranked(read, tmp_path)
    no_model()
    cuts: list[dict[str, Any]] = [{"rank": 3}, {"quantile": 0.25}, {"rank": 2, "quantile": 0.1}, {"rank": 1}]
    for cut in cuts:
        summary = score(tmp_path, settings(bge, None, among=20, **cut), ONE)
        assert summary.skipped == 0
        assert score(tmp_path, settings(bge, None, among=20, **cut), ONE).skipped == 2
        found = ranked(read, tmp_path)
        assert found.drop("reason", "detail").equals(whole.drop("reason", "detail"))
        low = [
            value < np.quantile(whole.filter(source=source)["score"].cast(pl.Float64), cut.get("quantile", 0))
            for source, value in whole.select("source", "score").iter_rows()
        ]
        far = whole["rank"] > cut.get("rank", 99)
        reasons = ["score_quantile" if a else "score_rank" if b else None for a, b in zip(low, far, strict=True)]
        assert found["reason"].to_list() == reasons
        assert summary.rejected == {name: reasons.count(name) for name in set(reasons) - {None}}
    assert not (tmp_path / "score" / ".parts").exists()
    detail = found.filter(reason="score_rank").row(0, named=True)
    assert detail["detail"] == f"{detail['rank']} > 1 among 20 passages"


def test_a_quantile_is_that_of_the_source(tmp_path: Path, bge: Path, many, write_shards, read, count_texts) -> None:
    """Without earlier scores: all of them are computed before the first pair is judged, and only once."""
    write_shards(tmp_path, "dedup", many[:25], many[25:])
    score(tmp_path, settings(bge, None, quantile=0.2, among=20), ONE)
    assert sum(count_texts) == 2 * len(many)
    found = ranked(read, tmp_path)
    for source in ("a", "b"):
        own = found.filter(source=source)
        threshold = np.quantile(own["score"].cast(pl.Float64), 0.2)
        cut = own["reason"].is_not_null()
        assert own.filter(cut)["score"].max() < threshold <= own.filter(~cut)["score"].min()
        details = own.filter(reason="score_quantile").select("score", "detail").iter_rows()
        for value, detail in details:
            shown = float(detail.removesuffix(", quantile 0.2 of the source").split(" < ")[1])
            assert (float(detail.split(" < ")[0]), shown) == pytest.approx((value, threshold), abs=6e-4)


def test_more_pairs_change_the_sample(tmp_path: Path, bge: Path, many, write_shards, read, count_texts) -> None:
    """Cosines stay as they are; a cut by rank ranks all positives again, among the new sample."""
    write_shards(tmp_path, "dedup", many[:25])
    score(tmp_path, settings(bge, -1, among=20), ONE)
    write_shards(tmp_path, "dedup", many[:25], many[25:])
    count_texts.clear()
    assert score(tmp_path, settings(bge, -1, among=20), ONE).skipped == 1
    assert count_texts == [17, 17]
    score(tmp_path, settings(bge, -1, among=20, rank=2), ONE)
    assert sorted(count_texts) == [17, 17, 25, 25]
    write_shards(tmp_path / "fresh", "dedup", many[:25], many[25:])
    score(tmp_path / "fresh", settings(bge, -1, among=20, rank=2), ONE)
    assert (
        ranked(read, tmp_path)
        .drop("score", "mismatched")
        .equals(ranked(read, tmp_path / "fresh").drop("score", "mismatched"))
    )


def test_mismatched_pairs_have_a_histogram(tmp_path: Path, bge: Path, many, write_shards, read) -> None:
    write_shards(tmp_path, "dedup", many[:25], many[25:])
    summary = score(tmp_path, settings(bge, -1, among=20), ONE)
    mismatched = ranked(read, tmp_path)["mismatched"]
    counts = np.sum([note["mismatched"] for note in notes(tmp_path)], axis=0)
    assert counts.tolist() == np.histogram(mismatched, 64, (-1, 1))[0].tolist()
    lower, upper = np.quantile(mismatched, 0.5, method="lower"), np.quantile(mismatched, 0.5, method="higher")
    assert lower - 2 / 64 <= summary.notes["mismatched"]["p50"] <= upper + 2 / 64


def test_a_cut_of_nothing_or_most_is_warned_of(tmp_path: Path, bge: Path, many, write_shards) -> None:
    def warned(cutoff: float | None, **more: Any) -> list[str]:
        return [
            text.split(" pairs;")[0]
            for text in score(tmp_path, settings(bge, cutoff, **more), ONE).notes.get("warnings", [])
        ]

    write_shards(tmp_path, "dedup", many)
    assert warned(-1) == warned(None) == []
    assert warned(-0.999) == ["cutoff -0.999 rejects none of 42"]
    assert warned(1) == ["cutoff 1 rejects 42 of 42"]
    assert warned(None, rank=500, cutoffs={"title_content": 0.3}) == [
        "cutoff 0.3 rejects none of 42",
        "rank 500 rejects none of 42",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "greater than or equal to 1"),
        ({"rank": 20, "among": 10}, "`rank: 20` keeps every pair, as positives are ranked among 10 passages"),
        ({"quantile": 1.0}, "less than 1"),
        ({"cutoff": 1.5}, "less than or equal to 1"),
    ],
)
def test_cuts_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreSettings(**wrong)


def test_a_score_at_the_cutoff_is_kept() -> None:
    """Scores are float32, whose 0.4 is above and whose 0.7 is below the number that a recipe names."""
    limits = [0.4, 0.7]
    at = [float(np.float32(limit)) for limit in limits]
    below = [float(np.nextafter(np.float32(limit), np.float32(-1))) for limit in limits]
    scored = pl.DataFrame(
        {
            "score": pl.Series([*below, *at, 0.3998, 0.25, float("nan")], dtype=pl.Float32),
            "rank": pl.Series([1] * 7, dtype=pl.Int32),
            "format": ["title_content", "question_answer"] * 3 + ["title_content"],
            "source": ["a"] * 7,
            "detail": pl.Series([None] * 7, dtype=pl.String),
        }
    )
    chosen = ScoreSettings(cutoff=0.4, cutoffs={"question_answer": 0.7})
    judged = judge(scored, chosen, {}, 0)
    assert judged["reason"].to_list() == ["score", "score", None, None, "score", "score", "score_nan"]
    assert judged["detail"].to_list()[:2] == ["0.399999976 < 0.4", "0.699999928 < 0.7"]
    assert judged["detail"].to_list()[4:6] == ["0.399800003 < 0.4", "0.25 < 0.7"]
