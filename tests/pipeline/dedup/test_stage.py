"""The dedup stage against brute force over Python sets of shingles."""

import json
from collections import defaultdict
from pathlib import Path
from random import Random

import polars as pl
import pytest
from conan_embedding.pipeline.dedup.stage import dedup, rank_sources
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import StageError
from conan_embedding.schemas.errors import CorpusError, RecipeError
from conan_embedding.schemas.recipe import Recipe
from near_texts import letters, near, outcome, recipe, similarity, text

ONE = Engine(workers=1)


def clusters(texts: list[str]) -> dict[str, int]:
    """Return the component of each distinct text, by comparing all with all."""
    distinct = sorted(set(texts))
    sets = [{each[i : i + 5] for i in range(len(each) - 4)} for each in distinct]
    component = list(range(len(distinct)))
    for i, left in enumerate(sets):
        for j in range(i):
            if len(left & sets[j]) >= 0.7 * len(left | sets[j]):
                old, new = component[i], component[j]
                component = [new if each == old else each for each in component]
    return dict(zip(distinct, component, strict=True))


def messy(pair, count: int) -> list[dict]:
    """Make pairs of three sources and two tasks, with exact and near copies of one side or both."""
    dice = Random(3)
    rows = [pair(text(2 * number), text(2 * number + 1), f"source{number % 3}") for number in range(count)]
    for number in range(count):
        original = dice.choice(rows)
        query, positive = original["query"], original["positive"]
        match dice.randrange(6):
            case 0:
                query, positive = query + "？", "“" + positive + "”"
            case 1:
                query, positive = near(query, number), near(positive, number)
            case 2:
                query = text(10_000 + number)
            case 3:
                positive = text(20_000 + number)
            case 4:
                positive += text(number, 9)
            case 5:
                query = query[:-1]
        task = "retrieval" if dice.random() < 0.2 else "pretrain"
        rows.append(pair(query, positive, f"source{dice.randrange(3)}", task))
    return list({row["pair_id"]: row for row in rows}.values())


def brute_force(rows: list[dict], priority: dict[str, int]) -> dict[str, tuple[str, str]]:
    """Return pair_id → (reason, survivor) for every pair that is rejected."""
    queries = clusters([letters(row["query"]) for row in rows])
    positives = clusters([letters(row["positive"]) for row in rows])
    gone = {}

    def resembles(one: dict, other: dict) -> bool:
        sides = [(letters(one[side]), letters(other[side])) for side in ("query", "positive")]
        return all(left == right or similarity(left, right) >= 0.7 for left, right in sides)

    def remove(reason: str, name) -> None:
        groups = defaultdict(list)
        for row in rows:
            if row["pair_id"] not in gone:
                groups[row["task"], *name(letters(row["query"]), letters(row["positive"]))].append(row)
        for group in groups.values():
            survivors: list[dict] = []
            for row in sorted(group, key=lambda row: (priority[row["source"]], -len(row["positive"]), row["pair_id"])):
                if named := next((one for one in survivors if resembles(one, row)), None):
                    gone[row["pair_id"]] = reason, named["pair_id"]
                else:
                    survivors.append(row)

    remove("exact_duplicate", lambda query, positive: (query, positive))
    remove("near_duplicate", lambda query, positive: (queries[query], positives[positive]))
    # If the survivor of a pair is rejected itself, the pair names the survivor of that one.
    return {name: (reason, gone.get(survivor, ("", survivor))[1]) for name, (reason, survivor) in gone.items()}


