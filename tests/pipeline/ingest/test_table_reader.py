"""Delimited tables, good and damaged: every record becomes a row, or a problem with its line number."""

import csv
import io
from pathlib import Path
from random import Random
from typing import Any

import pytest
from read_files import Read, Reader, reader


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


def test_csv(read: Reader) -> None:
    text = '\ufeffa, b ,\r\n1,"x, ""y""\r\nz",\r\n\r\n2,,"3"\r\n'
    found = read(text, "a.csv")
    assert found.values("a", "b", "column2") == [("1", 'x, "y"\nz', ""), ("2", "", "3")]
    assert found.lines == [2, 5]
    assert found.problems == []


def test_csv_against_the_standard_library(read: Reader) -> None:
    rng = Random(0)
    rows = [["".join(rng.choices('甲b,"\n ', k=rng.randrange(6))) for _ in range(3)] for _ in range(500)]
    rows = [row for row in rows if any(field.strip() for field in row)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([["a", "b", "c"], *rows])
    found = read(buffer.getvalue(), "a.csv")
    assert found.problems == []
    assert found.values("a", "b", "c") == [tuple(row) for row in rows]
    lines, before = [], 2
    for row in rows:
        lines.append(before)
        before += 1 + sum(field.count("\n") for field in row)
    assert found.lines == lines


def test_damaged_records_of_a_csv_cost_themselves(read: Reader) -> None:
    text = 'a,b\n1,"x\ny"\n2,c,d\n3\n4,"p"q\n5,ok\n6,"never closed\n7,5" disk\n8,"z"\n'
    found = read(text, "a.csv")
    assert found.values("a", "b") == [("1", "x\ny"), ("5", "ok"), ("7", '5" disk'), ("8", "z")]
    assert found.lines == [2, 7, 9, 10]
    assert found.problems == [
        (4, "columns", "2,c,d"),
        (5, "columns", "3"),
        (6, "columns", '4,"p"q'),
        (8, "columns", '6,"never closed'),
    ]
    assert found.details[0] == "expected 2 fields, found 3"
    assert found.details[2] == "a quote is not closed, or text follows it"


def test_quotes_after_a_backslash_are_told(read: Reader) -> None:
    found = read('a,b\n1,"x ""y"""\n2,"x \\"y\\""\n', "a.csv")
    assert found.values("b") == ['x "y"']
    assert "quotes inside a field are doubled, not escaped by a backslash" in found.details[0]


def test_a_quote_not_closed_in_the_last_line_is_told(read: Reader) -> None:
    for end in ("", "\n"):
        found = read(f'a,b\n1,"x{end}', "a.csv")
        assert found.rows == []
        assert found.problems == [(2, "columns", '1,"x')]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a,b\n1,"x\ny"\n2,z\n', [("1", "x\ny", 2), ("2", "z", 4)]),
        ('a,b\r\n1,"x\ny"\n2,z\r\n', [("1", "x\ny", 2), ("2", "z", 4)]),
        ('a,b\r\n1,"x\ry"\r\n2,z\r\n', [("1", "x\ry", 2), ("2", "z", 3)]),
        ('a,b\r\n1,"x\r\ny"\r\n2,z\r\n', [("1", "x\ny", 2), ("2", "z", 4)]),
        ('a,b\r\r\n1,"x,\r\r\ny"\r\r\n2,z\r\r\n', [("1", "x,\ny", 2), ("2", "z", 4)]),
        ('a,b\r1,"x\ry"\r2,z\r', [("1", "x\ny", 2), ("2", "z", 4)]),
        ('a,b\r1,"x\ny"\r2,z\r', [("1", "x\ny", 2), ("2", "z", 4)]),  # Excel on the Mac
        ('a,b\r1,"x""\ny"\r2,z\n', [("1", 'x"\ny', 2), ("2", "z", 4)]),
        ("a,b\n1,x\r2,y\n3,z\r\n", [("1", "x", 2), ("2", "y", 2), ("3", "z", 3)]),
        ("a,b\n1,x\ry\n2,z\n", [("1", "x\ry", 2), ("2", "z", 3)]),
        ('a,b\n1,x\x1a\n2,"z"\n\x1a', [("1", "x\x1a", 2), ("2", "z", 3)]),
    ],
)
def test_line_ends_of_all_kinds(read: Reader, text: str, rows: list[tuple[str, str, int]]) -> None:
    found = read(text, "a.csv")
    assert found.values("a", "b", "_line") == rows
    assert found.problems == []


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffquery,positive\n1,2\n",
        '\ufeff\ufeff"query" , positive \n1,2\n',
        "\u200bquery\u00a0,\u3000positive\n1,2\n",
        'sep=,\n"query","positive"\n1,2\n',
        '\ufeff"sep=;"\r\nquery;positive\r\n1;2\r\n',
        "SEP=|,,\nquery|positive\n1|2\n",
        "sep=\t\nquery\tpositive\n1\t2\n",
    ],
)
def test_headers_as_excel_writes_them(read: Reader, text: str) -> None:
    found = read(text, "a.csv")
    assert found.values("query", "positive") == [("1", "2")]
    assert found.lines == [3 if "sep=" in text.lower() else 2]


