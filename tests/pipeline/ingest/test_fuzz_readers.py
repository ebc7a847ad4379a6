"""Damaged files of each format; `python tests/pipeline/ingest/fuzz_readers.py` tries thousands."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
NAMES = (
    *("jsonl", "jsonl-gb18030", "jsonl-big5", "jsonl-utf-16", "array", "array-of-lines", "array-pretty", "document"),
    *("csv", "tsv", "text", "markdown", "parquet", "alpaca", "sharegpt", "squad", "triples"),
    *("gz", "zst", "xz", "bz2", "zip", "hf", "html", "warc", "docx", "pdf"),
)
OPTIONAL = {"html": "web", "warc": "web", "docx": "documents", "pdf": "documents"}
"""Formats that need an extra."""


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("fuzz_readers")


def test_every_format_is_named(fuzzer: ModuleType) -> None:
    assert set(fuzzer.FORMATS) | OPTIONAL.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(fuzzer: ModuleType, name: str) -> None:
    if name not in fuzzer.FORMATS:
        pytest.skip(f"needs the extra {OPTIONAL[name]}")
    faults: list[tuple[int, str]] = []
    tally = fuzzer.fuzz(name, range(6), lambda number, fault: faults.append((number, fault)))
    assert faults == []
    assert tally.files == 6
    assert tally.problems > 0
    assert tally.required > 0 or name in ("document", "markdown", "parquet", "zip", "html", "docx", "pdf")
