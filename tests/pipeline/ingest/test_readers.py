"""Each kind of `read`, on good and damaged files: every line becomes a row or a problem with its line number."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import polars as pl
import pytest
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.ingest import problems, readers
from conan_embedding.pipeline.ingest.stage import ingest
from conan_embedding.pipeline.ingest.text_encodings import BROKEN
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe, load
from conan_embedding.schemas.source_settings import Source
from read_files import Read, Reader, reader


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


# JSON


def test_lines(read: Reader) -> None:
    found = read('{"a": "甲", "b": {"c": [1]}}\r\n\n  \n{"a": "乙"}\n', "a.jsonl")
    assert found.values("a", "_line") == [("甲", 1), ("乙", 4)]
    assert found.rows[0]["b"] == {"c": [1]}
    assert found.rows[1]["b"] is None
    assert found.problems == []


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}, {"a": 2}]', '[\n {"a": 1},\n {"a": 2}\n]\n', '{"a": 1}\n{"a": 2}\n', "\ufeff" + '[{"a":1},{"a":2}]'],
)
def test_an_array_or_lines_under_a_json_name(read: Reader, text: str) -> None:
    assert read(text, "a.json").values("a") == [1, 2]


def test_a_document(read: Reader) -> None:
    text = json.dumps({"甲": [["甲", "属性", "值"]], "a b": []}, indent=1)
    assert json.loads(read(text, "a.json", options={"whole": True}).rows[0]["data"]) == json.loads(text)
    assert read(text, "a.json").rows[0]["甲"] == [["甲", "属性", "值"]]


def test_a_line_that_is_no_object_costs_itself(read: Reader) -> None:
    found = read('{"a": 1}\n{"a": \n[1]\n"s"\n3\nnull\nplain\n{"a": 2}\n', "a.jsonl")
    assert found.values("a", "_line") == [(1, 1), (2, 8)]
    assert [(line, reason) for line, reason, _ in found.problems] == [(line, "broken_json") for line in range(2, 8)]
    assert found.problems[0][2] == '{"a": '
    assert found.details[1].startswith("expected an object, found an array")


def test_an_element_that_is_no_object_costs_itself(read: Reader) -> None:
    found = read('[{"a": 1}, 3, null, {"a": 2}]', "a.json")
    assert found.values("a") == [1, 2]
    assert found.problems == [(1, "broken_json", "3"), (1, "broken_json", "null")]


def test_a_broken_document_tells_its_line(read: Reader) -> None:
    found = read('{\n "a": 1,\n "b": oops\n}\n', "a.json")
    assert found.rows == []
    assert [(line, reason) for line, reason, _ in found.problems] == [(3, "broken_json")]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_document_is_told_and_empty_lines_are_none(read: Reader, text: str) -> None:
    assert [reason for _, reason, _ in read(text, "a.json").problems] == ["broken_json"]
    assert read(text, "a.jsonl").problems == []
    assert read("[]", "b.json").problems == []


def test_a_cut_archive_keeps_the_records_before_the_break(tmp_path: Path) -> None:
    rng = Random(0)
    lines = [json.dumps({"a": number, "b": rng.random()}) for number in range(2000)]
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl").write_text(lines[0])
    found = Read([f"{tmp_path}/a.jsonl.gz", f"{tmp_path}/b.jsonl"], read="jsonl")
    numbers = found.values("a")
    assert numbers == [*range(len(numbers) - 1), 0]
    assert len(numbers) > 500
    assert {reason for _, reason, _ in found.problems} == {
        "truncated",
        "broken_json",
    }  # one for the file, one for its last line


def test_half_characters_in_escapes_cost_their_record(read: Reader) -> None:
    text = r'{"a": "x\ud83dy"}', r'{"a": "\ud83d\ude00 \\ud83d"}', r'{"a": "\udE00"}'
    for found in (read("\n".join(text), "a.jsonl"), read(f"[{','.join(text)}]", "a.json")):
        assert found.values("a") == [r"😀 \ud83d"]
        assert [reason for _, reason, _ in found.problems] == ["encoding", "encoding"]
        assert found.problems[0][2] == text[0]
    assert found.details == [r"escaped half of a surrogate pair: \ud83d", r"escaped half of a surrogate pair: \udE00"]


def test_nul_bytes(read: Reader) -> None:
    found = read(b'{"a": 1}\n{"a": 2\0\0\n{"a": "\\u0000"}\n', "a.jsonl")
    assert [(line, reason, record) for line, reason, record in found.problems] == [(2, "nul_bytes", '{"a": 2␀␀')]
    assert found.lines == [1, 3]


def test_over_long_lines(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "LONGEST_RECORD", 100)
    found = read('{"a": "' + "x" * 200 + '"}\n{"a": 1}\n', "a.jsonl")
    assert found.lines == [2]
    ((line, reason, record),) = found.problems
    assert (line, reason, len(record or "")) == (1, "too_long", 100)
    assert found.details == ["209 characters"]


def nest(levels: int, opening: str = "[", closing: str = "]") -> str:
    return '{"a": 1, "b": ' + opening * levels + closing * levels + "}"


def test_deep_records(read: Reader) -> None:
    """Records deeper than DuckDB's 128 levels would invalidate the whole database."""
    many = json.dumps({"a": 2, "b": [{"c": []}] * 300})
    quoted = json.dumps({"a": 3, "b": '[{"' * 3000})
    texts = [nest(5000), many, nest(99), nest(100), quoted, '{"a":1,"b":' + '{"b":' * 5000 + "1" + "}" * 5001]
    columns = {"a": "BIGINT", "b": "JSON"}
    lines, array = "\n".join(texts), f"[{','.join(texts)}]"
    for found in (read(lines, "a.jsonl", columns=columns), read(array, "a.json", columns=columns)):
        assert found.values("a") == [2, 1, 3]
        assert [reason for _, reason, _ in found.problems] == ["too_deep"] * 3
    assert read(nest(5000), "c.json", options={"whole": True}).problems[0][1] == "too_deep"


