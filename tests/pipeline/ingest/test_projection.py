"""The recipe's SQL over one batch of rows, and over batches whose columns differ."""

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.ingest import readers, splits
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.pipeline.ingest.projection import Projected, project, reject_batch
from conan_embedding.pipeline.ingest.projector import Projector
from conan_embedding.pipeline.ingest.stage import ingest
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.source_settings import Source


def project_rows(rows: dict[str, list[Any]], **source: Any) -> Projected:
    """Run the recipe's SQL over a batch."""
    height = len(next(iter(rows.values())))
    batch = pl.DataFrame(
        {
            "_row": pl.arange(height, dtype=pl.UInt32, eager=True),
            "_file": ["a"] * height,
            "_line": range(1, height + 1),
            **rows,
        }
    )
    with readers.open_sandbox() as connection:
        one = Source.model_validate({"name": "web", "files": "*", "read": "hf", **source})
        readers.load_batch(connection, one, batch)
        return project(connection, one, batch)


def test_columns_that_are_not_there_are_null_and_named() -> None:
    found = project_rows({"a": ["甲", "乙"]}, query="a", positive="coalesce(b, a)", meta="{'d': c.d.e, 'f': f}")
    meta = '{"d":null,"f":null}'
    assert found.pairs.select("query", "positive", "meta").rows() == [("甲", "甲", meta), ("乙", "乙", meta)]
    assert sorted(found.missing) == ["b", "c", "f"]
    found = project_rows({"a": ["甲"]}, query="a", positive="b")
    assert found.pairs.is_empty()
    ((reason, detail, record),) = found.problems.select("reason", "detail", "record").rows()
    assert reason == "projection"
    assert detail == "source web: these rows have no column b. Available columns: a"
    assert json.loads(record)["a"] == "甲"


def test_a_missing_column_beside_the_point_does_not_hide_the_reason() -> None:
    """Only a column in the SQL that gave NULL is the reason."""
    found = project_rows({"a": ["甲"], "b": [None]}, query="a", positive="b", meta="{'u': url}")
    ((reason, detail),) = found.problems.select("reason", "detail").rows()
    assert reason == "no_positive"
    assert detail == (
        "the recipe's SQL gave NULL here; source web: these rows have no column url. Available columns: a, b"
    )
    found = project_rows({"a": ["甲"], "b": [None]}, query="title", positive="b", meta="{'u': url}")
    assert found.problems["reason"].to_list() == ["projection"]
    assert "no column title, url" in found.problems["detail"][0]


def test_sql_may_end_in_a_comment() -> None:
    rows = {"a": ["甲", "乙"], "b": [["丙"], []], "n": [1.0, 2.0]}
    parts = {"query": "a", "positive": "c", "select": "a AS c", "label": "n", "negatives": "b", "meta": "{'n': n}"}
    commented = {name: f"{sql} -- the {name}" for name, sql in parts.items()}
    for more in ({}, {"from": "rows -- all of them"}):
        if more:
            commented["select"] = "*, a AS c -- as it is"
        found = project_rows(rows, where="n < 2 -- the first", **commented, **more)
        assert found.pairs.select("query", "positive", "negatives", "label", "meta").rows() == [
            ("甲", "甲", ["丙"], 1.0, '{"n":1.0}')
        ]
        assert found.left_out == 1
    assert project_rows(rows, query="(SELECT 'x') -- y", positive="a").pairs["query"].to_list() == ["x", "x"]


def test_bytes_are_utf_8() -> None:
    found = project_rows({"a": ["甲".encode(), b"ab\xff"], "b": ["乙", "乙"]}, query="a", positive="b")
    assert found.pairs["query"].to_list() == ["甲"]
    assert found.problems.select("line", "reason").rows() == [(2, "no_query")]
    found = project_rows({"a": ["甲".encode()]}, query="(SELECT a) -- of one", positive="a")
    assert found.pairs.select("query", "positive").rows() == [("甲", "甲")]


@pytest.mark.parametrize(
    ("value", "kind"), [(["甲", "乙"], r"VARCHAR\[\]"), ({"c": "甲"}, "STRUCT"), ([["甲"]], r"VARCHAR\[\]\[\]")]
)
@pytest.mark.parametrize("side", ["query", "positive"])
def test_what_holds_several_texts_is_none(side: str, value: Any, kind: str) -> None:
    expected = rf"^a: expected text, found {kind}.* Unnest it in `select`, or take one element with \[1\]\.$"
    parts = {"query": "b", "positive": "b"}
    with pytest.raises(readers.SourceError, match=expected):
        project_rows({"a": [value], "b": ["x"]}, **parts | {side: "a"})


def test_a_list_may_be_taken_apart_and_stand_elsewhere() -> None:
    found = project_rows({"a": [["甲", "乙"]]}, query="a[1]", positive="a[2]", negatives="a", meta="{'a': a}")
    assert found.pairs.select("query", "positive", "negatives", "meta").rows() == [
        ("甲", "乙", ["甲", "乙"], '{"a":["甲","乙"]}')
    ]


