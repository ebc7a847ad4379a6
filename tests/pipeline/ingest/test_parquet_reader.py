"""Parquet, and Arrow types that Polars or DuckDB don't support, in Parquet and in Arrow files."""

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_files import Read


def test_parquet(tmp_path: Path) -> None:
    pl.DataFrame({"a": ["甲"], "_row": [7], "text": [[1]]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"a": ["乙", "丙"], "b": [1.5, None]}).write_parquet(tmp_path / "2.parquet")
    pl.DataFrame({"a": [["list"]]}).write_parquet(tmp_path / "3.parquet")
    (tmp_path / "4.parquet").write_bytes(b"garbage")
    found = Read([f"{tmp_path}/{number}.parquet" for number in (1, 2, 3, 4)], read="parquet")
    assert found.values("a", "b", "_row_1", "text", "_line") == [
        ("甲", None, 7, [1], 1),
        ("乙", 1.5, None, None, 1),
        ("丙", None, None, None, 2),
    ]
    assert found.problems_frame["reason"].to_list() == ["column_type", "unreadable"]
    assert [file[-9:] for file in found.problems_frame["file"]] == ["3.parquet", "4.parquet"]


def test_a_text_in_parquet_that_is_none_costs_its_row(tmp_path: Path) -> None:
    """Arrow trusts the writer, and Polars would read beyond the end of a text."""
    texts = pa.array(["甲".encode(), b"ab\xff", None, "乙".encode()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": texts, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    found = Read([f"{tmp_path}/a.parquet"], read="parquet")
    assert found.values("a", "n", "_line") == [("甲", 1, 1), (None, 3, 3), ("乙", 4, 4)]
    assert found.problems == [(2, "encoding", "base64:YWL/")]
    assert found.details == ["undecodable bytes at offset 2"]


def write_table(path: Path, table: pa.Table) -> str:
    """Write a table as Parquet or as Arrow's stream, by the ending of the path."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return str(path)


KINDS = [("parquet", "a.parquet"), ("hf", "a.arrow")]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_half_floats_are_floats(kind: str, name: str, tmp_path: Path) -> None:
    half = pa.array(np.array([0.5, 2], np.float16))
    columns = {
        "a": half,
        "b": pa.ListArray.from_arrays(pa.array([0, 1, 2]), half),
        "c": pa.LargeListArray.from_arrays(pa.array([0, 1, 2], pa.int64()), half),
        "d": pa.FixedSizeListArray.from_arrays(half, 1),
        "e": pa.StructArray.from_arrays([pa.ListArray.from_arrays(pa.array([0, 1, 2]), half)], ["x"]),
    }
    found = Read([write_table(tmp_path / name, pa.table(columns))], read=kind)
    assert found.values("a", "b", "c", "d", "e") == [
        (value, [value], [value], [value], {"x": [value]}) for value in (0.5, 2)
    ]
    assert found.problems == []


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_column_of_a_type_that_is_unknown_costs_itself(kind: str, name: str, tmp_path: Path) -> None:
    columns = {"a": pa.array(["甲"]), "d": pa.array([Decimal(1)], pa.decimal256(50, 2))}
    columns["l"] = pa.array([[Decimal(1)]], pa.list_(pa.decimal256(50, 2)))
    if kind == "hf":
        columns["u"] = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["x"])])
        columns["i"] = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
        columns["r"] = pa.RunEndEncodedArray.from_arrays([1], ["x"])
        columns["v"] = pa.array([[1]], pa.list_view(pa.int64()))
    found = Read([write_table(tmp_path / name, pa.table(columns))], read=kind)
    (row,) = found.rows
    assert {name for name in row if not name.startswith("_")} == {"a"}
    assert (row["a"], row["_line"]) == ("甲", 1)
    assert found.problems == []


@pytest.mark.parametrize(("kind", "name"), KINDS)
@pytest.mark.parametrize("panics", [False, True])
def test_a_table_that_polars_does_not_take_costs_its_file(
    kind: str, name: str, panics: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = write_table(tmp_path / name, pa.table({"bad": pa.array([1], pa.timestamp("us", "Nowhere/At_all"))}))
    good = write_table(tmp_path / f"b{Path(name).suffix}", pa.table({"a": ["甲"]}))
    if panics:
        from_arrow = pl.from_arrow

        def panicking(table: pa.Table, **options: Any) -> Any:
            if "bad" in table.column_names:
                raise pl.exceptions.PanicException("such a type")
            return from_arrow(table, **options)

        monkeypatch.setattr(pl, "from_arrow", panicking)
    found = Read([bad, good], read=kind)
    assert found.values("a") == ["甲"]
    assert found.problems == [(None, "unreadable", None)]
    assert found.details[0].startswith("PanicException: such a type" if panics else "ComputeError: ")
    assert found.problems_frame["file"].to_list() == [bad]


def test_parquet_of_a_uri_and_of_a_folder_that_looks_like_a_partition(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": ["甲"]})
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    fsspec.filesystem("memory").pipe("/conan_readers/a.parquet", buffer.getvalue())
    (tmp_path / "a=wrong").mkdir()
    frame.write_parquet(tmp_path / "a=wrong/1.parquet")
    for path in ("memory://conan_readers/a.parquet", f"{tmp_path}/a=wrong/1.parquet"):
        found = Read([path], read="parquet")
        assert found.values("a") == ["甲"]
        assert found.problems == []