def test_values_of_other_types_in_some_records(read: Reader) -> None:
    found = read('{"a": 1}\n{"a": "x"}\n{"a": {"b": 1}}\n{"a": null}\n{}\n', "a.jsonl")
    assert found.values("a") == ["1", "x", None, None]
    assert found.problems == [(3, "column_type", '{"a": {"b": 1}}')]


def test_names_that_duckdb_can_not_tell_apart(read: Reader) -> None:
    found = read('{"a": 1, "A": 2, "": 3, "_file": 4, "_row": 5, "b": {"x": 1, "X": 2}, "it\'s": 6}\n', "a.jsonl")
    (row,) = found.rows
    assert (row["a"], row["_file_1"], row["_row_1"], row["it's"]) == (1, 4, 5, 6)
    assert json.loads(row["b"]) == {"x": 1, "X": 2}
    assert row["_file"].endswith("a.jsonl")


def test_a_noncharacter_of_its_own_right_is_text(read: Reader) -> None:
    found = read(f'{{"a": "x{BROKEN}y"}}\n{{"a": "{BROKEN}12 utf-8 ff{BROKEN}"}}\n', "a.jsonl")
    assert found.values("a") == [f"x{BROKEN}y"]
    assert [reason for _, reason, _ in found.problems] == ["encoding"]


def test_broken_bytes_in_json_are_told_with_their_place(read: Reader) -> None:
    """Both within a text and where the rest is not valid JSON."""
    text = '{"a": "今天天气很好"}\n'.encode()
    lines = [text, text[:10] + b"\xff" + text[10:], text[:5] + b"\xff" + text[5:], text]
    for data in (b"".join(lines), b"[\n" + b",".join(lines) + b"]"):
        found = read(data, "a.jsonl" if data[:1] == b"{" else "a.json")
        assert found.values("a") == ["今天天气很好"] * 2
        assert [reason for _, reason, _ in found.problems] == ["encoding", "encoding"]
        places = {f"undecodable bytes at offset {offset}" for offset in range(len(data)) if data[offset] == 0xFF}
        assert set(found.details) == places


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8-sig", "utf-16"])
def test_encodings(read: Reader, encoding: str) -> None:
    text = "问题,回答\n感冒怎么办,多喝水多休息。\n发烧了怎么办,应该及时去医院就诊。\n" * 3
    assert read(text.encode(encoding), "a.csv").values("问题")[0] == "感冒怎么办"


