"""Records of lines, arrays and quoted tables: the same for all block sizes; damage costs only the damaged record."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.ingest import files, readers, text_encodings
from conan_embedding.pipeline.ingest.columns import decide_columns
from conan_embedding.pipeline.ingest.files import FileSplit
from conan_embedding.pipeline.ingest.records import json_values, lines, quoted_records
from conan_embedding.pipeline.ingest.text_encodings import Block
from conan_embedding.schemas.source_settings import Source
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples
from read_files import load_batches

Place = tuple[int, str]
"""A record's line and text."""


def blocks(data: bytes, size: int) -> Iterator[Block]:
    """Cut data as read_blocks does: whole lines if there are any in `size` bytes, else whole characters."""
    line, at = 1, 0
    while at < len(data):
        end = data.rfind(b"\n", at, at + size) + 1 or at + size
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        yield Block(data[at:end], line)
        line += data.count(b"\n", at, end)
        at = end


def places(frames: Iterator[pl.DataFrame]) -> list[Place]:
    return [place for frame in frames for place in frame.select("_line", "text").rows()]


def elements(data: bytes, size: int = 1 << 20) -> tuple[list[Place], list[Place]]:
    """Return the elements of an array and the lines after it, and the damaged pieces, without blank lines."""
    found, damage = [], []
    for good, bad in json_values(blocks(data, size), "a.json"):
        found += [place for place in places(iter([good])) if place[1].strip()]
        damage += places(iter([bad]))
    return found, damage


# Values and texts with all characters that have a meaning for a reader

