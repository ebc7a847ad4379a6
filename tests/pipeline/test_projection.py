"""The recipe's SQL over one batch of rows, and over batches whose columns differ."""

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from conan_embedding.pipeline import corpus as folders
from conan_embedding.pipeline import readers, stretches
from conan_embedding.pipeline.engine import Engine, Summary
from conan_embedding.pipeline.ingest import ingest
from conan_embedding.pipeline.projection import Projected, project, unfit
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import Source


def projected(rows: dict[str, list[Any]], **source: Any) -> Projected:
    """What the recipe's SQL makes of a batch."""
    height = len(next(iter(rows.values())))
    batch = pl.DataFrame({"_row": range(height), "_file": ["a"] * height, "_line": range(1, height + 1), **rows})
    with readers.sandbox() as connection:
        connection.register("given", batch.to_arrow())
        connection.execute("CREATE TABLE batch AS FROM given")
        connection.execute("CREATE VIEW rows AS FROM batch")
        return project(connection, Source.model_validate({"name": "web", "files": "*", "read": "json", **source}))


def test_columns_that_are_not_there_are_null_and_named() -> None:
    found = projected({"a": ["甲", "乙"]}, query="a", positive="coalesce(b, a)", meta="{'d': c.d.e, 'f': f}")
    meta = '{"d":null,"f":null}'
    assert found.pairs.select("query", "positive", "meta").rows() == [("甲", "甲", meta), ("乙", "乙", meta)]
    assert sorted(found.missing) == ["b", "c", "f"]
    found = projected({"a": ["甲"]}, query="a", positive="b")
    assert found.pairs.is_empty()
    ((reason, detail, record),) = found.problems.select("reason", "detail", "record").rows()
    assert reason == "projection"
    assert detail == "source web: these rows have no column b. Columns there are: a"
    assert json.loads(record)["a"] == "甲"


def test_where_needs_its_columns() -> None:
    with pytest.raises(duckdb.BinderException, match="year"):
        projected({"a": ["甲"]}, query="a", positive="a", where="year > 2000")


def test_rows_that_where_leaves_out_are_counted() -> None:
    found = projected({"a": ["甲", "乙", None]}, query="a", positive="a", where="a <> '甲'")
    assert found.pairs["query"].to_list() == ["乙"]
    assert found.left_out == 2
    assert found.problems.is_empty()


def test_every_row_is_a_problem_where_nothing_fits() -> None:
    with readers.sandbox() as connection:
        connection.execute("CREATE TABLE batch AS SELECT 0 AS _row, 'a' AS _file, 7 AS _line, '甲' AS b")
        one = Source.model_validate({"name": "web", "files": "*", "read": "json"})
        (row,) = unfit(connection, one, ValueError("so it is")).rows(named=True)
    assert (row["line"], row["reason"]) == (7, "projection")
    assert row["detail"] == "source web: so it is Columns there are: b"


def summary(folder: Path, *records: dict[str, Any], **source: Any) -> tuple[Summary, list[tuple[str, str]]]:
    """Ingest each record as a file and a shard of its own."""
    for number, record in enumerate(records):
        (folder / f"{number}.jsonl").write_text(json.dumps(record))
    given = {"name": "web", "files": f"{folder}/*.jsonl", "read": "jsonl", **source}
    found = ingest(folder / "corpus", Recipe.model_validate({"sources": [given]}), Engine(workers=1))
    shards = folders.shards(folder / "corpus", "ingest")
    return found, pl.concat([pl.read_parquet(shard, columns=["query", "positive"]) for shard in shards]).rows()


@pytest.mark.parametrize("part", [1, 1 << 20])
def test_a_column_that_no_file_has_is_told(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that some have is NULL where it is not."""
    monkeypatch.setattr(stretches, "PART_BYTES", part)
    records = [{"a": "甲"}, {"a": "乙", "b": "x"}, {"a": "丙", "c": "y"}]
    found, pairs = summary(tmp_path, *records, query="a", positive="coalesce(b, c, titel, a)")
    assert found.notes["absent columns"] == ["web: no file has titel"]
    assert sorted(pairs) == sorted([("甲", "甲"), ("乙", "x"), ("丙", "y")])
    assert found.shards == (3 if part == 1 else 1)
