"""The texts that are mined, as DuckDB collects them."""

from pathlib import Path

import duckdb
import pytest
from conan_embedding.pipeline.mine import texts as module
from conan_embedding.pipeline.mine.texts import _execute, find_own_texts

QUERIES = ["怎样泡茶？", "ＡＢＣ", "另问"]
PASSAGES = ["怎样泡茶", "怎样 泡茶!", "abc", "怎样泡绿茶"]


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize(("condition", "found"), [("", [(0, 0), (0, 1), (1, 2)]), ("WHERE query_id = 1", [(1, 2)])])
def test_own_texts_are_found_whatever_their_case_width_and_punctuation(
    condition: str, found: list[tuple[int, int]], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    with duckdb.connect(":memory:") as pools:
        for table, side, listed in (("mined_queries", "query", QUERIES), ("passages", "passage", PASSAGES)):
            pools.execute(f"CREATE TABLE {table} ({side}_id BIGINT, text VARCHAR)")
            pools.executemany(f"INSERT INTO {table} VALUES (?, ?)", list(enumerate(listed)))
        find_own_texts(pools, condition)
        assert pools.sql("FROM own_texts ORDER BY ALL").fetchall() == found


def test_a_statement_that_memory_is_too_small_for_is_run_without_the_limit(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "pools"), config={"memory_limit": "10MB", "threads": 4}) as pools:
        lists = "CREATE TABLE lists AS SELECT list(i) AS own FROM range(5000000) numbers(i)"  # one value of 40 MB
        with pytest.raises(duckdb.OutOfMemoryException):
            pools.execute(lists)
        _execute(pools, lists)
        assert pools.sql("SELECT len(own) FROM lists").fetchall() == [(5_000_000,)]
