"""Errors after which the SQL engine refuses all work cost the row that caused them, and nothing else."""

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.ingest import projector
from conan_embedding.schemas.recipe import Recipe
from ingested import Ingested


def ingest(folder: Path, **source: Any) -> Ingested:
    given = {"name": "web", "files": f"{folder}/*.parquet", "read": "parquet", **source}
    return Ingested(folder / "corpus", Recipe.model_validate({"sources": [given]}))


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("bad", [{0, 5}, {8}, set(range(9))])
def test_a_time_that_can_not_be_shown(rows: int, bad: set[int], tmp_path: Path) -> None:
    """DuckDB fails for good when it writes such a time as JSON."""
    times = [1717171717000000000 if row in bad else 1717171717000 for row in range(rows)]
    texts = pa.array([f"第{row}行" for row in range(rows)])
    table = pa.table({"query": texts, "positive": texts, "created": pa.array(times, pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert ingest(tmp_path).values("query") == texts.to_pylist()
    found = ingest(tmp_path, meta="{'time': created}")
    assert found.values("query") == [f"第{row}行" for row in range(rows) if row not in bad]
    rejects = found.rejects.select("line", "reason").rows()
    assert rejects == [(row + 1, "sql_engine") for row in sorted(bad) if row < rows]
    assert found.rejects["detail"].str.starts_with("the SQL engine failed on this row: ").all()


LATE = 9 * 10**18


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        (pa.array([{"a": LATE}], pa.struct([("a", pa.timestamp("us"))])), {"a": LATE}),
        (pa.array([[1, -LATE]], pa.list_(pa.timestamp("us"))), [1, -LATE]),
        (pa.array([[{"a": LATE}]], pa.list_(pa.struct([("a", pa.timestamp("us", "UTC"))]))), [{"a": LATE}]),
        (pa.array([2**31 - 1], pa.date32()), 2**31 - 1),
        (pa.array([[20_000, 2**31 - 1]], pa.list_(pa.date32(), 2)), [20_000, 2**31 - 1]),
        (pa.array([[20_000]], pa.list_(pa.date32())), ["2024-10-04"]),
    ],
)
def test_a_reject_shows_times_in_lists_and_structs(times: pa.Array, shown: Any, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"query": ["问"], "positive": pa.nulls(1, pa.string()), "t": times}), tmp_path / "a.parquet"
    )
    assert json.loads(ingest(tmp_path).rejects["record"][0]) == {"query": "问", "positive": None, "t": shown}


def test_a_reject_shows_a_time_that_can_not_be_shown(tmp_path: Path) -> None:
    times = pa.array([1717171717000000000, 1717171717000], pa.timestamp("ms"))
    pq.write_table(pa.table({"query": [None, "问"], "positive": ["一", "二"], "t": times}), tmp_path / "a.parquet")
    found = ingest(tmp_path)
    assert (found.values("query"), found.reasons()) == (["问"], ["no_query"])
    assert found.rejects["record"].to_list() == ['{"query":null,"positive":"一","t":1717171717000000000}']


def test_a_sandbox_that_fails_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined files are there again, and what `where` excludes is counted once."""
    whole = projector.project

    def fail(connection: duckdb.DuckDBPyConnection, source: Any, frame: pl.DataFrame, plans: Any) -> Any:
        if (frame["query"] == "坏").any():
            connection.close()
            raise duckdb.FatalException("FATAL Error: it is all over")
        return whole(connection, source, frame, plans)

    monkeypatch.setattr(projector, "project", fail)
    pl.DataFrame({"query": ["一", "坏", "二", "三"], "n": [1, 2, 3, 4]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "names.txt").write_text("名")
    found = ingest(
        tmp_path, positive="(SELECT line FROM names)", where="n <> 3", join={"names": f"{tmp_path}/names.txt"}
    )
    assert found.values("query", "positive") == [("一", "名"), ("三", "名")]
    assert found.rejects.select("line", "detail").rows() == [
        (2, "the SQL engine failed on this row: FATAL Error: it is all over")
    ]
    assert found.summary.notes["left_out_by_where"] == {"web": 1}