def test_brute_force_agrees_however_the_rows_are_cut_into_shards(tmp_path: Path, pair, write_shards, read) -> None:
    rows = messy(pair, 200)
    expected = brute_force(rows, {"source0": 1, "source1": 0, "source2": 2})
    assert {reason for reason, _ in expected.values()} == {"exact_duplicate", "near_duplicate"}
    found = []
    for name, shards in (
        ("one", [rows]),
        ("three", [rows[::2], [], rows[1::2]]),
        ("back", [rows[::-1][:150], rows[::-1][150:]]),
    ):
        write_shards(tmp_path / name, "filter", *shards)
        summary = dedup(tmp_path / name, recipe(("source1", None), ("source0", None), ("source2", None)), ONE)
        assert summary.rows_in == len(rows) == summary.rows_out + sum(summary.rejected.values())
        found.append(outcome(tmp_path / name, read))
    kept, rejected = found[0]
    assert rejected == expected
    assert kept.keys() == {row["pair_id"] for row in rows} - expected.keys()
    assert found[1] == found[2] == found[0]

    positives = {row["pair_id"]: letters(row["positive"]) for row in rows}
    component = clusters(list(positives.values()))
    numbered = {(kept[pair_id], component[positives[pair_id]]) for pair_id in kept}
    assert len(numbered) == len({number for number, _ in numbered}) == len({name for _, name in numbered})
    assert min(kept.values()) >= 0


def test_contaminated_pairs(tmp_path: Path, pair, write_shards, read) -> None:
    question, passage, haystack = text(1), text(2), text(3)
    held_out = [
        pair(question, passage, "exam", "retrieval"),
        pair("", haystack, "exam", "passage"),
    ]
    classes = [pair(text(4), "体育", "labels", "classification")]
    rows = [
        pair(near(question), text(11)),
        pair(text(12), near(passage)),
        pair(passage, text(13)),
        pair(near(haystack), text(14)),
        pair(text(15), "体育", "topics", "classification"),
        pair("体育", text(16)),
        pair(near(text(4)), text(17)),
    ]
    write_shards(tmp_path, "filter", rows)
    write_shards(tmp_path, "evaluation", held_out, classes)
    summary = dedup(tmp_path, recipe(), ONE)
    thrown = read(tmp_path, "dedup/rejected")
    assert thrown["pair_id"].to_list() == [rows[place]["pair_id"] for place in (0, 1, 2, 6)]
    assert set(thrown["reason"]) == {"contaminated"}
    assert [each.partition(":")[0] for each in thrown["detail"]] == [
        "query exam", "positive exam", "query exam", "query labels",
    ]  # fmt: skip
    assert float(thrown["detail"][0].partition(": ")[2]) == round(similarity(near(question), question), 3)
    assert summary.rejected == {"contaminated": 4}

    assert dedup(tmp_path, recipe(decontaminate=["labels"]), ONE).rejected == {"contaminated": 1}
    assert dedup(tmp_path, recipe(decontaminate=False), ONE).rejected == {}


def test_contamination_is_decided_before_survival(tmp_path: Path, pair, write_shards, read) -> None:
    """The better of two duplicates is contaminated, so the other one survives."""
    long = text(1, 200)
    held_out, query, further = (long[start : start + 160] for start in (0, 20, 40))
    assert similarity(held_out, further) < 0.7 < similarity(held_out, query) == similarity(query, further)
    better, other = pair(query, text(2) + "们"), pair(further, text(2))
    write_shards(tmp_path, "filter", [better, other])
    assert dedup(tmp_path, recipe(), ONE).rejected == {"near_duplicate": 1}
    assert list(outcome(tmp_path, read)[0]) == [better["pair_id"]]
    write_shards(tmp_path, "evaluation", [pair(held_out, text(3), "exam")])
    assert dedup(tmp_path, recipe(), ONE).rejected == {"contaminated": 1}
    assert list(outcome(tmp_path, read)[0]) == [other["pair_id"]]


def test_evaluation_sets_from_files(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair(text(1), text(2)), pair(text(3), text(4)), pair(text(5), text(6))])
    records = [{"query": text(90), "positives": [text(91), near(text(2))]}, {"query": text(3), "positives": []}]
    lines, table = tmp_path / "held_out.jsonl", tmp_path / "held_out.parquet"
    lines.write_text("\n".join(json.dumps(record) for record in records))
    pl.DataFrame({"text_a": [text(6)], "text_b": [None]}, schema_overrides={"text_b": pl.String}).write_parquet(table)
    assert dedup(tmp_path, recipe(decontaminate=[str(lines)]), ONE).rows_out == 1
    assert dedup(tmp_path, recipe(decontaminate=[str(lines), str(table)]), ONE).rows_out == 0
    pl.DataFrame({"question": [text(6)]}).write_parquet(table)
    with pytest.raises(RecipeError, match=r"none of the columns query, .* it has question"):
        dedup(tmp_path, recipe(decontaminate=[str(table)]), ONE)
    with pytest.raises(
        RecipeError, match=r"exam is neither .* nor an evaluation set of the corpus; there is nothing to choose from$"
    ):
        dedup(tmp_path, recipe(decontaminate=["exam"]), ONE)


