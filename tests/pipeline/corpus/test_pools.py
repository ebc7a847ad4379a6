"""pools.duckdb: replaced atomically by mine, updated by the trainer, read by both."""

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.catalog import query
from conan_embedding.pipeline.corpus.pools import (
    FILE,
    as_lists,
    read_candidates,
    read_passages,
    stored_fingerprint,
    write_pools,
    write_windows,
)
from conan_embedding.pipeline.mine.methods import ceiling_sql
from conan_embedding.schemas.errors import CorpusError

LOG = {"step": pl.Int64, "query_id": pl.Int64, "round": pl.Int32, "old_score": pl.Float32}
LOG |= {"initial_score": pl.Float32, "lo": pl.Int32, "hi": pl.Int32}


def tables(fingerprint: str = "first", queries: int = 3) -> dict[str, pa.Table]:
    run = {"run_id": "r", "model_fingerprint": "m", "method": "topk", "margin": 1.0, "top_k": 2}
    created = np.datetime64("2024-08-30", "us").item()
    ids = np.arange(queries)
    return {
        "runs": pa.Table.from_pylist([run | {"fingerprint": fingerprint, "created_at": created}]),
        "passages": pa.table({"passage_id": [0, 1, 2], "text": ["甲", "乙", "丙"], "cluster_id": [7, 8, 8]}),
        "queries": pa.table({"query_id": ids, "text": [f"问{number}" for number in ids]}),
        "positives": pa.table({"query_id": ids, "passage_id": ids % 3, "score": np.ones(queries, np.float32)}),
        "candidates": pa.table(
            {
                "query_id": ids[::-1],
                "run_id": ["r"] * queries,
                "passage_ids": as_lists(np.array([2, 1, 0]), [2, 0, 1, *[0] * (queries - 3)]),
                "scores": as_lists(np.array([0.5, 0.25, 0.75], np.float32), [2, 0, 1, *[0] * (queries - 3)]),
            }
        ),
    }


def windows(step: int, query_ids: list[int]) -> pl.DataFrame:
    numbers = pl.DataFrame({"query_id": query_ids}).with_columns(
        round=pl.lit(1, pl.Int32),
        lo=pl.lit(10, pl.Int32),
        hi=pl.lit(14, pl.Int32),
        initial_score=pl.lit(None, pl.Float32),
        last_score=pl.lit(0.5, pl.Float32),
        step=pl.lit(step, pl.Int64),
    )
    return numbers.select("step", pl.exclude("step"))  # inserted by name, not by position


def log(*entries: tuple[int, int]) -> pl.DataFrame:
    return pl.DataFrame([(step, query, 1, 0.5, 0.7, 10, 14) for step, query in entries], schema=LOG, orient="row")


def stored(corpus: Path, table: str, columns: str) -> list[tuple]:
    with duckdb.connect(str(corpus / FILE), read_only=True) as connection:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()


def test_lists() -> None:
    lists = as_lists(np.array([1, 2, 3]), [2, 0, 1])
    assert lists.to_pylist() == [[1, 2], [], [3]]
    assert as_lists(np.zeros(0, np.int64), []).to_pylist() == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert stored_fingerprint(tmp_path) is None
    write_pools(tmp_path, tables(), ceiling_sql())
    assert stored_fingerprint(tmp_path) == "first"
    pools = read_candidates(tmp_path)
    assert pools.to_dict(as_series=False) == {
        "query_id": [0, 1, 2],
        "query": ["问0", "问1", "问2"],
        "passage_ids": [[0], [], [2, 1]],
        "scores": [[0.75], [], [0.5, 0.25]],
    }
    passages = read_passages(tmp_path, np.array([2, 0, 2]))
    assert passages.rows() == [(0, "甲", 7), (2, "丙", 8)]
    assert read_passages(tmp_path, np.zeros(0, np.int64)).is_empty()


def test_pools_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_pools(tmp_path, tables(), ceiling_sql())
    (tmp_path / f".{FILE}.1.tmp").write_bytes(b"of a run that was killed")
    (tmp_path / f".{FILE}.1.tmp.wal").write_bytes(b"of a run that was killed")
    twice = tables("second")
    twice["queries"] = pa.concat_tables([twice["queries"]] * 2)
    with pytest.raises(duckdb.ConstraintException):
        write_pools(tmp_path, twice, ceiling_sql())
    assert stored_fingerprint(tmp_path) == "first"
    write_pools(tmp_path, tables("second", queries=4), ceiling_sql())
    assert stored_fingerprint(tmp_path) == "second"
    assert read_candidates(tmp_path).height == 4
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_an_unmerged_log_of_the_old_pools_is_not_replayed(tmp_path: Path) -> None:
    """A killed trainer leaves its write-ahead log next to the pools."""
    write_pools(tmp_path, tables(), ceiling_sql())
    held = tmp_path / "held"
    held.mkdir()
    with duckdb.connect(str(tmp_path / FILE)) as connection:
        connection.execute("SET checkpoint_threshold = '1GB'")
        connection.execute("INSERT INTO replacements VALUES (1, 1, 1, 0.5, 0.7, 10, 14, NULL)")
        for file in tmp_path.glob(f"{FILE}*"):
            (held / file.name).write_bytes(file.read_bytes())
    assert (held / f"{FILE}.wal").exists()
    assert stored_fingerprint(held) == "first"
    write_pools(held, tables("second"), ceiling_sql())
    assert stored_fingerprint(held) == "second"
    assert stored(held, "replacements", "step") == []