def test_the_wrong_encoding_costs_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("问题,回答\n感冒怎么办,多喝水\n".encode("gb18030"))
    (tmp_path / "b.csv").write_text("问题,回答\n甲,乙\n", "utf-8")
    found = Read([f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"], read="csv", encoding="utf-8")
    assert found.values("问题") == ["甲"]
    assert found.problems == [(None, "encoding", None)]
    assert "it looks like gb18030" in found.details[0]


# Shapes


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("alpaca", {"instruction": "问", "output": "答"}, None),
        ("sharegpt", {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}, {"id": 1}),
        (
            "messages",
            {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
            {"id": 1},
        ),
        ("squad", {"context_text": "答", "qas": [{"query_text": "问"}]}, {"context_text": "答", "qas": []}),
        ("triples", {"query": "问", "pos": ["答"], "neg": []}, {"query": "问", "pos": []}),
    ],
)
def test_a_record_of_a_shape_without_a_pair_is_told(read: Reader, kind: str, good: Any, bad: Any) -> None:
    records = [record for record in (good, bad, good) if record]
    for text, name in (("\n".join(map(json.dumps, records)), "a.jsonl"), (json.dumps(records), "a.json")):
        found = read(text, name, read=kind)
        assert found.values("query", "positive") == [("问", "答")] * 2
        assert [(reason, json.loads(record or "")) for _, reason, record in found.problems] == (
            [("no_pair", bad)] if bad else []
        )


def test_a_conversation_as_a_bare_list(read: Reader) -> None:
    text = json.dumps([{"role": "client", "content": "问"}, {"role": "counselor", "content": "答"}])
    assert read(text, "a.json", read="messages").values("query", "positive") == [("问", "答")]


# Files that can't be read


@pytest.mark.parametrize("kind", ["json", "csv", "text", "markdown", "parquet", "sharegpt"])
def test_unreadable_files(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to("/nowhere/at/all")
    found = Read([f"{tmp_path}/folder.json", f"{tmp_path}/link.json"], read=kind)
    assert found.rows == []
    assert [reason for _, reason, _ in found.problems] == ["unreadable", "unreadable"]
    assert found.problems_frame["file"].to_list() == [f"{tmp_path}/folder.json", f"{tmp_path}/link.json"]


def test_a_file_that_can_not_be_read_brings_no_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    found = Read([f"{tmp_path}/a.csv", "/nowhere.csv"], read="csv")
    assert [set(row) - {"_row", "_file", "_line"} for row in found.rows] == [{"a", "b"}]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xd6\xd0.jsonl"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b'{"a": 1}\n')
    assert Read([os.fsdecode(path)], read="jsonl").values("_file") == [f"{tmp_path}/\\udcd6\\udcd0.jsonl"]


# Readers in a recipe


@pytest.mark.parametrize(
    ("section", "read", "says"),
    [
        ("sources", "jsnol", "5: sources.1.read: no reader is called 'jsnol'; did you mean 'jsonl'?"),
        ("evaluation", "txet", "5: evaluation.1.read: no reader is called 'txet'; did you mean 'text'?"),
        ("sources", "", "5: sources.1.read: no reader is called ''; choose from json, jsonl, csv, tsv, parquet, text"),
        ("sources", "csv", "6: sources.1.options: a table with quotes needs a delimiter of one character, not '||'"),
    ],
)
def test_a_source_that_no_reader_can_read_is_told_before_any_work(
    section: str, read: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    lines = [f"{section}:", "  - {name: a, files: '*.json', read: json}", "  - name: b", "    files: '*.csv'"]
    lines += [f"    read: '{read}'", "    options: {delimiter: '||'}"]
    lines += ["sources: [{name: c, files: '*.json', read: json}]"] if section == "evaluation" else []
    file.write_text("\n".join(lines))
    with pytest.raises(RecipeError) as told:
        ingest(tmp_path / "corpus", load(file), Engine(workers=1))
    assert str(told.value).startswith(f"{file}:{says}")
    assert not (tmp_path / "corpus").exists()


def test_a_table_without_quotes_may_have_a_long_delimiter() -> None:
    sources = [
        {"name": "a", "files": "*", "read": "tsv", "options": {"delimiter": "||"}},
        {"name": "b", "files": "*", "read": "csv", "options": {"delimiter": "||", "quote": ""}},
    ]
    readers.check_readers(Recipe.model_validate({"sources": sources}))
    sources[0]["options"] = {"delimiter": "||", "quote": "'"}
    with pytest.raises(RecipeError, match=r"recipe: sources\.0\.options: .*or set quote: ''"):
        readers.check_readers(Recipe.model_validate({"sources": sources}))


def test_a_source_of_an_unknown_reader_can_not_be_read() -> None:
    with pytest.raises(RecipeError, match="source web: read: no reader is called 'jsnol'"):
        Read(["a"], read="jsnol")


# Joins and the sandbox


def test_joined_files(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes("1 甲\n\n2 乙\n".encode() + b"\xff\n3\0\n")
    source = Source.model_validate(
        {"name": "web", "files": "*", "read": "text", "join": {"other": f"{tmp_path}/lines.txt"}}
    )
    with readers.open_sandbox() as connection:
        readers.read_joined(connection, source)
        assert connection.sql("SELECT line, line_number FROM other").fetchall() == [("1 甲", 1), ("2 乙", 3)]
    nowhere = source.model_copy(update={"join": {"other": "/nowhere.txt"}})
    with readers.open_sandbox() as connection, pytest.raises(readers.SourceError, match=r"join other: /nowhere\.txt"):
        readers.read_joined(connection, nowhere)


secret = pl.DataFrame({"secret": [1]})


@pytest.mark.parametrize(
    "statement",
    [
        "FROM read_text('{file}')",
        "FROM read_csv('{file}')",
        "FROM '{file}'",
        "FROM glob('{folder}/*')",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/out.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET threads = 8",
        "RESET lock_configuration",
        "SELECT getenv('HOME')",
        "FROM secret",
    ],
)
def test_the_sandbox_is_closed(statement: str, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("secret\n1\n")
    with readers.open_sandbox() as connection, pytest.raises(duckdb.Error):
        connection.execute(statement.format(file=file, folder=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


LEFT_BEHIND = (
    "CREATE OR REPLACE TABLE rows AS SELECT 1; CREATE OR REPLACE MACRO md5(text) AS 'alike'; SET VARIABLE kept = 1"
)


@pytest.mark.parametrize(
    "statement", [LEFT_BEHIND, f"USE memory; {LEFT_BEHIND}", f"USE memory; DETACH sandbox; {LEFT_BEHIND}"]
)
def test_a_sandbox_holds_nothing_of_the_one_before(statement: str) -> None:
    with readers.open_sandbox() as connection:
        connection.execute(f"CREATE TEMP TABLE batch AS SELECT 1; {statement}")
    with readers.open_sandbox() as connection:
        assert connection.sql("SHOW TABLES").fetchall() == []
        assert connection.sql("SELECT md5('a'), getvariable('kept')").fetchall() == [
            (hashlib.md5(b"a").hexdigest(), None)
        ]


def test_sandboxes_that_are_open_at_a_time_share_nothing() -> None:
    with readers.open_sandbox() as one, readers.open_sandbox() as other:
        one.execute("CREATE TABLE batch AS SELECT 1")
        assert other.sql("SHOW ALL TABLES").fetchall() == []
