"""Distinct column names, and records that can't become rows."""

import polars as pl
import pytest
from conan_embedding.pipeline.ingest import problems
from conan_embedding.pipeline.ingest.problems import PROBLEM, fitting, make_distinct, no_problems, problem
from conan_embedding.pipeline.ingest.records import LINE


@pytest.mark.parametrize(
    ("names", "distinct"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "A", "a"], ["a", "A_1", "a_2"]),
        (["a_1", "a", "a"], ["a_1", "a", "a_2"]),
        (["_row", "_File"], ["_row_1", "_File_1"]),
        ([], []),
    ],
)
def test_names_are_made_distinct(names: list[str], distinct: list[str]) -> None:
    assert make_distinct(names) == distinct


def test_records_that_can_not_be_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "LONGEST_RECORD", 4)
    texts = ["甲", " \t", "a\0b", "12345", "\0" * 9, "1234"]
    records = pl.DataFrame({"_file": ["f"] * 6, "_line": range(1, 7), "text": texts}, LINE)
    good, bad = fitting(records)
    assert good.schema == LINE
    assert good["_line"].to_list() == [1, 6]
    assert bad.schema == PROBLEM
    assert bad.select("line", "record", "reason", "detail").rows() == [
        (3, "a␀b", "nul_bytes", "3 characters"),
        (4, "1234", "too_long", "5 characters"),
        (5, "␀" * 4, "too_long", "9 characters"),
    ]


def test_frames_of_problems_are_alike() -> None:
    assert pl.concat([no_problems(), problem("f", None, None, "unreadable", "no such file")]).rows() == [
        ("f", None, None, "unreadable", "no such file")
    ]
