"""Shapes of JSON in the columns of Parquet and Arrow files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conan_embedding.pipeline.ingest import splits
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.pipeline.ingest.splits import plan_splits
from conan_embedding.schemas.source_settings import Source
from read_files import Read


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"), row_group_size=1)
    return path.with_suffix(".parquet")


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path.with_suffix(".arrow"), table.schema) as stream:
        stream.write_table(table)
    return path.with_suffix(".arrow")


CHAT = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
SHAPES: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "messages": ("messages", {"messages": CHAT}, ["问", "答", []]),
    "a column that others fill": ("messages", {"messages": CHAT, "tools": None, "images": None}, ["问", "答", []]),
    "ShareGPT": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        ["问", "答", []],
    ),
    "ShareGPT by column": (
        "sharegpt",
        {"conversations": {"from": ["human", "gpt"], "value": ["问", "答"]}},
        ["问", "答", []],
    ),
    "preferences": ("messages", {"prompt": "问", "chosen": CHAT, "rejected": [CHAT[0], {**CHAT[1], "content": "错"}]},
                    ["问", "答", ["错"]]),
    "alpaca": ("alpaca", {"instruction": "问", "input": None, "output": "答"}, ["问", "答", []]),
    "SQuAD": ("squad", {"id": 1, "question": "问", "context": "答", "answers": {"text": ["答"], "answer_start": [0]}},
              ["问", "答", []]),
    "triples": ("triples", {"query": "问", "pos": ["答"], "neg": ["错", None]}, ["问", "答", ["错", None]]),
    "numbered negatives": ("triples", {"anchor": "问", "positive": "答", "negative_1": "错", "negative_2": None},
                           ["问", "答", ["错", None]]),
}  # fmt: skip


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
@pytest.mark.parametrize(("shape", "record", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_shape(
    shape: str,
    record: dict[str, Any],
    expected: list[Any],
    write: Callable[[Path, list[dict[str, Any]]], Path],
    tmp_path: Path,
) -> None:
    found = Read([str(write(tmp_path / "a", [record, record]))], read=shape)
    assert [list(values) for values in found.values("query", "positive", "negatives")] == [expected, expected]
    assert (found.lines, found.problems) == ([1, 2], [])


def test_untaught_replies_and_rejects_are_those_of_json(tmp_path: Path) -> None:
    rows = [
        {"messages": [CHAT[0], {**CHAT[1], "weight": 0}], "id": 1234567890123456789},
        {"messages": [CHAT[0] | {"weight": None}, CHAT[1] | {"weight": 1}], "id": None},
    ]
    found = Read([str(write_parquet(tmp_path / "a", rows))], read="messages")
    assert found.lines == [2]
    [(line, reason, record)] = found.problems
    assert (line, reason) == (1, "excluded_by_data")
    assert record is not None and record.endswith('"id":1234567890123456789}')


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    pl.DataFrame({"query": ["问"], "pos": [["答"]], "score": [float("nan")]}).write_parquet(tmp_path / "a.parquet")
    assert Read([str(tmp_path / "a.parquet")], read="triples").values("query") == ["问"]


def test_row_groups_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a", [{"instruction": f"问{number}", "output": "答"} for number in range(4)])
    monkeypatch.setattr(splits, "SHARD_BYTES", 1)
    source = Source.model_validate({"name": "a", "files": "*", "read": "alpaca"})
    tasks = list(plan_splits(source, list_files([str(path)]).files))
    assert [(one.start, one.end, one.first_line) for task in tasks for one in task] == [
        (number, number + 1, number + 1) for number in range(4)
    ]


def test_a_file_that_is_not_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text('{"instruction": "问", "output": "答"}')
    found = Read([str(tmp_path / "a.parquet")], read="alpaca")
    assert [reason for _, reason, _ in found.problems] == ["unreadable"]
