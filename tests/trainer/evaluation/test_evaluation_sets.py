"""Evaluation sets written by hand and by ingest; and the errors about files that are not evaluation sets."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.schemas.errors import CorpusError, RecipeError
from conan_embedding.schemas.settings import SourcePrompts
from conan_embedding.trainer.evaluation.evaluation_sets import EvaluationSet, haystack, read_sets

PAIRS = pl.DataFrame(
    {
        "source": ["qa", "qa", "qa", "qa", "pairs", "pairs", "pre"],
        "task": ["retrieval", "retrieval", "passage", "retrieval", "sts", "sts", "pretrain"],
        "pair_id": list("abcdefg"),
        "query": ["问", "问", "", "又问", "甲", "乙", "题"],
        "positive": ["答", "另答", "只供检索", "又答", "丙", "丁", "文"],
        "negatives": [["错"], ["也错"], [], [], [], [], []],
        "label": [None, None, None, None, 0.2, 1.0, None],
    }
)


def as_dict(one: EvaluationSet) -> tuple[str, str, list[Any], list[str]]:
    return one.name, one.task, one.frame.rows(named=True), one.passages.to_list()


def test_pairs_as_ingest_writes_them_are_a_set_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    named = PAIRS.with_columns(pl.col("source", "task").cast(pl.Categorical))
    named.filter(pl.col("source") != "pre").write_parquet(folder / "part-00000.parquet")
    own = PAIRS.filter(pl.col("source") == "pre").drop("negatives", "label", "pair_id")
    own.write_ndjson(folder / "own.jsonl")
    (folder / "notes.txt").write_text("not a set")
    (folder / "results").mkdir()
    (folder / "results" / "model.parquet").write_text("not a set")
    found = sorted((as_dict(one) for one in read_sets([folder])), key=lambda one: one[0])
    qa = [
        {"query": "问", "query_id": "a", "positives": ["答", "另答"], "negatives": ["错", "也错"]},
        {"query": "又问", "query_id": "d", "positives": ["又答"], "negatives": []},
    ]
    pairs = [
        {"query_id": "e", "text_a": "甲", "text_b": "丙", "label": pytest.approx(0.2)},
        {"query_id": "f", "text_a": "乙", "text_b": "丁", "label": 1.0},
    ]
    assert found[0] == ("pairs", "sts", pairs, [])
    assert found[1][:3] == (
        "pre",
        "retrieval",
        [{"query": "题", "query_id": "0", "positives": ["文"], "negatives": []}],
    )
    assert found[2][:3] == ("qa", "retrieval", qa)
    assert set(found[2][3]) >= {"答", "另答", "只供检索", "又答", "错", "也错"}


def test_classes_of_pairs_are_their_positives(tmp_path: Path) -> None:
    texts = pl.DataFrame({"query": [f"文{i}" for i in range(12)], "positive": ["甲", "乙", "丙"] * 4})
    texts.with_columns(source=pl.lit("news"), task=pl.lit("classification")).write_parquet(tmp_path / "c.parquet")
    (one,) = read_sets([tmp_path / "c.parquet"])
    assert (one.name, one.task) == ("news", "classification")
    assert one.frame.row(4, named=True) == {"query_id": "4", "text": "文4", "class": "乙", "learnt": False}


def test_records_are_sets_too(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        '{"query": "问", "positives": ["答"], "negatives": ["错"], "query_id": 7}\n'
        '{"query": "没有答案", "positives": [], "negatives": [], "query_id": 8}\n'
        '{"query": "空的答案", "positives": [""], "negatives": [], "query_id": 8}\n'
        '{"query": "又问", "positives": ["又答", null], "negatives": null, "query_id": 9}\n'
    )
    pl.DataFrame({"text_a": ["甲", "乙", "己"], "text_b": ["丙", None, "庚"], "label": [0, 1, 3]}).write_parquet(
        tmp_path / "sts.parquet"
    )
    rows = [f'{{"text": "文{i}", "label": {i % 2}, "split": "{"train" if i < 6 else "test"}"}}' for i in range(10)]
    (tmp_path / "classes.jsonl").write_text("\n".join(rows))
    retrieval, sts, classes = read_sets([tmp_path / name for name in ("own.jsonl", "sts.parquet", "classes.jsonl")])
    assert as_dict(retrieval) == (
        "own",
        "retrieval",
        [
            {"query_id": "7", "query": "问", "positives": ["答"], "negatives": ["错"]},
            {"query_id": "9", "query": "又问", "positives": ["又答"], "negatives": []},
        ],
        [],
    )
    pairs = [
        {"query_id": "0", "text_a": "甲", "text_b": "丙", "label": 0},
        {"query_id": "2", "text_a": "己", "text_b": "庚", "label": 3},
    ]
    assert as_dict(sts) == ("sts", "sts", pairs, [])
    assert (classes.name, classes.task) == ("classes", "classification")
    assert classes.frame["learnt"].to_list() == [True] * 6 + [False] * 4
    assert classes.frame["class"].to_list() == ["0", "1"] * 5


def test_records_of_one_query_are_one_query(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        '{"query": "问", "positives": ["答"], "negatives": ["错"], "query_id": 7}\n'
        '{"query": "又问", "positives": ["又答"], "query_id": 8}\n'
        '{"query": "问", "positives": ["另答", "答"], "negatives": ["也错"], "query_id": 9}\n'
        '{"query": "问", "positives": [], "query_id": 10}\n'
    )
    (one,) = read_sets([tmp_path / "own.jsonl"])
    assert one.frame.rows(named=True) == [
        {"query_id": "7", "query": "问", "positives": ["答", "另答", "答"], "negatives": ["错", "也错"]},
        {"query_id": "8", "query": "又问", "positives": ["又答"], "negatives": []},
    ]
    assert haystack(one).wanted.tolist() == [True, True, False, False, True]


PAIR = '{"text_a": "甲", "text_b": "乙", "label": %s}\n'
STS = '{"source": "s", "task": "sts", "query": "甲", "positive": "乙", "label": %s}\n'


@pytest.mark.parametrize("record", [PAIR, STS])
@pytest.mark.parametrize("label", ['"0.5"', '"高"', "null", "true", "[1]", '{"a": 1}', "NaN", "Infinity"])
def test_labels_are_numbers_or_refused_with_their_line(tmp_path: Path, record: str, label: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(record % 1 + "\n" + record % 0.5 + record % label + record % '"later"')
    with pytest.raises(CorpusError, match=rf"^{file}:4: the label of a sentence pair must be a number, .* found "):
        read_sets([file])
    file.write_text(record % 1 * 150 + record % 0.25)
    assert read_sets([file])[0].frame["label"].to_list() == [1] * 150 + [0.25]


def test_labels_in_parquet_are_numbers_too(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text_a": ["甲"] * 3, "text_b": ["乙"] * 3, "label": [1.0, None, float("nan")]})
    for wrong in (frame, frame[[0, 2]], frame.with_columns(pl.lit("1").alias("label"))[[0, 0]]):
        wrong.write_parquet(tmp_path / "own.parquet")
        with pytest.raises(CorpusError, match=r"own\.parquet:[12]: the label of a sentence pair must be a number"):
            read_sets([tmp_path / "own.parquet"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"question": "问", "answer": "答"}', "expected the columns .* found question, answer"),
        ("a.jsonl", '{"query": "问", "positives": "答"}', "can't be read"),
        ("a.jsonl", "{broken", "can't be read"),
        ("a.jsonl", "", "can't be read"),
        ("a.parquet", "no Parquet", "can't be read"),
        ("a.jsonl", '{"query": "问", "positives": []}', "empty evaluation sets: a"),
        ("a.jsonl", '{"query": "", "positive": "p", "source": "s", "task": "retrieval"}', "empty evaluation sets: s"),
        ("a.jsonl", '{"text": "文", "label": 1}\n' * 20, "a can't be used for .* 1 classes and 20 texts, 20 of them"),
        ("a.jsonl", '{"text": "文", "label": 1}\n{"text": "文", "label": 2}', "can't be used .* 2 classes and 2 texts"),
        ("a.jsonl", '{"text": "文", "label": 1, "split": "train"}\n{"text": "文", "label": 2, "split": "train"}\n' * 9,
         "can't be used for .* 0 of them to test on"),
    ],
)  # fmt: skip
def test_what_is_no_set_is_said(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_sets([tmp_path / name])


def test_places_without_sets_are_said(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no evaluation sets in .*missing\.jsonl"):
        read_sets([tmp_path / "missing.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no evaluation sets in .*empty"):
        read_sets([tmp_path / "empty"])


def test_a_recipe_with_an_unknown_reader_is_said(tmp_path: Path) -> None:
    file = tmp_path / "sets.yaml"
    file.write_text("evaluation:\n  - name: own\n    files: own.csv\n    read: cvs\n")
    with pytest.raises(RecipeError, match=rf"^{file}:4: evaluation\.0\.read: no reader is called 'cvs'; .* 'csv'\?$"):
        read_sets([file])


def test_sets_have_the_prompts_of_their_recipe(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"query": "q", "positive": "p"}\n')
    (tmp_path / "own.jsonl").write_text('{"query": "q", "positives": ["p"]}\n')
    (tmp_path / "sets.yaml").write_text(
        f"evaluation: [{{name: asked, files: {tmp_path}/asked.jsonl, read: jsonl, instruction: Find it}}]"
    )
    by_name = {"own": SourcePrompts(query="own:"), "asked": SourcePrompts(query="another recipe's:")}
    found = {one.name: one.prompts for one in read_sets([tmp_path / "sets.yaml", tmp_path / "own.jsonl"], (), by_name)}
    assert found == {"asked": SourcePrompts(instruction="Find it"), "own": SourcePrompts(query="own:")}
    (plain,) = read_sets([tmp_path / "own.jsonl"])
    assert plain.prompts == SourcePrompts()


def test_two_sets_of_one_name_are_said(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jsonl").write_text('{"query": "问", "positives": ["答"]}')
    with pytest.raises(CorpusError, match="two evaluation sets have the name same"):
        read_sets([tmp_path / "one", tmp_path / "other"])


def test_a_haystack_has_each_text_once() -> None:
    frame = pl.DataFrame(
        {
            "query_id": ["0", "1", "2"],
            "query": ["q", "r", "s"],
            "positives": [["a", "b"], ["c", "c"], ["a"]],
            "negatives": [["n", "b", ""], [], None],
        },
        schema_overrides={"negatives": pl.List(pl.String)},
    )
    found = haystack(EvaluationSet("s", "retrieval", frame, pl.Series(["x", "a", "x", "", None])))
    assert sorted(found.passages) == ["a", "b", "c", "n", "x"]
    named = list(zip(found.owner, found.passages.gather(found.place), found.wanted, strict=True))
    assert [row[0] for row in named] == [0, 0, 0, 1, 2]
    assert set(named) == {(0, "a", True), (0, "b", True), (0, "n", False), (1, "c", True), (2, "a", True)}