# Rejects of rows that give several pairs


def reject_rows(folder: Path, text: str, **source: Any) -> list[dict[str, Any]]:
    """Return the rejected records."""
    (folder / "a.json").write_text(text)
    one = Source.model_validate({"name": "web", "files": "*", "read": "json", **source})
    splits = [FileSplit(f"{folder}/a.json")]
    one = decide_columns(one, splits).source
    with readers.open_sandbox() as connection, Projector(one) as projector:
        found = [projector.project(frame) for frame, _ in readers.read_batches(connection, one, splits)]
    problems = pl.concat([each.problems for each in found])
    assert problems["line"].to_list() == [1] * problems.height
    assert set(problems["file"]) == {f"{folder}/a.json"}
    return [json.loads(record) for record in problems["record"]]


def test_a_pair_of_a_shape_costs_itself(tmp_path: Path) -> None:
    text = json.dumps({"query": "x", "pos": ["p1", "p2", None]})
    assert reject_rows(tmp_path, text, read="triples") == [json.loads(text)]
    asked = [{"id": str(number), "question": None if number % 5 == 0 else f"问{number}"} for number in range(20)]
    text = json.dumps({"data": [{"title": "题", "paragraphs": [{"context": "文", "qas": asked}]}]})
    records = reject_rows(tmp_path, text, read="squad")
    assert records[0] == json.loads(text)  # the record as it was read; the others are known by their values
    assert [(record["query"], json.loads(record["meta"])["id"]) for record in records[1:]] == [
        (None, str(number)) for number in (5, 10, 15)
    ]


def test_a_document_of_many_rejects_is_kept_once(tmp_path: Path) -> None:
    items = [{"q": f"问{number}", "a": None} for number in range(50)] + [{"q": "问", "a": "答"}]
    records = reject_rows(
        tmp_path, json.dumps({"items": items}), select="unnest(items) AS v", query="v.q", positive="v.a"
    )
    assert records[0]["items"] == items
    assert [(record["query"], record["positive"]) for record in records[1:]] == [
        (f"问{number}", None) for number in range(1, 50)
    ]


@pytest.mark.parametrize("name", ["_pair", "rowid", "rows", "batch", "ROWID"])
def test_a_column_of_one_of_our_names(name: str) -> None:
    found = project_rows({name: [7, 7, 8], "a": ["甲", None, None]}, query="'x'", positive="a")
    assert found.pairs.height == 1
    assert [json.loads(record)[name] for record in found.problems["record"]] == [7, 8]


def test_where_needs_its_columns() -> None:
    with pytest.raises(duckdb.BinderException, match="year"):
        project_rows({"a": ["甲"]}, query="a", positive="a", where="year > 2000")


def test_rows_that_where_leaves_out_are_counted() -> None:
    found = project_rows({"a": ["甲", "乙", None]}, query="a", positive="a", where="a <> '甲'")
    assert found.pairs["query"].to_list() == ["乙"]
    assert found.left_out == 2
    assert found.problems.is_empty()


def test_every_row_is_a_problem_where_nothing_fits() -> None:
    with readers.open_sandbox() as connection:
        frame = pl.DataFrame(
            {"_row": [0], "_file": ["a"], "_line": [7], "b": ["甲"]}, schema_overrides={"_row": pl.UInt32}
        )
        one = Source.model_validate({"name": "web", "files": "*", "read": "hf"})
        readers.load_batch(connection, one, frame)
        (row,) = reject_batch(connection, one, frame, ValueError("so it is")).rows(named=True)
    assert (row["line"], row["reason"]) == (7, "projection")
    assert row["detail"] == "source web: so it is Available columns: b"


def summary(folder: Path, *records: dict[str, Any], **source: Any) -> tuple[Summary, list[tuple[str, str]]]:
    """Ingest each record from its own file into its own shard."""
    for number, record in enumerate(records):
        (folder / f"{number}.jsonl").write_text(json.dumps(record))
    given = {"name": "web", "files": f"{folder}/*.jsonl", "read": "jsonl", **source}
    found = ingest(folder / "corpus", Recipe.model_validate({"sources": [given]}), Engine(workers=1))
    shards = folders.shards(folder / "corpus", "ingest")
    return found, pl.concat([pl.read_parquet(shard, columns=["query", "positive"]) for shard in shards]).rows()


@pytest.mark.parametrize("part", [1, 1 << 20])
def test_a_column_that_no_file_has_is_told(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that only some files have is NULL in the others."""
    monkeypatch.setattr(splits, "SHARD_BYTES", part)
    records = [{"a": "甲"}, {"a": "乙", "b": "x"}, {"a": "丙", "c": "y"}]
    found, pairs = summary(tmp_path, *records, query="a", positive="coalesce(b, c, titel, a)")
    assert found.notes["absent_columns"] == ["web: no file has titel"]
    assert sorted(pairs) == sorted([("甲", "甲"), ("乙", "x"), ("丙", "y")])
    assert found.shards == (3 if part == 1 else 1)
