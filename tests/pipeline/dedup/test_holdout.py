"""Questions that are held out of the sources: what leaks is looked for by comparing all texts with all."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.corpus.folder import HELD_OUT, read_footer
from conan_embedding.pipeline.dedup.holdout import count_wanted
from conan_embedding.pipeline.dedup.stage import dedup
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import StageError
from conan_embedding.schemas.errors import CorpusError, RecipeError
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import HoldoutSettings
from conan_embedding.trainer.evaluation.evaluation_sets import find_own_sets, read_sets
from near_texts import letters, near, similarity, text
from pydantic import ValidationError

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
            case 9:  # a short answer comes twice, and answers are a chain whose ends have little in common
                rows += [pair(text(100 * i + n), f"第{i}", "web") for n in (12, 13)]
                for n, edits in enumerate([(), (5, 15), (5, 15, 25, 35)]):
                    answer = "".join("龘" if at in edits else each for at, each in enumerate(text(100 * i + 59)))
                    rows.append(pair(text(100 * i + 14 + n), answer, "web"))
            case 8:  # a longer copy, and the same question in other punctuation
                rows.append(pair(text(100 * i + 3) + "。", text(100 * i + 51) + "补充", "faq", "retrieval"))
                rows.append(pair(text(100 * i) + "？", text(100 * i + 58), "faq", "retrieval"))
    return rows


def texts_of(frame: pl.DataFrame) -> set[str]:
    """All texts of pairs by their letters, but for names of classes."""
    positives = frame.filter(pl.col("task") != "classification")["positive"]
    return {letters(each) for each in [*frame["query"], *positives] if each}


def find_near(some: set[str], others: set[str]) -> list[tuple[str, str]]:
    """Compare all texts with all others: equal ones, and those with a Jaccard similarity of 0.7 and more."""
    grams = {one: {one[i : i + 5] for i in range(len(one) - 4)} for one in some | others}
    holding = defaultdict(list)
    for one in others:
        for gram in grams[one]:
            holding[gram].append(one)
    found = [(one, one) for one in some & others]
    for one in some:
        shared = Counter(other for gram in grams[one] for other in holding[gram])
        found += [
            (one, other) for other, both in shared.items() if both >= 0.7 * (len(grams[one]) + len(grams[other]) - both)
        ]
    return found


def find_leaks(held: pl.DataFrame, kept: pl.DataFrame, everything: pl.DataFrame) -> list[tuple[str, str]]:
    """Find texts that are left and resemble a held-out one, contain its question, or are in its cluster on a side."""
    questions = set(map(letters, held["query"]))
    found = find_near(texts_of(held), texts_of(kept))
    found += [(one, other) for one in questions for other in texts_of(kept) if one in other]
    for side in ("query", "positive"):
        clustered = [
            set(map(letters, frame.filter(pl.col("task").is_in(["pretrain", "retrieval"]))[side]))
            for frame in (held, kept, everything)
        ]
        cluster = clustered[0]
        while more := {other for _, other in find_near(cluster, clustered[2])} - cluster:
            cluster |= more
        found += [(side, other) for other in cluster & clustered[1]]
    return found


def run(corpus: Path, recipe: Recipe, read: Callable[..., pl.DataFrame], engine: Engine = ONE) -> pl.DataFrame:
    """Run dedup, check that all rows are accounted for and nothing leaks; return the held-out pairs."""
    summary = dedup(corpus, recipe, engine)
    assert summary.rows_in == summary.rows_out + sum(summary.rejected.values())
    held = read(corpus, "dedup/rejected").filter(pl.col("reason") == "holdout")
    assert len(held) == summary.rejected["holdout"]
    assert find_leaks(held, read(corpus, "dedup"), read(corpus, "filter")) == []
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
    assert dict(others.iter_rows()) | {"sentences": sentences} == {"faq": 20, "web": 18, "labels": 10, "sentences": 12}

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

    shutil.rmtree(tmp_path / "dedup")
    assert questions_of(run(tmp_path, make_recipe(), read)) == questions_of(held)


def test_a_corpus_that_grows_keeps_its_questions(tmp_path: Path, pair, write_shards, read) -> None:
    rows = make_rows(pair, 40)
    first = tmp_path / "first"
    write_shards(first, "filter", rows[::2], rows[1::2])
    before = run(first, make_recipe(), read)
    kept = read(first, "dedup").filter(pl.col("task") == "pretrain").to_dicts()
    more = [{**row, "pair_id": row["pair_id"][::-1]} for row in make_rows(pair, 50)[len(rows) :]]
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


def make_pairs(pair, count: int, source: str = "web", task: str = "pretrain", first: int = 0) -> list[dict]:
    return [pair(text(first + 2 * i), text(first + 2 * i + 1), source, task) for i in range(count)]


def test_how_many_questions_are_wanted() -> None:
    settings = HoldoutSettings(share=0.05, min=200, max=5000)
    counts = {questions: count_wanted(questions, "retrieval", settings) for questions in (4, 999, 1001, 5001, 10**6)}
    assert counts == {4: 0, 999: 199, 1001: 200, 5001: 251, 10**6: 5000}
    assert [count_wanted(questions, "classification", settings) for questions in (49, 50)] == [0, 10]


def test_an_answer_is_whatever_answers_an_equal_question_or_is_nearly_the_same(
    tmp_path: Path, pair, write_shards, read
) -> None:
    answer, other = text(1), text(2)
    asked = [
        pair("怎样退货", answer, "faq", "retrieval", negatives=["错"]),
        pair("怎样退货？", other, "faq", "retrieval"),
    ]
    asked += [pair("如何才能换货", near(answer), "faq", "retrieval")]
    rest = make_pairs(pair, 12, "faq", "retrieval", first=100)
    corpus = tmp_path / "corpus"
    write_shards(corpus, "filter", [*asked, *rest])
    keep_held_out(corpus, asked)
    run(corpus, make_recipe(share=0.2), read)
    (one,) = read_sets(find_own_sets(corpus))
    answers = {row["query"]: set(row["positives"]) for row in one.frame.to_dicts()}
    first = min(asked[:2], key=lambda row: row["pair_id"])["query"]
    assert answers == {first: {answer, other, near(answer)}, "如何才能换货": {answer, near(answer)}}
    assert set(one.passages) == {row["positive"] for row in [*asked, *rest]} | {"错"}


def keep_held_out(corpus: Path, rows: list[dict]) -> None:
    """Write the list of questions that were held out, as of an earlier run with other settings."""
    (corpus / HELD_OUT).parent.mkdir(parents=True)
    table = pl.DataFrame(rows).select("source", "task", "query").to_arrow()
    pq.write_table(table.replace_schema_metadata({"conan": "{}"}), corpus / HELD_OUT)


def test_settings_that_change_choose_again_and_nothing_else_does(tmp_path: Path, pair, write_shards, read) -> None:
    rows = make_pairs(pair, 40) + make_pairs(pair, 40, "faq", "retrieval", first=1000)
    write_shards(tmp_path, "filter", rows)

    def hold(without: str = "", **settings: object) -> set[tuple[str, str]]:
        summary = dedup(tmp_path, make_recipe(without, **settings), ONE)
        skipped.append(summary.skipped)
        return questions_of(read(tmp_path, "dedup/rejected"))

    skipped: list[int] = []
    some, more = hold(share=0.1), hold(share=0.2)
    assert (len(some), len(more)) == (8, 16)
    assert some < more
    assert hold(share=0.2) == more
    assert hold(share=0.1) == some
    assert hold("faq", share=0.1) == {each for each in some if each[0] == "web"}
    assert [read_footer(one).notes["source"] for one in find_own_sets(tmp_path)] == ["web", "sentences", "labels"]
    assert skipped == [0, 0, 1, 0, 0]

    dedup(tmp_path, make_recipe().model_copy(update={"holdout": None}), ONE)
    assert read(tmp_path, "dedup").height == len(rows)
    with pytest.raises(CorpusError, match="no evaluation sets; add `evaluation:` or `holdout:`"):
        find_own_sets(tmp_path)
    assert hold(share=0.1) == some


@pytest.mark.parametrize("broken", ["stage.dedup_shard", "stage.write_set"])
def test_a_run_that_fails_is_taken_up_and_until_then_nobody_evaluates(
    tmp_path: Path, pair, write_shards, read, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    rows = make_pairs(pair, 30)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    write_shards(tmp_path, "filter", rows[:20])
    before = run(tmp_path, make_recipe(share=0.2), read)
    write_shards(tmp_path, "filter", rows[:20], rows[20:])
    with monkeypatch.context() as patched:
        patched.setattr(f"conan_embedding.pipeline.dedup.{broken}", fail)
        with pytest.raises((StageError, OSError), match="no space left"):
            dedup(tmp_path, make_recipe(share=0.2), ONE)
    with pytest.raises(CorpusError, match="`conan dedup` was interrupted"):
        find_own_sets(tmp_path)
    after = run(tmp_path, make_recipe(share=0.2), read)
    assert questions_of(before) < questions_of(after)
    assert (len(before), len(after)) == (4, 6)
    assert dedup(tmp_path, make_recipe(share=0.2), ONE).skipped == 2


def test_sources_that_shrink_move_no_question_into_training(tmp_path: Path, pair, write_shards, read) -> None:
    rows = make_pairs(pair, 40)
    write_shards(tmp_path, "filter", rows)
    before = run(tmp_path, make_recipe(share=0.2), read)
    held = [row for row in rows if row["query"] in set(before["query"])]
    write_shards(tmp_path, "filter", held + rows[:20])
    assert set(held_queries := run(tmp_path, make_recipe(share=0.2), read)["query"]) == set(before["query"])
    assert len(held_queries) == 8


def test_what_many_pairs_share_is_held_out_last(tmp_path: Path, pair, write_shards, read) -> None:
    popular = [pair(text(2 * i), text(9999), "faq", "retrieval") for i in range(30)]
    write_shards(tmp_path, "filter", popular + make_pairs(pair, 10, "faq", "retrieval", first=1000))
    held = run(tmp_path, make_recipe(share=0.2), read)
    assert len(held) == 8
    assert text(9999) not in set(held["positive"])


def test_what_can_not_be_held_out_is_said(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path / "few", "filter", make_pairs(pair, 4))
    with pytest.raises(RecipeError, match=r"holdout: no question can be held out.*faq 0, web 4"):
        dedup(tmp_path / "few", make_recipe(), ONE)
    one_class = [pair(text(i), "体育", "labels", "classification") for i in range(60)]
    write_shards(tmp_path / "class", "filter", one_class)
    with pytest.raises(RecipeError, match=r"12 texts of labels in 1 classes.*Set `holdout: false`"):
        dedup(tmp_path / "class", make_recipe(share=0.2), ONE)
    one_answer = [pair(text(i), text(1000), "web") for i in range(60)]
    write_shards(tmp_path / "answer", "filter", one_answer)
    with pytest.raises(RecipeError, match=r"of web share an answer with, or resemble, 48 of the 48 others"):
        dedup(tmp_path / "answer", make_recipe(share=0.2), ONE)
    write_shards(tmp_path / "list", "filter", make_pairs(pair, 10))
    (tmp_path / "list" / HELD_OUT).parent.mkdir(parents=True)
    (tmp_path / "list" / HELD_OUT).write_text("no table")
    with pytest.raises(CorpusError, match=r"questions\.parquet: can't be read as the questions that are held out"):
        dedup(tmp_path / "list", make_recipe(), ONE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holdout": {"share": 0.3}}, "less than or equal to 0.2"),
        ({"holdout": {"by": "pair"}}, "Input should be 'cluster'"),
        ({"holdout": {"min": 300, "max": 200}}, "min is 300 and above max, 200"),
        ({"evaluation": [{"name": "faq", "files": "*", "read": "json"}]}, "faq is also a source"),
        ({"evaluation": [{"name": "e", "files": "*", "read": "json", "holdout": False}]}, "`holdout` is for `sources`"),
        ({"pretrain": {"on": "filter"}}, "pretrain.on is filter"),
        ({"bootstrap": {"training": {"on": "ingest"}}}, "bootstrap.training.on is ingest"),
        ({"sources": [{"name": "p", "files": "*", "read": "json", "task": "passage"}]}, "no source has questions"),
    ],
)
def test_recipes_that_hold_nothing_out_or_leak_are_refused(change: dict, message: str) -> None:
    faq = {"sources": [{"name": "faq", "files": "*", "read": "json"}], "holdout": {}}
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(faq | change)