def test_a_half_ingested_evaluation_is_not_trusted(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair(text(1), text(2))])
    write_shards(tmp_path, "evaluation", [pair(text(1), text(2), "exam")])
    (tmp_path / "evaluation" / ".incomplete").touch()
    with pytest.raises(CorpusError, match="interrupted"):
        dedup(tmp_path, recipe(), ONE)


def test_evaluation_sets_may_have_left_the_recipe(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair(text(1), text(2))])
    (tmp_path / "evaluation" / "rejected").mkdir(parents=True)
    assert dedup(tmp_path, recipe(), ONE).rows_out == 1


def test_a_second_run_has_nothing_to_do(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "filter", [pair(text(1), text(2))], [pair(text(1), text(2))], [])
    first = dedup(tmp_path, recipe(), Engine(workers=2))
    assert (first.rows_in, first.rows_out, first.skipped) == (2, 1, 0)
    assert dedup(tmp_path, recipe(), ONE).skipped == 3
    assert dedup(tmp_path, recipe(threshold=0.8), ONE).skipped == 0
    assert sorted(file.name for file in (tmp_path / "dedup").iterdir() if file.is_file()) == [
        f"part-0000{number}.parquet" for number in range(3)
    ]


def test_nothing_at_all(tmp_path: Path, pair, write_shards, read) -> None:
    write_shards(tmp_path, "filter", [], [])
    write_shards(tmp_path, "evaluation", [pair(text(1), text(2), "exam")], [])
    assert dedup(tmp_path, recipe(), ONE).rows_in == 0
    assert read(tmp_path, "dedup").is_empty()
    assert "cluster_id" in read(tmp_path, "dedup").columns


def test_texts_without_letters_are_compared_as_they_are(tmp_path: Path, pair, write_shards, read) -> None:
    rows = [pair("。。。", text(2)), pair("！！！", text(2)), pair("。。。", text(2))]
    write_shards(tmp_path, "filter", rows)
    dedup(tmp_path, recipe(), ONE)
    assert sorted(read(tmp_path, "dedup")["query"]) == ["。。。", "！！！"]


def test_texts_that_differ_in_a_sign_stay(tmp_path: Path, pair, write_shards, read) -> None:
    sides = [
        ("-5的绝对值是多少？", "它的绝对值是5。"),
        ("5的绝对值是多少？", "它的绝对值是5。"),
        ("这种药一次吃多少？", "一次1.5毫克，一日三次，饭后服用。"),
        ("这种药一次吃多少？", "一次15毫克，一日三次，饭后服用。"),
        ("C++和Java哪个更难学？", "看个人的基础和目标。"),
        ("C#和Java哪个更难学？", "看个人的基础和目标。"),
    ]
    same = [pair("C# 和 Java，哪个更难学", "看个人的基础和目标")]
    write_shards(tmp_path, "filter", [pair(*each) for each in sides], same)
    assert dedup(tmp_path, recipe(), ONE).rejected == {"exact_duplicate": 1}
    kept = {row["query"].replace(" ", "")[:3] for row in read(tmp_path, "dedup").to_dicts()}
    assert kept == {"-5的", "5的绝", "这种药", "C++", "C#和"}
    assert read(tmp_path, "dedup").height == 6


SOURCES = recipe(("source1", None), ("source0", None), ("source2", None))


