"""JSON as people write it: on lines, over lines, one after another, in arrays; each record has its own line number."""

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conan_embedding.pipeline.ingest import json_reader, splits
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.source_settings import Source
from hypothesis import given
from hypothesis import strategies as st
from ingested import Ingested
from properties import max_examples
from read_files import Read, reader

PRETTY = '{\n  "q": "甲",\n  "n": {}\n}\n'


@pytest.mark.parametrize("read", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("data", "rows", "problems"),
    [
        (PRETTY * 3, [(1, "甲"), (5, "甲"), (9, "甲")], []),
        ("\n\n" + PRETTY + "\n" + PRETTY, [(3, "甲"), (8, "甲")], []),
        ('{"q": "甲"}{"q": "乙"}', [(1, "甲"), (1, "乙")], []),
        ('{"q": "甲"} {"q": "乙"}\n{"q": "丙"}\n', [(1, "甲"), (1, "乙"), (2, "丙")], []),
        ('{"q": "甲"}\n{"q": "乙"}{"q": "丙"}{"q": "}{"}\n', [(1, "甲"), (2, "乙"), (2, "丙"), (2, "}{")], []),
        ('{"q": "甲"},\n{"q": "乙"},\n', [(1, "甲"), (2, "乙")], []),
        ('\x1e{"q": "甲"}\n\x1e{"q": "乙"}\n', [(1, "甲"), (2, "乙")], []),
        (PRETTY.strip() + PRETTY, [(1, "甲"), (4, "甲")], []),
        (PRETTY + '{"q": "乙"}\n{"q": "丙"}\n', [(1, "甲"), (5, "乙"), (6, "丙")], []),
        ('[{"q": "甲"}, {"q": "乙"}]', [(1, "甲"), (1, "乙")], []),
        ('[\n{"q": "甲"},\n{"q": "乙"}\n]\n', [(2, "甲"), (3, "乙")], []),
        ('[{"q": "甲"}]\n[{"q": "乙"}]\n', [(1, "甲"), (2, "乙")], []),
        ('[{"q": "甲"}][{"q": "乙"}]\n', [(1, "甲"), (1, "乙")], []),
        ('[[{"q": "甲"}, {"q": "乙"}],\n [{"q": "丙"}]]', [(1, "甲"), (1, "乙"), (2, "丙")], []),
        ('[\n [\n  {"q": "甲"}\n ],\n [\n  {"q": "乙"}]]', [(3, "甲"), (6, "乙")], []),
        # commas before closing brackets
        ('{"q": "甲", "a": [1, 2,],}\n{"q": "乙,]"}\n', [(1, "甲"), (2, "乙,]")], []),
        ('{\n"q": "甲",\n}\n{\n"q": "乙",\n}\n', [(1, "甲"), (4, "乙")], []),
        ('[\n{"q": "甲",},\n{"q": "乙",},\n]\n', [(2, "甲"), (3, "乙")], []),
        # damage costs the record that it is in
        (PRETTY + PRETTY.replace('"甲"', "甲") + PRETTY, [(1, "甲"), (9, "甲")], [5]),
        (PRETTY + PRETTY.replace("}\n}", "}") + PRETTY, [(1, "甲"), (8, "甲")], [5]),
        (PRETTY + PRETTY.replace('甲"', "甲") + PRETTY, [(1, "甲"), (9, "甲")], [5]),
        (PRETTY + "\n".join(PRETTY.split("\n")[:2]), [(1, "甲")], [5]),
        (PRETTY + "stray\n" + PRETTY, [(1, "甲"), (6, "甲")], [5]),
        ('{"q": "甲"}\n{"q": "乙"}{"q": \n{"q": "丙"}\n', [(1, "甲"), (2, "乙"), (3, "丙")], [2]),
        ('{"q": "甲"}\n{"q": "乙"}}\n{"q": "丙"}\n', [(1, "甲"), (2, "乙"), (3, "丙")], [2]),
        ("{'q': '甲'}\n{\"q\": \"乙\"}\n", [(2, "乙")], [1]),
        ('{"q": "甲"\n{"q": "乙"}\n{"q": "丙"}\n', [(2, "乙"), (3, "丙")], [1]),
    ],
)
def test_forms(data: str, rows: list[tuple[int, str]], problems: list[int], read: str, tmp_path: Path) -> None:
    found = reader(tmp_path)(data, "a.txt", read=read)
    assert found.values("_line", "q") == rows
    assert [(line, reason) for line, reason, _ in found.problems] == [(line, "broken_json") for line in problems]


