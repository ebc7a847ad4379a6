"""Questions that are held out of the sources: what leaks is looked for by comparing all texts with all."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import polars as pl
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import Recipe
from near_texts import letters, near, similarity, text

ONE = Engine(workers=1)
TASKS = {"faq": "retrieval", "web": "pretrain", "sentences": "sts", "labels": "classification", "manual": "passage"}


def make_recipe(without: str = "", **holdout: object) -> Recipe:
    sources = [
        {"name": name, "files": "*", "read": "json", "task": task, "holdout": name != without}
        | ({"label": "label"} if task == "sts" else {})
        for name, task in TASKS.items()
    ]
    return Recipe.model_validate({"sources": sources, "holdout": {"share": 0.15, "min": 0} | holdout})


def make_rows(pair, count: int = 60) -> list[dict]:
    """Make pairs of all tasks that share texts, exactly or nearly, on all sides and across sources."""
    rows = []
    for i in range(count):
        rows += [pair(text(100 * i + phrasing), text(100 * i + 50), "faq", "retrieval") for phrasing in range(2)]
        rows.append(pair(text(100 * i + 3), text(100 * i + 51), "web"))
        rows.append(pair(text(100 * i + 4), text(100 * i + 52), "sentences", "sts", label=0.5))
        rows.append(pair(text(100 * i + 5), "体育" if i % 2 else "财经", "labels", "classification"))
        rows.append(pair("", text(100 * i + 53), "manual", "passage"))
        match i % 10:
            case 0:  # another source asks nearly the same
                rows.append(pair(near(text(100 * i)), text(100 * i + 54), "web"))
            case 1:  # and has nearly the same answer
                rows.append(pair(text(100 * i + 6), near(text(100 * i + 50)), "web"))
            case 2:  # two questions of a source have nearly the same answer
                rows.append(pair(text(100 * i + 7), near(text(100 * i + 50)), "faq", "retrieval"))
            case 3:  # an answer is another pair's question
                rows.append(pair(text(100 * i + 51), text(100 * i + 55), "web"))
            case 4:  # sentences come again, on either side
                rows.append(pair(text(100 * i + 52), text(100 * i + 8), "sentences", "sts", label=0.1))
                rows.append(pair(near(text(100 * i + 4)), text(100 * i + 9), "sentences", "sts", label=0.2))
            case 5:  # a question is classified, and a sentence
                rows.append(pair(near(text(100 * i + 3)), "财经", "labels", "classification"))
                rows.append(pair(text(100 * i + 5), text(100 * i + 10), "sentences", "sts", label=0.3))
            case 6:  # a manual has an answer
                rows.append(pair("", near(text(100 * i + 50)), "manual", "passage"))
            case 7:  # a long text contains a question
                rows.append(
                    pair(text(100 * i + 11), text(100 * i + 56) + text(100 * i)[:80] + text(100 * i + 57), "web")
                )
            case 8:  # a longer copy, and the same question in other punctuation
                rows.append(pair(text(100 * i + 3) + "。", text(100 * i + 51) + "补充", "faq", "retrieval"))
                rows.append(pair(text(100 * i) + "？", text(100 * i + 58), "faq", "retrieval"))
    return rows


def texts_of(frame: pl.DataFrame) -> set[str]:
    """All texts of pairs by their letters, but for names of classes."""
    positives = frame.filter(pl.col("task") != "classification")["positive"]
    return {letters(each) for each in [*frame["query"], *positives] if each}


def find_leaks(held: pl.DataFrame, kept: pl.DataFrame) -> list[tuple[str, str]]:
    """Compare every held-out text with every text that is left: Jaccard 0.7 and more, or questions word for word."""
    grams = {one: {one[i : i + 5] for i in range(len(one) - 4)} for one in texts_of(held) | texts_of(kept)}
    holding = defaultdict(list)
    for one in texts_of(kept):
        for gram in grams[one]:
            holding[gram].append(one)
    found = []
    for one in texts_of(held):
        shared = Counter(other for gram in grams[one] for other in holding[gram])
        found += [
            (one, other)
            for other, both in shared.items()
            if both >= 0.7 * (len(grams[one]) + len(grams[other]) - both) or one in other
        ]
    return found


def run(corpus: Path, recipe: Recipe, read: Callable[..., pl.DataFrame], engine: Engine = ONE) -> pl.DataFrame:
    """Run dedup, check that all rows are accounted for and nothing leaks; return the held-out pairs."""
    summary = dedup(corpus, recipe, engine)
    assert summary.rows_in == summary.rows_out + sum(summary.rejected.values())
    held = read(corpus, "dedup/rejected").filter(pl.col("reason") == "holdout")
    assert len(held) == summary.rejected["holdout"]
    assert find_leaks(held, read(corpus, "dedup")) == []
    return held


def questions_of(held: pl.DataFrame) -> set[tuple[str, str]]:
    return set(held.select("source", "query").iter_rows())


def test_nothing_leaks_and_every_source_has_its_share(tmp_path: Path, pair, write_shards, read) -> None:
    rows = make_rows(pair)
    write_shards(tmp_path, "filter", rows[::2], [], rows[1::2])
    held = run(tmp_path, make_recipe(), read)
    sentences = held.filter(pl.col("task") == "sts").height
    others = (
        held.filter(pl.col("task") != "sts").group_by("source").agg(pl.col("query").str.strip_chars("？").n_unique())
    )
    assert dict(others.iter_rows()) | {"sentences": sentences} == {"faq": 20, "web": 14, "labels": 10, "sentences": 12}

    sets, kept = read(tmp_path, "holdout"), read(tmp_path, "dedup")
    assert set(sets["source"]) == {"faq", "web", "labels", "sentences"}
    for source in ("faq", "web"):
        passages = sets.filter(pl.col("source") == source, pl.col("task") == "passage")
        searched = kept.filter((pl.col("source") == source) | (pl.col("task") == "passage"))
        assert set(passages["positive"]) == set(searched["positive"])
        assert set(passages["query"]) == {""}
    for source in ("labels", "sentences"):
        own = pl.col("source") == source
        assert sets.filter(own).rows() == held.filter(own).select(sets.columns).sort("pair_id").rows()


def test_a_corpus_that_grows_keeps_its_questions(tmp_path: Path, pair, write_shards, read) -> None:
    rows = make_rows(pair)
    first = tmp_path / "first"
    write_shards(first, "filter", rows[::2], rows[1::2])
    before = run(first, make_recipe(), read)
    kept = read(first, "dedup").filter(pl.col("task") == "pretrain").to_dicts()
    more = [{**row, "pair_id": row["pair_id"][::-1]} for row in make_rows(pair, 80)[len(rows) :]]
    for number, row in enumerate(before.to_dicts()):
        query, answer, other = row["query"], row["positive"], kept[number]
        if row["task"] == "classification":
            answer = text(60_000 + number)
        more += [
            pair(near(query, 5), text(50_000 + number), "web"),  # copies of old questions
            pair(near(query, 7), near(answer, 7), "faq", "retrieval"),
            pair(near(query, 9), other["positive"], "web"),  # clusters of what is held out and what is not merge
            pair(near(other["query"], 9), answer, "web"),
        ]
    found = []
    for name, shards, engine in (
        ("appended", [rows[::2], rows[1::2], more], ONE),
        ("renamed", [more[::-1], rows[1::2], rows[::2]], Engine(workers=2)),
    ):
        corpus = tmp_path / name
        shutil.copytree(first / "holdout", corpus / "holdout")
        write_shards(corpus, "filter", *shards)
        held = run(corpus, make_recipe(), read, engine)
        for source, query in questions_of(before):  # or what is nearly the same, and survives in its place
            own = held.filter(pl.col("source") == source)["query"]
            assert any(similarity(letters(query), letters(other)) >= 0.7 for other in own)
        found.append(questions_of(held))
    assert found[0] == found[1]
    assert len(found[0]) > len(before)
