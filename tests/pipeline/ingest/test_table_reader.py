"""Delimited tables, good and damaged: every record becomes a row, or a problem with its line number."""

import csv
import io
from pathlib import Path
from random import Random

import pytest
from read_files import Reader, reader


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


def test_a_quote_not_closed_in_the_last_line_is_told(read: Reader) -> None:
    for end in ("", "\n"):
        found = read(f'a,b\n1,"x{end}', "a.csv")
        assert found.rows == []
        assert found.problems == [(2, "columns", '1,"x')]


def test_line_ends_of_two_kinds(read: Reader) -> None:
    found = read('a,b\r\n1,"x\ny"\n2,z\r\n', "a.csv")
    assert found.values("a", "b", "_line") == [("1", "x\ny", 2), ("2", "z", 4)]
    assert read("a,b\r1,2\r3,4\r", "b.csv").values("b") == ["2", "4"]


def test_stray_quotes_in_a_tsv_lose_no_line(read: Reader) -> None:
    quotes = ['"', "", '""', 'a"b']
    lines = [f"{number}\t{quotes[number % 4]}评论" for number in range(30)]
    found = read("label\ttext\n" + "\n".join(lines), "a.tsv")
    assert found.values("label", "text") == [tuple(line.split("\t")) for line in lines]
    assert found.lines == list(range(2, 32))


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