contents = st.sampled_from(["甲", "}{", '"', "\n", [], {}, [{"q": 1}]])
objects = st.dictionaries(st.sampled_from("qab"), contents, min_size=1, max_size=3)


@max_examples(15)
@given(
    some=st.lists(st.tuples(objects, st.sampled_from(["\n", "", " ", ",\n", "\n\n", "\x1e"])), min_size=1, max_size=6),
    read=st.sampled_from(["json", "jsonl"]),
    indent=st.sampled_from([None, 1, 4]),
    size=st.integers(20, 200),
)
def test_values_one_after_another(
    some: list[tuple[dict[str, Any], str]],
    read: str,
    indent: int | None,
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every value is found, with its line, in blocks of any size."""
    texts = [json.dumps(one, ensure_ascii=False, indent=indent) for one, _ in some]
    data = "".join(text + gap for text, (_, gap) in zip(texts, some, strict=True))
    path = tmp_path_factory.mktemp("forms") / "a"
    path.write_text(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", size)
        patch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", size)
        found = Read([str(path)], read=read, columns=dict.fromkeys("qab", "JSON"))
    assert found.problems == []
    at, lines = 0, []
    for text in texts:
        at = data.index(text, at)
        lines.append(1 + data.count("\n", 0, at))
        at += len(text)
    assert found.lines == lines
    for key in "qab":
        assert [json.loads(value or "null") for value in found.values(key)] == [one.get(key) for one, _ in some]


def test_lines_over_which_records_extend_are_not_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SHARD_BYTES", 50)
    source = Source.model_validate({"name": "web", "files": "*", "read": "jsonl"})
    for data, parts in ((PRETTY * 20, 1), ('{"q": "甲"}\n' * 20, 5), ("{'q'\n" + '{"q": "甲"}\n' * 20, 5)):
        (tmp_path / "a.jsonl").write_text(data)
        files = list_files([f"{tmp_path}/a.jsonl"]).files
        assert len(list(splits.plan_splits(source, files))) == parts


# Arrays as records


@pytest.mark.parametrize("read", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("data", "query", "expected"),
    [
        ('["甲", "乙"]\n["丙", "丁"]\n', "json[1]", [["甲", "乙"], ["丙", "丁"]]),
        ('[["甲", "乙"],\n["丙", "丁"]]\n', "json[1]", [["甲", "乙"], ["丙", "丁"]]),
        ('[[{"q": "甲"}], [{"q": "乙"}]]', "json[1].q", [[{"q": "甲"}], [{"q": "乙"}]]),
        ('[{"q": "甲"}]\n[{"q": "乙"}]\n', "json[1].q", [[{"q": "甲"}], [{"q": "乙"}]]),
    ],
)
def test_arrays_are_the_column_json(data: str, query: str, expected: list[Any], read: str, tmp_path: Path) -> None:
    found = reader(tmp_path)(data, "a.txt", read=read, query=query)
    assert (found.values("json"), found.problems) == (expected, [])


def test_arrays_that_the_sql_does_not_use_are_told(tmp_path: Path) -> None:
    found = reader(tmp_path)('["甲", "乙"]\n{"q": "丙"}\n', "a.jsonl", query="json_extract(q, '$')", positive="q::json")
    assert found.values("q") == ["丙"]
    assert found.problems == [(1, "broken_json", '["甲", "乙"]')]
    assert found.details[0].endswith("as in `query: json[1]`")


def test_chats_on_lines_and_in_arrays(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    lines = "\n".join([json.dumps(chat)] * 2)
    for data in (lines, json.dumps([chat, chat]), json.dumps([chat, chat], indent=1)):
        found = reader(tmp_path)(data, "a.txt", read="messages")
        assert (found.values("query", "positive"), found.problems) == ([("问", "答")] * 2, [])


@pytest.mark.parametrize("read", ["json", "jsonl"])
@pytest.mark.parametrize("first", ['{"q": "甲"\n', '{"q": "甲"}\n', PRETTY])
def test_what_is_before_the_end_of_a_cut_file_is_read(first: str, read: str, tmp_path: Path) -> None:
    """Whatever has to be read to tell how the records are written."""
    rng = Random(0)
    data = first + "".join(f'{{"q": "{rng.getrandbits(64)}"}}\n' for _ in range(1000))
    found = reader(tmp_path)(gzip.compress(data.encode())[:-2000], "a.gz", read=read)
    assert 500 < len(found.rows) < 1000
    assert found.problems[-1][1] == "truncated"


# What is not JSON


@pytest.mark.parametrize("read", ["json", "jsonl"])
@pytest.mark.parametrize("name", ["<!DOCTYPE html>", "<?xml version='1.0'?>\n<Error>", "\n <html>"])
def test_a_web_page_is_one_reject(name: str, read: str, tmp_path: Path) -> None:
    found = reader(tmp_path)(f"{name}\n<p>404</p>\n", "a.txt", read=read)
    assert [(line, reason) for line, reason, _ in found.problems] == [(None, "unreadable")]
    assert found.details == ["a web page or XML, not JSON; perhaps the error message of a download"]


def test_a_damaged_line_like_a_page_costs_itself(tmp_path: Path) -> None:
    found = reader(tmp_path)('<{"q": "甲"}\n{"q": "乙"}\n', "a.jsonl")
    assert (found.values("q"), found.problems) == (["乙"], [(1, "broken_json", '<{"q": "甲"}')])


def test_a_document_too_long_to_hold_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects within it are not mistaken for records, wherever its blocks begin."""
    for module, name in (
        ("json_reader", "LONGEST_DOCUMENT"),
        ("records", "_LONGEST"),
        ("json_reader", "_LONGEST_FIRST"),
    ):
        monkeypatch.setattr(f"conan_embedding.pipeline.ingest.{module}.{name}", 200)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.text_encodings.BLOCK", 60)
    monkeypatch.setattr("conan_embedding.pipeline.ingest.files._CHUNK", 60)
    data = json.dumps({"data": [{"q": "甲"}] * 50}, indent=1, ensure_ascii=False)
    found = reader(tmp_path)(data + "\n" + PRETTY, "a.json")
    assert found.values("q") == ["甲"]
    assert found.lines == [data.count("\n") + 2]
    assert {reason for _, reason, _ in found.problems} == {"broken_json"}
    assert json_reader.LONGEST_DOCUMENT == 200


SAID = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize(
    ("source", "value"),
    [
        ({"read": "json", "query": "json[1]", "positive": "json[2]"}, [["问", "答"], ["问", "答"]]),
        ({"read": "messages"}, [SAID, SAID]),
        ({"read": "messages"}, [{"messages": SAID}, {"messages": SAID}]),
        ({"read": "messages"}, [[{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]] * 2),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_that_is_the_file(source: Any, value: Any, indent: int | None, end: str, tmp_path: Path) -> None:
    """Whether it is on one line, and whether the line ends, makes no difference."""
    (tmp_path / "a.json").write_text(json.dumps(value, indent=indent) + end)
    given = {"name": "web", "files": f"{tmp_path}/a.json", **source}
    found = Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [given]}))
    assert found.values("query", "positive") == [("问", "答"), ("问", "答")]


def test_a_reject_holds_the_array_as_it_stood(tmp_path: Path) -> None:
    data = '["问",]\n["问", "答"]\n'
    found = reader(tmp_path)(data, "a.jsonl", query="json[1]", columns={"json": "BIGINT[]"})
    assert [record for *_, record in found.problems] == ['["问",]', '["问", "答"]']
