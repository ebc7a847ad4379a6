"""MappedTable against the same records in lists."""

import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conan_embedding.trainer.data import mapped_table
from conan_embedding.trainer.data.mapped_table import (
    MappedTable,
    build_once,
    read_sources,
    write_records,
    write_sources,
)

SCHEMA = pa.schema(
    {"text": pa.large_string(), "ids": pa.large_list(pa.int64()), "source": pa.large_string(), "category": pa.string()}
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_table, "ROWS", 8)


def records_of(count: int) -> list[dict[str, object]]:
    random = np.random.default_rng(count)
    categories = {"乙": "web_page", "b": "news", "a": "news"}
    return [
        {"text": f"第{row}", "ids": list(range(row % 4)), "source": source, "category": categories[source]}
        for row, source in enumerate(random.choice(list(categories), count).tolist())
    ]


def write(file: Path, rows: list[dict[str, object]], *sizes: int) -> MappedTable:
    """Write rows in batches of these sizes, with an extra column and narrower types."""
    ends = np.cumsum(sizes)
    parts = [rows[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]
    assert sum(sizes) == len(rows)
    write_records(file, SCHEMA, (pa.RecordBatch.from_pylist([{"more": 1} | row for row in part]) for part in parts))
    return MappedTable(file)


@pytest.mark.parametrize("sizes", [(), (1,), (7, 1), (8, 8), (3, 3, 3), (40, 1, 1), (5, 0, 30)])
def test_rows_are_read_as_they_were_written(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    rows = [] if not sizes else records_of(sum(sizes))
    sizes = tuple(size for size in sizes if size)
    records = write(tmp_path / "records.arrow", rows, *sizes)
    assert len(records) == len(rows)
    assert [row for batch in records for row in batch.to_pylist()] == rows
    random = np.random.default_rng(0)
    for wanted in ([], random.permutation(len(rows)), random.integers(0, len(rows), 50) if rows else []):
        chosen = np.asarray(wanted, np.int64)
        assert records.take(chosen).to_pylist() == [rows[row] for row in chosen]


def test_batches_lie_in_the_file_as_they_are_and_none_is_longer(tmp_path: Path) -> None:
    records = write(tmp_path / "records.arrow", records_of(43), 20, 23)
    assert [len(batch) for batch in records] == [8, 8, 8, 8, 8, 3]
    before = pa.total_allocated_bytes()
    held = list(records)
    assert pa.total_allocated_bytes() - before < 1000 and len(held) == 6


@pytest.mark.parametrize("count", [0, 1, 8, 100])
def test_sources_have_their_rows_in_order(tmp_path: Path, count: int) -> None:
    rows = records_of(count)
    file = tmp_path / "records.arrow"
    write(file, rows, *([count] if count else []))
    write_sources(file)
    found = read_sources(file)
    names = sorted({str(row["source"]) for row in rows})
    expected = [[place for place, row in enumerate(rows) if row["source"] == name] for name in names]
    assert found.names == names
    assert found.categories == [{"乙": "web_page"}.get(name, "news") for name in names]
    assert found.sizes == [len(each) for each in expected]
    assert found.rows.tolist() == [row for each in expected for row in each]


def test_a_folder_is_made_by_rank_zero_alone_and_whole(tmp_path: Path) -> None:
    folder = tmp_path / "job" / "data"
    made: list[Path] = []

    def fail(place: Path) -> None:
        (place / "half").touch()
        raise OSError("no space")

    def make(place: Path) -> None:
        assert not list(place.iterdir())
        made.append(place)
        time.sleep(0.1)
        (place / "whole").touch()

    with pytest.raises(OSError, match="no space"):
        build_once(folder, fail, rank=0)
    assert not folder.exists()

    other = threading.Thread(target=build_once, args=(folder, fail, 1))
    other.start()
    time.sleep(0.05)
    assert other.is_alive()  # this rank waits
    build_once(folder, make, rank=0)
    other.join(5)
    assert not other.is_alive()
    build_once(folder, fail, rank=0)  # the folder exists already
    assert len(made) == 1
    assert [each.name for each in folder.iterdir()] == ["whole"]
    assert [each.name for each in folder.parent.iterdir()] == ["data"]