texts = st.text(st.sampled_from("甲乙𠀀 a,[]{}:\"\\\n\r\t'/\u2028"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
arrays = st.lists(st.dictionaries(texts, values, max_size=3) | values, max_size=8)
dumps = st.sampled_from(
    [
        {"separators": (",", ":")},
        {},
        {"indent": 1},
        {"indent": 4},
        {"indent": "\t"},
        {"indent": 0},
    ]
)


@max_examples(40)
@given(data=st.text(st.sampled_from("甲ab\n"), max_size=60), size=st.integers(1, 40))
def test_lines(data: str, size: int) -> None:
    expected = list(enumerate(data.removesuffix("\n").split("\n"), 1)) if data else []
    assert places(lines(blocks(data.encode(), size), "a")) == expected


@max_examples(40)
@given(array=arrays, style=dumps, ascii_only=st.booleans(), size=st.integers(1, 200))
def test_the_elements_of_an_array(array: list[Any], style: dict[str, Any], ascii_only: bool, size: int) -> None:
    data = json.dumps(array, ensure_ascii=ascii_only, **style)
    found, damage = elements(data.encode(), size)
    assert [json.loads(text) for _, text in found] == array
    assert damage == []
    at = 1
    for line, text in found:
        at = data.index(text, at)
        assert line == 1 + data.count("\n", 0, at)
        at += len(text)


@max_examples(40)
@given(array=arrays, style=dumps, share=st.floats(0, 1), size=st.integers(1, 200))
def test_an_array_cut_anywhere(array: list[Any], style: dict[str, Any], share: float, size: int) -> None:
    array = [value if isinstance(value, dict | list) else [value] for value in array]
    data = json.dumps(array, ensure_ascii=False, **style)
    whole, _ = elements(data.encode())
    cut = max(1, int(share * len(data)))
    found, _ = elements(data[:cut].encode(), size)
    ends, at = [], 0
    for _, text in whole:
        at = data.index(text, at) + len(text)
        ends.append(at)
    before = sum(end <= cut for end in ends)
    # Without indentation, parts of the element that was cut can't be distinguished from elements.
    assert (found[:before] if style == {"indent": 0} else found) == whole[:before]


@max_examples(40)
@given(array=st.lists(st.dictionaries(texts, values, max_size=3), min_size=1, max_size=8), data=st.data())
@pytest.mark.parametrize("indent", ["", " ", "\t"])
def test_one_damaged_element_costs_itself(array: list[Any], data: st.DataObject, indent: str) -> None:
    """That is, if each element is on its own line."""
    records = [json.dumps(element, ensure_ascii=False) for element in array]
    place = data.draw(st.integers(0, len(records) - 1))
    at = data.draw(
        st.integers(1, len(records[place]) - 1)
    )  # within it: a bracket after it may be closed by the array's
    fault = data.draw(st.sampled_from(['"', "{", "[", "}", "]", '{"a":', "x", ":"]))
    size = data.draw(st.integers(1, 200))
    broken = [*records]
    broken[place] = records[place][:at] + fault + records[place][at:]
    text = "[\n" + ",\n".join(indent + record for record in broken) + "\n]\n"
    found = dict(elements(text.encode(), size)[0])
    for number, record in enumerate(records):
        if number != place:
            assert found.get(number + 2) == record


def test_damage_and_what_comes_after_an_array() -> None:
    text = '[{"a": 1},\n {"b": "x\n {"c": 3} {"d": [4}\n {"e": 5}]\n{"f": 6}\n'
    found, damage = elements(text.encode())
    assert found == [(1, '{"a": 1}'), (3, '{"c": 3}'), (4, '{"e": 5}'), (5, '{"f": 6}')]
    assert damage == [(2, '{"b": "x\n '), (3, '{"d": [4}\n ')]
    for size in range(1, 60):
        assert elements(text.encode(), size)[0] == found


def test_an_indented_element_across_blocks_is_left_where_the_next_begins() -> None:
    """The indentation of a damaged element may be in an earlier block."""
    text = '[\n    {\n        "a": "x\n    },\n    {\n        "a": 2\n    }\n]\n'
    for size in range(1, 60):
        found, damage = elements(text.encode(), size)
        assert [json.loads(record) for _, record in found] == [{"a": 2}]
        assert [line for line, _ in damage] == [2]


# Whole readers, with blocks, batches and chunks of any size


def decide(path: Path, **source: Any) -> Source:
    one = Source.model_validate({"name": "web", "files": "*", "read": path.suffix[1:], "meta": "rows", **source})
    return decide_columns(one, [FileSplit(str(path))]).source


def read(path: Path, source: Source) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return rows without their numbers, and problems."""
    rows, problems = [], []
    with readers.open_sandbox() as connection:
        for batch in load_batches(connection, source, [FileSplit(str(path))]):
            frame = connection.sql("FROM rows ORDER BY _row").pl()
            names = sorted(set(frame.columns) - {"_row", "_file", "_line"})
            assert frame["_row"].to_list() == list(range(len(rows), len(rows) + frame.height))
            rows += frame.select("_line", *names).rows()
            problems += batch.rows()
    return rows, problems


def read_in_pieces(path: Path, size: int, source: Source) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encodings, "BLOCK", size)
        patch.setattr(files, "_CHUNK", max(7, size // 2))
        patch.setattr(readers, "BATCH", size)
        return read(path, source)


encoded = st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16"])
ends = st.sampled_from(["\n", "\r\n"])
words = st.text(st.sampled_from("甲乙丙天氣 a1"), max_size=20)


@max_examples(12)
@given(
    records=st.lists(st.fixed_dictionaries({"a": words}, optional={"b": st.integers() | words}), max_size=12),
    style=st.sampled_from(["lines", "compact", "pretty"]),
    encoding=encoded,
    end=ends,
    size=st.integers(7, 200),
)
def test_json_in_blocks_of_any_size(
    records: list[Any], style: str, encoding: str, end: str, size: int, tmp_path: Path
) -> None:
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    if style != "lines":
        text = json.dumps(records, ensure_ascii=False, indent=1 if style == "pretty" else None)
    path = tmp_path / ("a.jsonl" if style == "lines" else "a.json")
    path.write_bytes(text.replace("\n", end).encode(encoding))
    rows, problems = read(path, decide(path, encoding=encoding))
    assert problems == []
    assert [row[1] for row in rows] == [record["a"] for record in records]
    if style == "lines":
        assert [row[0] for row in rows] == list(range(1, len(records) + 1))
    assert read_in_pieces(path, size, decide(path, encoding=encoding)) == (rows, problems)


@max_examples(12)
@given(
    table=st.lists(
        st.tuples(words, st.text(st.sampled_from('甲乙,"\n a'), max_size=9)).filter(
            lambda row: any(map(str.strip, row))
        ),
        max_size=12,
    ),
    encoding=encoded,
    end=ends,
    size=st.integers(7, 200),
)
def test_csv_in_blocks_of_any_size(
    table: list[tuple[str, str]], encoding: str, end: str, size: int, tmp_path: Path
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("a", "b"), *table])
    path = tmp_path / "a.csv"
    path.write_bytes(buffer.getvalue().replace("\n", end).encode(encoding))
    expected = list(csv.reader(io.StringIO(buffer.getvalue())))[1:]
    rows, problems = read(path, decide(path, encoding=encoding))
    assert problems == []
    assert [list(row[1:]) for row in rows] == expected
    line = 2
    for row in rows:
        assert row[0] == line
        line += 1 + sum(field.count("\n") for field in row[1:])
    assert read_in_pieces(path, size, decide(path, encoding=encoding)) == (rows, problems)


@max_examples(12)
@given(
    table=st.lists(st.lists(st.text(st.sampled_from("甲乙\"' a"), max_size=9), min_size=1, max_size=3), max_size=12),
    read_as=st.sampled_from(["tsv", "text"]),
    encoding=encoded,
    end=ends,
    size=st.integers(7, 200),
)
def test_tsv_and_text_in_blocks_of_any_size(
    table: list[list[str]], read_as: str, encoding: str, end: str, size: int, tmp_path: Path
) -> None:
    records = ["\t".join(fields) for fields in [["a", "b"], *table]]
    path = tmp_path / f"a.{read_as}"
    path.write_bytes(end.join(records).encode(encoding))
    rows, problems = read(path, decide(path, encoding=encoding))
    shown = [(line, record) for line, record in enumerate(records, 1) if record.strip()]
    if read_as == "text":
        assert [(row[0], row[1]) for row in rows] == shown
    else:
        assert [(row[0], "\t".join(row[1:])) for row in rows] == [
            (line, record) for line, record in shown[1:] if record.count("\t") == 1
        ]
        assert [(line, record) for _, line, record, _, _ in problems] == [
            (line, record) for line, record in shown[1:] if record.count("\t") != 1
        ]
    assert read_in_pieces(path, size, decide(path, encoding=encoding)) == (rows, problems)


# Quotes


@max_examples(40)
@given(data=st.text(st.sampled_from('甲",\n"a'), max_size=40), size=st.integers(1, 40))
def test_quoted_records_hold_every_line(data: str, size: int) -> None:
    """Even with stray quotes, records follow one another and cover the whole text."""
    found = places(quoted_records(blocks(data.encode(), size), "a", ",", '"'))
    assert "\n".join(text for _, text in found) == data.removesuffix("\n")
    line = 1
    for number, text in found:
        assert number == line
        line += 1 + text.count("\n")
    assert found == places(quoted_records(blocks(data.encode(), 1 << 20), "a", ",", '"'))


def test_a_quote_that_nothing_closes_costs_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'a,b\n1,"x\n' + b"2,y\n" * 10_000
    found = places(quoted_records(blocks(data, 64), "a", ",", '"'))
    assert len(found) == 10_002
    assert found[1] == (2, '1,"x')