def signed(corpus: Path) -> dict[str, tuple[int, int]]:
    """Return each signature shard's file and the time at which it was written."""
    states = {shard.name: shard.stat() for shard in (corpus / "dedup/signatures").iterdir()}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def test_sources_that_are_added_are_signed_alone(tmp_path: Path, pair, write_shards, read) -> None:
    rows = messy(pair, 60)
    parts = [rows[:40], rows[40:70], rows[70:100], rows[100:]]
    old, fresh = tmp_path / "old", tmp_path / "fresh"
    write_shards(old, "filter", *parts[:2])
    dedup(old, SOURCES, ONE)
    before = signed(old)
    assert sorted(before) == ["part-00000.parquet", "part-00001.parquet"]
    write_shards(old, "filter", *parts)
    write_shards(fresh, "filter", *parts)
    dedup(old, SOURCES, ONE)
    dedup(fresh, SOURCES, ONE)
    after = signed(old)
    assert len(after) == 4 and before.items() <= after.items()
    assert outcome(old, read) == outcome(fresh, read)
    dedup(old, recipe(*(("source1", 7), ("source0", 1)), threshold=0.7, on="query"), ONE)
    assert signed(old) == after
    (old / "filter/part-00002.parquet").unlink()  # a source is removed
    dedup(old, SOURCES, ONE)
    assert signed(old) == {name: one for name, one in after.items() if name != "part-00002.parquet"}


def test_workers_and_parts_of_the_work_change_nothing(
    tmp_path: Path, pair, write_shards, read, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = messy(pair, 50)
    held_out = [pair(near(rows[place]["query"]), text(900 + place), "exam") for place in range(0, 50, 9)]

    def found(name: str, engine: Engine, **small: int) -> tuple:
        write_shards(tmp_path / name, "evaluation", held_out)
        for constant, value in small.items():
            module = {"_JUDGED": "dedup.survivors", "ROW_GROUP": "corpus.shard_writer"}.get(constant, "dedup.clusters")
            monkeypatch.setattr(f"conan_embedding.pipeline.{module}.{constant}", value)
        write_shards(tmp_path / name, "filter", rows[::3], rows[1::3], [], rows[2::3])
        dedup(tmp_path / name, SOURCES, engine)
        thrown = read(tmp_path / name, "dedup/rejected").select("pair_id", "reason", "detail").sort("pair_id")
        return read(tmp_path / name, "dedup").rows(), thrown.rows()

    expected = found("one", ONE)
    assert {reason for _, reason, _ in expected[1]} == {"contaminated", "exact_duplicate", "near_duplicate"}
    assert found("judged", ONE, _JUDGED=7) == expected
    assert found("groups", ONE, ROW_GROUP=16) == expected
    assert found("two", Engine(workers=2), _JUDGED=30, _BLOCK_BYTES=50_000, _FEW=0) == expected


@pytest.mark.parametrize("broken", ["stage.dedup_shard", "decontamination.mark_contaminated", "stage.decide"])
def test_the_work_folder_goes_and_a_failed_run_is_taken_up(
    tmp_path: Path, pair, write_shards, read, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    rows = messy(pair, 30)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    for name in ("whole", "broken"):
        write_shards(tmp_path / name, "filter", rows[::2], rows[1::2])
        write_shards(tmp_path / name, "evaluation", [pair(near(rows[3]["query"]), text(900), "exam")])
    dedup(tmp_path / "whole", SOURCES, ONE)
    with monkeypatch.context() as patched:
        patched.setattr(f"conan_embedding.pipeline.dedup.{broken}", fail)
        with pytest.raises((StageError, OSError), match="no space left"):
            dedup(tmp_path / "broken", SOURCES, ONE)
    before = signed(tmp_path / "broken")
    dedup(tmp_path / "broken", SOURCES, ONE)
    assert signed(tmp_path / "broken") == before
    assert outcome(tmp_path / "broken", read) == outcome(tmp_path / "whole", read)
    for name in ("whole", "broken"):
        assert sorted(one.name for one in (tmp_path / name / "dedup").iterdir()) == [
            "part-00000.parquet", "part-00001.parquet", "rejected", "signatures",
        ]  # fmt: skip


def test_what_is_not_compared_is_not_signed(tmp_path: Path, pair, write_shards) -> None:
    def sides(corpus: Path, **settings: object) -> set[str]:
        dedup(corpus, recipe(**settings), ONE)
        names = pl.read_parquet_schema(corpus / "dedup/signatures/part-00000.parquet")
        return {name.partition("_band_")[0] for name in names if "_band_" in name}

    rows = [pair(text(1), text(2))]
    write_shards(tmp_path / "plain", "filter", rows)
    assert sides(tmp_path / "plain", on="positive") == {"positive"}
    assert sides(tmp_path / "plain", on="query") == {"query", "positive"}  # cluster_id needs the positives
    write_shards(tmp_path / "classes", "filter", [*rows, pair(text(1), "体育", "topics", "classification")])
    assert sides(tmp_path / "classes", on="positive") == {"query", "positive"}
    write_shards(tmp_path / "exam", "filter", rows)
    write_shards(tmp_path / "exam", "evaluation", [pair(text(5), text(6), "exam")])
    assert sides(tmp_path / "exam", on="positive") == {"query", "positive"}
    assert sides(tmp_path / "exam", on="positive", decontaminate=False) == {"positive"}


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({}, "21 × 6 find 92.8% of pairs at Jaccard 0.7"),
        ({"recall": 0.9}, "19 × 6 find 90.7% of pairs at Jaccard 0.7"),
        ({"threshold": 0.8, "recall": 0.99}, "16 × 6 find 99.2% of pairs at Jaccard 0.8"),
    ],
)
def test_the_bands_are_told(tmp_path: Path, pair, write_shards, settings: dict[str, float], note: str) -> None:
    write_shards(tmp_path, "filter", [pair(text(1), text(2))])
    for _ in range(2):  # the second time there is nothing to do
        assert dedup(tmp_path, recipe(**settings), ONE).notes["bands"] == note
    bands, rows = (int(number) for number in note.partition(" find")[0].split(" × "))
    columns = pl.read_parquet_schema(tmp_path / "dedup/signatures/part-00000.parquet")
    assert sum("query_band" in name for name in columns) == bands
    threshold = settings.get("threshold", 0.7)
    assert f"{1 - (1 - threshold**rows) ** bands:.1%}" in note


