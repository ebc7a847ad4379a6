"""conan ingest --dry-run: what it says of sources, and that it writes nothing."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from conan_embedding.pipeline.ingest.preview import SourcePreview, preview
from conan_embedding.schemas.recipe import Recipe


def look(*sources: dict[str, Any]) -> list[SourcePreview]:
    return list(preview(Recipe.model_validate({"sources": sources})))


def test_a_source(tmp_path: Path) -> None:
    records = [{"t": f" 题{number}", "a": ["甲", "乙"], "n": number, "x": None} for number in range(5)]
    lines = [json.dumps(record) for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"t": "空", "a": []}', '{"t": "怪", "a": {}}', "{"]))
    (found,) = look(
        {
            "name": "web",
            "files": f"{tmp_path}/*.jsonl",
            "read": "jsonl",
            "query": "t",
            "positive": "a[2]",
            "where": "n > 0 OR n IS NULL",
        }
    )
    assert found == SourcePreview(
        "web",
        files=1,
        columns={"t": "VARCHAR", "a": "VARCHAR[]", "n": "BIGINT", "x": "null"},
        rows=8,
        kept=4,
        left_out=1,
        pairs=[("题1", "乙"), ("题2", "乙"), ("题3", "乙")],
        rejected={
            "broken_json": (1, f"{tmp_path}/a.jsonl, line 8: not valid JSON"),
            "column_type": (1, f"{tmp_path}/a.jsonl, line 7: a: expected VARCHAR[], found {{}}"),
            "no_positive": (1, f"{tmp_path}/a.jsonl, line 6: the recipe's SQL gave NULL here"),
        },
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]


def test_what_can_not_be_ingested(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "甲"}\n{"q": ["甲"]}\n')
    pl.DataFrame({"query": ["甲"], "positive": ["乙"]}).write_parquet(tmp_path / "a.parquet")
    mixed, absent, table = look(
        {"name": "mixed", "files": f"{tmp_path}/a.jsonl", "read": "jsonl", "query": "q", "positive": "q"},
        {"name": "absent", "files": f"{tmp_path}/*.csv", "read": "csv"},
        {"name": "table", "files": f"{tmp_path}/a.parquet", "read": "parquet"},
    )
    assert mixed.error is not None
    assert mixed.error.startswith("source mixed: the column q is mixed: 1 texts (first in ")
    assert mixed.columns["q"].startswith("the column q is mixed")
    assert absent.error == f"no file matches {tmp_path}/*.csv"
    assert (table.columns, table.pairs) == ({"query": "VARCHAR", "positive": "VARCHAR"}, [("甲", "乙")])
