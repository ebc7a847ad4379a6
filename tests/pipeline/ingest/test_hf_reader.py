"""Folders written by `datasets` give the rows that it reads from them itself; damaged and hostile folders."""

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from conan_embedding.pipeline.ingest.files import FileError
from conan_embedding.pipeline.ingest.hf_reader import list_arrow_files, read_arrow

datasets = pytest.importorskip("datasets", reason="the folders are written by Hugging Face datasets")


def make_dataset(rows: int, first: int = 0) -> Any:
    numbers = range(first, first + rows)
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["负面", "正面"]),
            "answers": {"text": datasets.Sequence(datasets.Value("string")), "start": datasets.Value("int32")},
        }
    )
    return datasets.Dataset.from_dict(
        {
            "text": [f"第{number}条" if number % 7 else None for number in numbers],
            "label": [number % 3 - 1 for number in numbers],
            "answers": [{"text": ["答"] * (number % 3), "start": number} for number in numbers],
        },
        features=features,
    )


def rows_of(path: str) -> list[dict[str, Any]]:
    with fsspec.open(path, "rb") as file:
        return [row for table in read_arrow(file, path) for row in table.to_pylist()]


def stream_of(batches: int, as_file: bool = False) -> bytes:
    schema = pa.schema({"text": pa.string()})
    sink = io.BytesIO()
    with (pa.ipc.new_file if as_file else pa.ipc.new_stream)(sink, schema) as writer:
        for number in range(batches):
            writer.write_batch(pa.record_batch([[f"第{number}批"] * 3], schema=schema))
    return sink.getvalue()


def test_rows_are_those_that_datasets_reads(tmp_path: Path) -> None:
    make_dataset(2_500).save_to_disk(tmp_path / "set", num_shards=3)
    files = list_arrow_files(str(tmp_path / "set"))
    assert [Path(file).name for file in files] == [f"data-0000{shard}-of-00003.arrow" for shard in range(3)]
    found = [row for file in files for row in rows_of(file)]
    kept = datasets.load_from_disk(str(tmp_path / "set"))
    assert [{column: row[column] for column in kept.column_names} for row in found] == kept.to_list()
    names = [kept.features["label"].int2str(label) if label >= 0 else None for label in kept["label"]]
    assert [row["label_name"] for row in found] == names
    assert [(row["_file"], row["_line"]) for row in found] == [
        (file, line) for file in files for line in range(1, len(rows_of(file)) + 1)
    ]


def test_splits_come_in_their_order_from_any_file_system(tmp_path: Path) -> None:
    splits = datasets.DatasetDict(
        {"validation": make_dataset(3, 10), "train": make_dataset(4), "test": make_dataset(2, 20)}
    )
    splits.save_to_disk(tmp_path / "splits")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "splits"), "/splits", recursive=True)
    for folder in (str(tmp_path / "splits"), f"{tmp_path}/splits/", "memory://splits"):
        files = list_arrow_files(folder)
        assert [file.split("/")[-2] for file in files] == ["validation", "train", "test"]
        starts = [row["answers"]["start"] for file in files for row in rows_of(file)]
        assert starts == [10, 11, 12, 0, 1, 2, 3, 20, 21]
    memory.rm("/splits", recursive=True)


def test_a_file_lists_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.arrow").write_bytes(stream_of(1))
    assert list_arrow_files(str(tmp_path / "rows.arrow")) == [str(tmp_path / "rows.arrow")]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "expected state.json"),
        ({"state.json": "{"}, "not valid JSON"),
        ({"state.json": "[]"}, "not a JSON object"),
        ({"state.json": "{}"}, "_data_files"),
        ({"dataset_dict.json": '{"splits": ["../other"]}'}, "expected a file or folder in it"),
        ({"state.json": '{"_data_files": [{"filename": "/etc/passwd"}]}'}, "expected a file or folder in it"),
        ({"state.json": '{"_data_files": [{"filename": ".."}]}'}, "expected a file or folder in it"),
        ({"state.json": '{"_data_files": [{}]}'}, "expected a file or folder in it"),
        ({"state.json": '{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}'}, "flatten_indices()"),
    ],
)
def test_other_folders_say_what_is_wrong(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=said.replace("()", r"\(\)")) as caught:
        list_arrow_files(str(tmp_path))
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("as_file", [False, True])
def test_batches_before_a_cut_are_kept(as_file: bool) -> None:
    whole = stream_of(8, as_file)
    counts = set()
    for cut in range(0, len(whole), 5):
        found = []
        with pytest.raises(FileError) as caught:
            found.extend(read_arrow(io.BytesIO(whole[:cut]), "cut"))
        assert caught.value.reason == "truncated"
        lines = [line for table in found for line in table["_line"].to_pylist()]
        assert lines == list(range(1, len(lines) + 1)) and caught.value.line == len(lines) + 1
        counts.add(len(lines))
    assert counts == set(range(0, 25, 3))
    assert sum(table.num_rows for table in read_arrow(io.BytesIO(whole), "whole")) == 24


def test_offsets_that_point_elsewhere_are_damage() -> None:
    whole = bytearray(stream_of(1))
    place = whole.index("第0批".encode()) - 16  # the offsets 0, 7, 14, 21, padded to 64 bytes, precede the text
    offsets = whole.rindex(b"\x07\0\0\0\x0e\0\0\0\x15\0\0\0", 0, place + 16)
    whole[offsets : offsets + 4] = b"\xff\xff\xff\x70"
    with pytest.raises(FileError) as caught:
        list(read_arrow(io.BytesIO(bytes(whole)), "damaged"))
    assert caught.value.reason == "unreadable"


def test_tables_are_small_and_numbered_through() -> None:
    sink = io.BytesIO()
    batch = pa.record_batch({"text": ["短"] * 5_000 + ["长" * 3_000_000] * 10})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    sink.seek(0)
    tables = list(read_arrow(sink, "big"))
    assert max(table.num_rows for table in tables) <= 2_000 and len(tables) > 3
    assert [line for table in tables for line in table["_line"].to_pylist()] == list(range(1, 5_011))


def test_columns_of_our_names_stay_apart() -> None:
    features = {"features": {"label": {"_type": "ClassLabel", "names": ["甲"]}, "x": {"_type": "ClassLabel"}}}
    batch = pa.record_batch({"_file": ["a"], "label": [0], "label_name": ["b"], "x": [1]})
    batch = batch.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    sink.seek(0)
    (table,) = read_arrow(sink, "f")
    assert table.to_pylist() == [
        {"_file_1": "a", "label": 0, "label_name": "b", "x": 1, "label_name_1": "甲", "_file": "f", "_line": 1}
    ]