def test_the_recipe_sets_the_delimiter_whatever_the_file_says(read: Reader) -> None:
    found = read("sep=;\na|b\n1|2\n", "a.csv", options={"delimiter": "|"})
    assert found.values("a", "b", "_line") == [("1", "2", 3)]


@pytest.mark.parametrize(
    ("name", "text", "delimiter"),
    [
        ("a.csv", "query;positive\n1;2\n", ";"),
        ("a.csv", 'query;positive\n"1;x";"2,y"\n', ";"),
        ("a.csv", "query\tpositive\n1\t2\n", r"\t"),
        ("a.tsv", "query,positive\n1,2\n", ","),
    ],
)
def test_another_delimiter_is_told(read: Reader, name: str, text: str, delimiter: str) -> None:
    found = read(text, name)
    assert found.rows == []
    assert found.problems == [(1, "columns", None)]
    assert f"have 2 fields between '{delimiter}': set `options: {{delimiter: \"{delimiter}\"}}`" in found.details[0]


def test_one_column_is_a_table_too(read: Reader) -> None:
    for text in ("text\n1;2\n3\n", "text\n甲\n"):
        assert read(text, "a.csv").problems == []
    assert read("a;b\n1;2\n", "a.csv", options={"delimiter": ","}).values("a;b") == ["1;2"]


@pytest.mark.parametrize(
    ("header", "sql", "is_doubted"),
    [
        ("怎样开锅,小火烧到冒烟", {}, True),
        ("1,好评", {"positive": "list_extract(['差', '好'], label::INT + 1)"}, True),
        ("query,positive", {}, False),
        ("QUERY,Answer", {}, False),
        ("id,text", {"query": "text", "positive": "answer"}, False),
        ("a b,c", {"query": '"a b"'}, False),
        ("问题,答案", {"query": "问题", "positive": "答案"}, False),
        ("甲,乙", {"select": "*", "positive": "length(query) * 2"}, True),
        ("json,乙", {"positive": "query::JSON ->> 0"}, True),
        ("甲,乙", {"meta": "rows"}, False),
        ("甲,乙", {"options": {"header": True}}, False),
    ],
)
def test_a_header_that_may_be_data_is_told(read: Reader, header: str, sql: dict[str, Any], is_doubted: bool) -> None:
    found = read(f"{header}\n1,2\n", "a.csv", **{"meta": None, **sql})
    assert found.lines == [2]
    assert found.problems == ([(1, "columns", header)] if is_doubted else [])
    assert all("the recipe's SQL names none of its columns" in detail for detail in found.details)


def test_a_header_with_a_quote_that_swallows_lines_is_told(read: Reader) -> None:
    found = read('query,"positive\n甲,乙\n丙,"\n1,2\n', "a.csv")
    assert found.problems == [(1, "columns", 'query,"positive\n甲,乙\n丙,"')]
    assert read('query,"positive\n(long)"\n1,2\n', "b.csv").problems == []


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_header_of_a_joined_file_is_no_row(read: Reader, name: str) -> None:
    delimiter = "," if name == "a.csv" else "\t"
    found = read("a,b\n1,2\na,b\n3,4\n".replace(",", delimiter), name)
    assert (found.values("a"), found.lines) == (["1", "3"], [2, 4])
    assert found.problems == [(3, "columns", f"a{delimiter}b")]
    assert read("a,b\na,b\n", "b.csv", options={"columns": ["x", "y"]}).values("x") == ["a", "a"]


def test_stray_quotes_in_a_tsv_lose_no_line(read: Reader) -> None:
    quotes = ['"', "", '""', 'a"b']
    lines = [f"{number}\t{quotes[number % 4]}评论" for number in range(30)]
    found = read("label\ttext\n" + "\n".join(lines), "a.tsv")
    assert found.values("label", "text") == [tuple(line.split("\t")) for line in lines]
    assert found.lines == list(range(2, 32))


QUOTED = {
    "all fields": '"问"\t"答"\n"甲"\t"乙"\n',
    "texts, not numbers": 'q\ta\tn\n"甲"\t"乙"\t3\n"丙"\t"丁"\t4\n',
    "doubled quotes": "q\ta\n" + "甲\t乙\n" * 9 + '丙\t"他说 ""好""。"\n',
    "line breaks": 'q\ta\n甲\t"乙\n丙"\n丁\t戊\n己\t庚\n',
    "tabs": 'q\ta\n甲\t"乙\t丙"\n丁\t戊\n己\t庚\n',
}
NOT_QUOTED = {
    "a word in quotes": 'q\ta\n"甲"乙\t丙\n丁\t"戊"己\n',
    "one title in quotes": "q\ta\n" + "甲\t乙\n" * 9 + '"丙"\t丁\n',
    "quotes left open": 'q\ta\n"甲\t乙\n"丙"\t丁\n',
    "json": 'q\ta\n甲\t{"a": "b"}\n乙\t["c"]\n',
    "a carriage return": 'q\ta\n甲\t"乙\r丙\n丁\t戊\t己\n',
    "a quote before much": 'q\ta\n甲\t"乙\n丙\t丁\t戊\n' + f"丁\t{'戊' * 200}\n" * 2_000,
    "misfits": 'q\ta\n甲\t"乙\t丙\n丁\t戊\n己\t庚"\n',
}


