"""JSON of every shape: all batches share the structure that DuckDB itself finds; damage costs only its document."""

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from conan_embedding.pipeline.ingest import json_reader, readers
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.pipeline.ingest.json_reader import find_structure, merge_structures
from conan_embedding.schemas.settings import Source
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples

names = st.sampled_from(["a", "b", "B", "甲", "it's", '"', "", "_row"])
numbers = st.sampled_from([0, 1, -1, 2**63, 2**64 - 1, -(2**63), 0.5, -1e300])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["", "x", "2024-01-01", "12:30:00", "甲"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(names, values, max_size=4)


def frame(some: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"text": [json.dumps(one) for one in some]}, schema={"text": pl.String})


def group_structure(connection: duckdb.DuckDBPyConnection, some: list[Any]) -> Any:
    """Return what DuckDB finds in all of them at once."""
    connection.register("all_texts", frame(some).to_arrow())
    ((found,),) = connection.sql("SELECT json_group_structure(CAST(text AS JSON)) FROM all_texts").fetchall()
    connection.unregister("all_texts")
    return json.loads(found) if found else "NULL"


@max_examples(60)
@given(batches=st.lists(st.lists(records, min_size=1, max_size=4), min_size=1, max_size=4))
def test_structures_merge_as_duckdb_does(batches: list[list[dict[str, Any]]]) -> None:
    records = [record for batch in batches for record in batch]
    one: Any = "NULL"
    with readers.open_sandbox() as connection:
        for batch in batches:
            found = group_structure(connection, batch)
            one = merge_structures(one, "NULL" if found == "JSON" else found)  # as in DuckDB, if every record is empty
        whole = group_structure(connection, records)
        assert one == ("NULL" if whole == "JSON" else whole)
        assert find_structure(connection, map(frame, batches)) == find_structure(connection, [frame(records)])


def table(path: Path, **source: Any) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]], set[tuple[str, ...]]]:
    """Return rows, problems (line, reason), and the columns and types of the batches."""
    one = Source.model_validate({"name": "web", "files": "*", "read": path.suffix[1:], **source})
    rows, problems, shapes = [], [], set()
    with readers.open_sandbox() as connection:
        for batch in readers.read(connection, one, [FileSplit(str(path))]):
            found = connection.sql("FROM rows ORDER BY _row").pl()
            shapes.add((*found.columns, *map(str, found.dtypes)))
            rows += found.to_dicts()
            problems += batch.select("line", "reason").rows()
    return rows, problems, shapes


@max_examples(25)
@given(some=st.lists(records, min_size=1, max_size=10), size=st.integers(7, 300))
def test_batches_have_the_columns_of_the_whole(some: list[dict[str, Any]], size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, some)))
    whole = table(path)
    assert len(whole[0]) == len(some)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BATCH", 1)
        patch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", size)
        patch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", size)
        assert table(path) == whole
    assert len(whole[2]) == 1


def test_columns_that_some_batches_lack_are_null_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", 20)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", 20)
    monkeypatch.setattr(readers, "BATCH", 1)
    some = [{"a": number} for number in range(20)] + [{"b": "x"}] * 20 + [{"a": 1.5, "b": None}] * 20
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
    rows, problems, shapes = table(tmp_path / "a.jsonl")
    assert problems == []
    assert [(row["a"], row["b"]) for row in rows] == [(one.get("a"), one.get("b")) for one in some]
    assert len(shapes) == 1


def test_an_object_that_is_empty_in_some_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", 20)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", 20)
    monkeypatch.setattr(readers, "BATCH", 1)
    some = [{"a": {}}] * 5 + [{"a": {"b": "x"}}] * 5 + [{}] * 5
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
    rows, _, shapes = table(tmp_path / "a.jsonl")
    assert [row["a"] and json.loads(row["a"]) for row in rows] == [one.get("a") for one in some]
    assert len(shapes) == 1


def test_numbers_at_the_edges(tmp_path: Path) -> None:
    some = [2**64 - 1, -(2**63), 2**64, 1e300, 0.1]
    for one in some:
        (tmp_path / "a.jsonl").write_text(json.dumps({"a": one}) + "\n" + json.dumps({"a": None}))
        rows, problems, _ = table(tmp_path / "a.jsonl")
        assert [row["a"] for row in rows] == [one, None]
        assert problems == []


def test_an_object_that_is_keyed_by_data_stays_json(tmp_path: Path) -> None:
    some = [{"q": "问", "m": {f"user{number}": number}} for number in range(4000)]
    some += [{"n": {f"field{number}": number for number in range(json_reader.MOST_FIELDS)}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
    with readers.open_sandbox() as connection:
        one = Source.model_validate({"name": "web", "files": "*", "read": "jsonl"})
        for _ in readers.read(connection, one, [FileSplit(f"{tmp_path}/a.jsonl")]):
            types = dict(zip(connection.sql("FROM rows").columns, connection.sql("FROM rows").types, strict=True))
            assert (types["q"], types["m"]) == ("VARCHAR", "JSON")
            assert str(types["n"]).startswith("STRUCT(field0 ")
            named = connection.sql("SELECT _line, m.user7 FROM rows WHERE m.user7 IS NOT NULL")
            assert named.fetchall() == [(8, "7")]


def test_objects_in_objects_take_no_time_of_their_own() -> None:
    """Looking at a level twice would double the work for everything in it."""
    structure: Any = "VARCHAR"
    for _ in range(60):
        structure = {"a": structure}
    record = json.dumps(structure)
    with readers.open_sandbox() as connection:
        assert find_structure(connection, [pl.DataFrame({"text": [record]})]) == record


# Documents


def test_a_long_document_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "LONGEST_DOCUMENT", 200)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", 50)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", 50)
    (tmp_path / "a.json").write_text(json.dumps({"items": list(range(100))}, indent=1))
    rows, problems, _ = table(tmp_path / "a.json")
    assert rows == []
    assert {reason for _, reason in problems} == {"broken_json"}


def test_lines_behind_a_broken_first_one(tmp_path: Path) -> None:
    """They are still found in a file whose name says that it is one document."""
    lines = ['{"a": 1', '{"a": 2}', "", '{"a": }', '{"a": 3}']
    (tmp_path / "a.json").write_text("\n".join(lines))
    rows, problems, _ = table(tmp_path / "a.json")
    assert [(row["_line"], row["a"]) for row in rows] == [(2, 2), (5, 3)]
    assert problems == [(1, "broken_json"), (4, "broken_json")]


def test_a_document_cut_short_is_told_once(tmp_path: Path) -> None:
    text = json.dumps({"items": [{"q": "甲", "a": "乙"}] * 10}, ensure_ascii=False, indent=1)
    (tmp_path / "a.json").write_text(text[:-20])
    rows, problems, _ = table(tmp_path / "a.json")
    assert rows == []
    assert problems == [(text[:-20].count("\n") + 1, "broken_json")]


def test_a_record_too_big_for_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", 100)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", 100)
    some = [{"a": "甲" * 1000}, {"a": "乙"}]
    for name, text in (("a.jsonl", "\n".join(map(json.dumps, some))), ("a.json", json.dumps(some))):
        (tmp_path / name).write_text(text)
        assert [row["a"] for row in table(tmp_path / name)[0]] == ["甲" * 1000, "乙"]