def test_one_positive_under_several_queries_has_one_cluster(tmp_path: Path, pair, write_shards, read) -> None:
    rows = [
        pair(text(1), text(20)),
        pair(text(2), text(20), "other"),
        pair(text(3), "“" + text(20) + "”"),
        pair(text(4), near(text(20)), task="retrieval"),
        pair(text(5), text(21)),
    ]
    write_shards(tmp_path, "filter", rows[:3], rows[3:])
    for on in ("pair", "query"):
        assert dedup(tmp_path, recipe(on=on), ONE).rejected == {}
        numbers = dict(read(tmp_path, "dedup").select("pair_id", "cluster_id").iter_rows())
        ids = [numbers[row["pair_id"]] for row in rows]
        assert ids[0] == ids[1] == ids[2] == ids[3] != ids[4]


@pytest.mark.parametrize("on", ["pair", "query", "positive"])
def test_passages_are_compared_by_their_text(tmp_path: Path, pair, write_shards, read, on: str) -> None:
    rows = [
        pair("", text(1), "source0", "passage"),
        pair("", near(text(1)), "source1", "passage"),
        pair("", "“" + text(1) + "”", "source2", "passage"),
        pair("", text(2), "source0", "passage"),
        pair(text(3), text(1), "source0"),
    ]
    write_shards(tmp_path, "filter", rows[::2], rows[1::2])
    dedup(tmp_path, recipe(("source0", None), ("source1", None), ("source2", None), on=on), ONE)
    kept, rejected = outcome(tmp_path, read)
    ids = [row["pair_id"] for row in rows]
    assert rejected == {ids[1]: ("near_duplicate", ids[0]), ids[2]: ("exact_duplicate", ids[0])}
    assert kept[ids[0]] == kept[ids[4]] != kept[ids[3]]


def test_what_a_language_model_writes_yields_to_all_other_sources() -> None:
    """Wherever it is in the recipe: its passages are what is left of the others."""
    asked = {"server": {"model": "m"}, "budget": {"requests": 1, "tokens": 1}}
    written = {"format": "question_answer", "synthesize": asked}
    files = {"files": "*.jsonl", "read": "jsonl"}
    sources = [
        {"name": "one", **written},
        {"name": "late", "priority": 7, **files},
        {"name": "two", **written},
        {"name": "early", **files},
    ]
    ranks = rank_sources(Recipe.model_validate({"sources": sources}))
    assert ranks == {"late": 7, "early": 3, "one": 8, "two": 10}