@pytest.mark.parametrize("kind", QUOTED)
def test_quotes_of_a_tsv_are_told(read: Reader, kind: str) -> None:
    found = read(QUOTED[kind], "a.tsv")
    cure = "set `options: {quote: '\"'}`, or `quote: ''` if the quotes belong to the texts"
    assert (found.rows, found.details) == ([], [f"fields are in double quotes: {cure}"])
    assert read(QUOTED[kind], "b.tsv", options={"quote": '"'}).problems == []
    assert read(QUOTED[kind], "c.tsv", options={"quote": ""}).rows


@pytest.mark.parametrize("kind", NOT_QUOTED)
def test_quotes_of_texts_stay(read: Reader, kind: str) -> None:
    found = read(NOT_QUOTED[kind], "a.tsv")
    assert not any("double quotes" in detail for detail in found.details)
    assert '"' in str(found.rows)


def test_misfits_of_a_tsv(read: Reader) -> None:
    found = read("a\tb\n1\t2\n3\n4\t5\t6\n7\t8\n", "a.tsv")
    assert found.values("a", "b") == [("1", "2"), ("7", "8")]
    assert found.problems == [(3, "columns", "3"), (4, "columns", "4\t5\t6")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("text", ["", "\n\n", "a{d}b", "a{d}b\n", "\n\na{d}b\r\n"])
def test_a_table_without_rows(read: Reader, name: str, text: str) -> None:
    found = read(text.format(d="," if name == "a.csv" else "\t"), name)
    assert found.rows == []
    assert found.problems == []


def test_options_of_tables(read: Reader) -> None:
    named = {"columns": ["a", "b"]}
    assert read("1\t2\n", "a.tsv", options=named).values("a", "b") == [("1", "2")]
    assert read("x\ty\n1\t2\n", "a.tsv", options=named | {"header": True}).values("a", "b") == [("1", "2")]
    assert read("1\t2\n", "a.tsv", options={"header": False}).values("column0", "column1") == [("1", "2")]
    assert read("a||b\n1||2\n", "a.tsv", options={"delimiter": "||"}).values("b") == ["2"]
    assert read("a|b\n'1|''2'|3\n", "a.csv", options={"delimiter": "|", "quote": "'"}).values("a", "b") == [
        ("1|'2", "3")
    ]
    assert read('a\tb\n"1\t2"\t3\n', "a.tsv", options={"quote": '"'}).values("a", "b") == [("1\t2", "3")]
    assert read('a,b\n"1,2\n', "a.csv", options={"quote": ""}).values("a", "b") == [('"1', "2")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_names_that_stand_twice_or_are_ours(read: Reader, name: str) -> None:
    delimiter = "," if name == "a.csv" else "\t"
    header = ["a", "b", "a", "A", "_file", "_line", "_row", "a_1", ""]
    found = read("\n".join(delimiter.join(row) for row in (header, list("123456789"))), name)
    (row,) = found.rows
    names = ["a", "b", "a_1", "A_2", "_file_1", "_line_1", "_row_1", "a_1_1", "column8"]
    assert [row[name] for name in names] == list("123456789")
    assert row["_line"] == 2


def test_a_header_that_can_not_be_read_costs_its_file(read: Reader) -> None:
    found = read(b"a\0,b\n1,2\n", "a.csv")
    assert found.rows == []
    assert found.problems == [(1, "columns", None)]


def test_nul_bytes_in_tables(read: Reader) -> None:
    for name, text in (("a.csv", b'a,b\n1,"\0\n"\n2,3\n'), ("a.tsv", b"a\tb\n1\t\0\n\n2\t3\n")):
        found = read(text, name)
        assert found.values("a", "_line") == [("2", 4)]
        assert [(line, reason) for line, reason, _ in found.problems] == [(2, "nul_bytes")]


def test_broken_bytes_in_a_table(read: Reader) -> None:
    lines = [f"{number},今天天气很好我们去公园散步\n".encode() for number in range(30)]
    lines[4] = b"4,\xe4\xbb\n"
    found = read(b"a,b\n" + b"".join(lines), "a.csv")
    assert found.values("a") == [str(number) for number in range(30) if number != 4]
    assert [(line, reason) for line, reason, _ in found.problems] == [(6, "encoding")]
    assert found.details == [f"undecodable bytes at offset {4 + sum(map(len, lines[:4])) + 2}"]


def test_headers_that_differ_between_files(tmp_path: Path) -> None:
    for name, text in (("a", "Query,positive\n1,2\n"), ("b", "positive,QUERY,more\n4,3,x\n"), ("c", "query\n5\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    found = Read([f"{tmp_path}/{name}.csv" for name in "abc"], read="csv")
    assert found.values("Query", "positive", "more") == [("1", "2", None), ("3", "4", "x"), ("5", None, None)]
