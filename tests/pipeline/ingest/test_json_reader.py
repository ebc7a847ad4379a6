"""JSON of every shape: all batches have the same columns; damage costs only its document."""

import json
from pathlib import Path
from typing import Any

import pytest
from conan_embedding.pipeline.ingest import json_reader, readers
from conan_embedding.pipeline.ingest.column_types import MOST_FIELDS
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.schemas.source_settings import Source
from read_files import Read, load_batches


def table(path: Path, **source: Any) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]], set[tuple[str, ...]]]:
    """Return rows, problems (line, reason), and the columns and types of the batches."""
    splits = [FileSplit(str(path))]
    one = Source.model_validate({"name": "web", "files": "*", "read": path.suffix[1:], "meta": "rows", **source})
    one = decide_columns(one, splits).source
    rows, problems, shapes = [], [], set()
    with readers.open_sandbox() as connection:
        for batch in load_batches(connection, one, splits):
            found = connection.sql("FROM rows ORDER BY _row").pl()
            shapes.add((*found.columns, *map(str, found.dtypes)))
            rows += found.to_dicts()
            problems += batch.select("line", "reason").rows()
    return rows, problems, shapes


def test_columns_that_some_batches_lack_are_null_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", 20)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", 20)
    monkeypatch.setattr(readers, "BATCH", 1)
    some = [{"a": number} for number in range(20)] + [{"b": "x"}] * 20 + [{"a": 15, "b": None}] * 20
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
    rows, problems, shapes = table(tmp_path / "a.jsonl", query="a", positive="b")
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
    for one in some:  # those that BIGINT or DOUBLE might not hold are texts, with the digits as they are written
        (tmp_path / "a.jsonl").write_text(json.dumps({"a": one}) + "\n" + json.dumps({"a": None}))
        rows, problems, _ = table(tmp_path / "a.jsonl")
        assert [row["a"] for row in rows] == [json.dumps(one), None]
        assert problems == []


def test_an_object_that_is_keyed_by_data_stays_json(tmp_path: Path) -> None:
    some = [{"q": "问", "m": {f"user{number}": number}} for number in range(4000)]
    some += [{"n": {f"field{number}": number for number in range(MOST_FIELDS)}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
    with readers.open_sandbox() as connection:
        splits = [FileSplit(f"{tmp_path}/a.jsonl")]
        one = Source.model_validate({"name": "web", "files": "*", "read": "jsonl", "meta": "rows"})
        for _ in load_batches(connection, decide_columns(one, splits).source, splits):
            types = dict(zip(connection.sql("FROM rows").columns, connection.sql("FROM rows").types, strict=True))
            assert (types["q"], types["m"]) == ("VARCHAR", "JSON")
            assert str(types["n"]).startswith("STRUCT(field0 ")
            named = connection.sql("SELECT _line, m.user7 FROM rows WHERE m.user7 IS NOT NULL")
            assert named.fetchall() == [(8, "7")]


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ('{"q": "甲", "a": [None]}', "None, True and False are Python's; write them with json.dumps"),
        ("{'q': '甲', 'a': None}", "texts are in single quotes, as Python prints them; write them with json.dumps"),
        ("{q: '甲'}", "keys without quotes, as in JavaScript; write them with JSON.stringify"),
        ('{"q": "甲"', ""),
    ],
)
def test_objects_of_other_languages_are_told(tmp_path: Path, record: str, detail: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{record}\n{{"q": "乙"}}\n')
    (tmp_path / "b.jsonl").write_text(f"{record}\n")
    for name, rows in (("a.jsonl", 1), ("b.jsonl", 0)):
        found = Read([str(tmp_path / name)], read="jsonl")
        assert (len(found.rows), found.details) == (rows, [f"not valid JSON: {detail}".removesuffix(": ")])


# Documents


def test_a_long_document_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "LONGEST_DOCUMENT", 200)
    monkeypatch.setattr(json_reader, "_LONGEST_FIRST", 100)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.records._LONGEST", 200)
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
    assert sorted(problems) == [(1, "broken_json"), (4, "broken_json")]


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