def test_windows_are_the_present_and_replacements_the_past(tmp_path: Path) -> None:
    write_pools(tmp_path, tables(), ceiling_sql())
    write_windows(tmp_path, windows(100, [0, 1]), log((100, 0), (100, 1)), 100)
    write_windows(tmp_path, windows(200, [1, 2]), log((200, 2)), 200)
    assert stored(tmp_path, "windows", "step, query_id, lo, hi, last_score") == [
        (200, 1, 10, 14, 0.5),
        (200, 2, 10, 14, 0.5),
    ]
    assert stored(tmp_path, "replacements", "step, query_id") == [(100, 0), (100, 1), (200, 2)]
    write_windows(tmp_path, windows(200, [1]), log(), 200)  # the end of training falls on a checkpoint
    assert stored(tmp_path, "replacements", "step, query_id") == [(100, 0), (100, 1), (200, 2)]
    write_windows(tmp_path, windows(200, [1]), log((200, 2)), 200)
    assert stored(tmp_path, "replacements", "step, query_id") == [(100, 0), (100, 1), (200, 2)]
    with pytest.raises(duckdb.Error):
        write_windows(tmp_path, windows(300, [2]), log((300, 0)).drop("lo"), 300)
    assert stored(tmp_path, "windows", "step, query_id") == [(200, 1)]
    assert stored_fingerprint(tmp_path) == "first"


def test_nothing_of_a_later_step_survives_a_resume(tmp_path: Path) -> None:
    write_pools(tmp_path, tables(), ceiling_sql())
    for step in (100, 200, 300):
        write_windows(tmp_path, windows(step, [0]), log((step, step)), step)
    write_windows(tmp_path, windows(150, [0]), log((150, 1)), 150)
    assert stored(tmp_path, "replacements", "step") == [(100,), (150,)]
    assert stored(tmp_path, "windows", "step") == [(150,)]


@pytest.mark.parametrize(
    ("method", "margin", "ceilings"),
    [
        ("topk", 1, [None, None]),
        ("topk-shifted", 10, [None, None]),
        ("topk-abs", 0.7, [0.7, 0.7]),
        ("topk-marginpos", 0.05, [-0.3, 0.75]),
        ("topk-percpos", 0.9, [-0.275, 0.72]),
    ],
)
def test_short_pools(method: str, margin: float, ceilings: list[float | None], tmp_path: Path) -> None:
    made = tables()
    run = made["runs"].to_pylist()[0] | {"method": method, "margin": margin}
    made["runs"] = pa.Table.from_pylist([run])
    positives = {"query_id": [0, 1, 1, 2], "passage_id": [0, 1, 2, 2], "score": [0.8, 0.5, -0.25, 0.9]}
    write_pools(tmp_path, made | {"positives": pa.table(positives)}, ceiling_sql())
    found = query(tmp_path, "FROM pools.short_pools").to_pylist()
    assert [list(row.values())[:4] for row in found] == [[1, "问1", 0, 2], [0, "问0", 1, 2]]
    assert [row["lowest_positive"] for row in found] == pytest.approx([-0.25, 0.8])
    for row, ceiling in zip(found, ceilings, strict=True):
        assert row["ceiling"] == (None if ceiling is None else pytest.approx(ceiling))


def test_no_pools_yet(tmp_path: Path) -> None:
    for call in (
        lambda: read_candidates(tmp_path),
        lambda: read_passages(tmp_path, np.array([0])),
        lambda: write_windows(tmp_path, windows(1, [0]), log(), 1),
    ):
        with pytest.raises(CorpusError, match=f"no {FILE}; run `conan mine"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_tables_of_an_earlier_shape_are_no_pools(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / FILE)) as connection:
        connection.execute("CREATE TABLE runs (run_id VARCHAR)")
    assert stored_fingerprint(tmp_path) is None
    write_pools(tmp_path, tables(), ceiling_sql())
    assert stored_fingerprint(tmp_path) == "first"
