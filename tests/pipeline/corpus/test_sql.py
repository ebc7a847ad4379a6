"""Paths and texts in SQL: DuckDB reads back what was written, whatever characters it has."""

from pathlib import Path

import duckdb
import polars as pl
import pytest
from conan_embedding.pipeline.corpus.sql import quote, scan_shards


@pytest.mark.parametrize(
    "text", ["", "plain", "it's", "''", "'; DROP TABLE a; --", 'a "b"', "a\\'b", "换\n行", "{}", "?$1"]
)
def test_a_quoted_text_is_read_back(text: str) -> None:
    assert duckdb.sql(f"SELECT {quote(text)}").fetchall() == [(text,)]


def test_paths_with_quotes_are_scanned(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "mine"' / "year=2024"
    folder.mkdir(parents=True)
    files = [folder / name for name in ("a'.parquet", "b''.parquet", "{c}.parquet")]
    for number, file in enumerate(files):
        pl.DataFrame({"n": [number, number]}).write_parquet(file)
    found = duckdb.sql(f"SELECT * FROM {scan_shards(files)} ORDER BY ALL")
    assert found.columns == ["n"]  # the folder's name adds no column
    assert found.fetchall() == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert duckdb.sql(f"FROM {scan_shards(files[:1])}").fetchall() == [(0,), (0,)]


def test_a_scan_takes_more_options(tmp_path: Path) -> None:
    for name, columns in (("a", {"n": [1, 2]}), ("b", {"m": ["x"]})):
        pl.DataFrame(columns).write_parquet(tmp_path / f"{name}.parquet")
    scan = scan_shards(sorted(tmp_path.iterdir()), union_by_name=True, filename=True)
    found = duckdb.sql(f"SELECT n, m, parse_filename(filename) FROM {scan} ORDER BY ALL")
    assert found.fetchall() == [(1, None, "a.parquet"), (2, None, "a.parquet"), (None, "x", "b.parquet")]
