"""Splits of large files: every row of the file is in exactly one, with its line number."""

import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.ingest import files, readers, splits
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit, SourceFile
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.pipeline.ingest.splits import plan_splits
from conan_embedding.schemas.source_settings import Source
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples
from read_files import load_batches

Read = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


def source(path: Path, **more: Any) -> Source:
    return Source.model_validate({"name": "web", "files": "*", "read": path.suffix[1:], **more})


def cut(path: Path, size: int, chunk: int = 1 << 20, **more: Any) -> list[FileSplit]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "SHARD_BYTES", size)
        patch.setattr(files, "_CHUNK", chunk)
        return [one for task in plan_splits(source(path, **more), list_files([str(path)]).files) for one in task]


def read(path: Path, some: list[FileSplit], **more: Any) -> Read:
    """Read each split separately, as workers do; return rows, and problems in sorted order."""
    rows, problems = [], []
    decided = decide_columns(source(path, **{"meta": "rows"} | more), some).source
    for one in some:
        with readers.open_sandbox() as connection:
            for batch in load_batches(connection, decided, [one]):
                rows += connection.sql("FROM rows ORDER BY _row").pl().select(pl.exclude("_row")).rows()
                problems += batch.rows()
    return rows, sorted(problems, key=str)


words = st.text(st.sampled_from('甲乙天 a"\x0b'), max_size=12)


@max_examples(20)
@given(
    table=st.lists(st.lists(words, min_size=1, max_size=3), min_size=1, max_size=25),
    kind=st.sampled_from(["tsv", "text", "csv", "named"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    size=st.integers(1, 300),
    chunk=st.integers(7, 300),
    data=st.data(),
)
def test_rows_of_splits_are_the_rows_of_the_file(
    table: list[list[str]],
    kind: str,
    encoding: str,
    end: str,
    size: int,
    chunk: int,
    data: st.DataObject,
    tmp_path: Path,
) -> None:
    delimiter = "," if kind == "csv" else "\t"
    text = end.join(delimiter.join(fields) for fields in [["a", "b"], *table])
    written = (text + data.draw(st.sampled_from(["", end]))).encode(encoding)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(written)))
        written = written[:at] + b"\xff" + written[at:]
    path = tmp_path / ("a.tsv" if kind == "named" else f"a.{kind}")
    path.write_bytes(written)
    more: dict[str, Any] = {"encoding": encoding}
    if kind == "named":
        more["options"] = {"columns": ["x", "y"]}
    if kind == "csv":
        more["options"] = {"quote": ""}
    some = cut(path, size, chunk, **more)
    assert read(path, some, **more) == read(path, [FileSplit(str(path))], **more)
    if encoding in ("utf-8", "gb18030", "big5") and end != "\r" and len(written) > size and len(some) > 1:
        assert [(one.start, two.start) for one, two in pairwise(some)] == [
            (one.start, one.end) for one, _ in pairwise(some)
        ]
        assert all((one.end or len(written)) - one.start >= size for one in some[:-1])


@pytest.mark.parametrize(("size", "expected"), [(1, 60), (1000, 4), (10_000, 1)])
def test_lines_of_json_in_splits(size: int, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n": {number}, "t": "{"甲" * (number % 40)}"}}\n' for number in range(60)))
    assert 3500 < path.stat().st_size < 4500
    some = cut(path, size)
    assert len(some) == expected
    rows, problems = read(path, some)
    assert problems == []
    assert [(row[1], row[2]) for row in rows] == [(number + 1, number) for number in range(60)]


@pytest.mark.parametrize("lines", [["one", "two", "th\rree"], ["o\rne", "two", "three"]], ids=["last", "first"])
def test_a_carriage_return_in_a_line_means_what_it_means_in_the_file(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.text"
    path.write_text("\n".join(lines), newline="")
    some = cut(path, 1)
    assert len(some) == 3
    assert [row[2] for row in read(path, some)[0]] == lines
    assert read(path, some) == read(path, [FileSplit(str(path))])


def test_a_table_whose_header_can_not_be_read_has_no_rows_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a\0\tb\n" + b"1\t2\n" * 50)
    some = cut(path, 20)
    assert len(some) > 5
    rows, problems = read(path, some)
    assert rows == []
    assert {reason for *_, reason, _ in problems} == {"columns"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("a.csv", {}),  # a quoted field may hold a line break
        ("a.tsv", {"options": {"quote": '"'}}),
        ("a.json", {}),
        ("a.jsonl.gz", {"read": "jsonl"}),
        ("a.md", {"read": "markdown"}),
    ],
)
def test_what_can_only_be_read_from_its_start_stays_whole(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    data = b'a\tb\n"1\t2"\n' * 50
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert cut(tmp_path / name, 20, **more) == [FileSplit(str(tmp_path / name))]


@pytest.mark.parametrize(("size", "expected"), [(1, 20), (10**9, 1)])
def test_row_groups(size: int, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"n": range(1000), "t": [f"{number}甲" * 3 for number in range(1000)]})
    frame.write_parquet(path, row_group_size=50)
    some = cut(path, size)
    assert len(some) == expected
    rows, problems = read(path, some)
    assert problems == []
    names = [*frame.columns, "_file", "_line"]
    assert rows == frame.with_columns(_file=pl.lit(str(path)), _line=pl.int_range(1, 1001)).select(names).rows()


def test_row_groups_are_put_together(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"n": range(1000)}).write_parquet(path, row_group_size=10, compression="uncompressed")
    some = cut(path, path.stat().st_size // 8)
    assert 3 < len(some) < 9
    assert [one.start for one in some[1:]] == [one.end for one in some[:-1]]
    assert (some[0].start, some[-1].end) == (0, 100)
    assert [row[0] for row in read(path, some)[0]] == list(range(1000))
    assert [one.first_line for one in some] == [1 + 10 * one.start for one in some]


def test_a_large_file_that_can_not_be_read_is_left_to_its_reader(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"\xff\xfe\xff" * 100)
        assert cut(path, 20, encoding="gbk-8") == [FileSplit(str(path))]
        assert read(path, [FileSplit(str(path))], encoding="gbk-8")[1] != []


@max_examples(20)
@given(sizes=st.lists(st.integers(0, 300), max_size=20), part=st.integers(1, 300))
def test_small_files_are_packed(sizes: list[int], part: int) -> None:
    listed = [SourceFile(f"{number}.md", size, "1") for number, size in enumerate(sizes)]
    one = Source.model_validate({"name": "web", "files": "*", "read": "markdown"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "SHARD_BYTES", part)
        packed = list(plan_splits(one, listed))
    assert [split.path for task in packed for split in task] == [file.path for file in listed]
    size = {file.path: file.size for file in listed}
    totals = [sum(size[split.path] for split in task) for task in packed]
    assert all(total <= part or len(task) == 1 for total, task in zip(totals, packed, strict=True))
    assert all(first + size[following[0].path] > part for first, following in zip(totals, packed[1:], strict=False))
