"""Lines of text."""

from pathlib import Path

import pytest
from read_files import Reader, reader


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


def test_text(read: Reader) -> None:
    found = read("甲 乙\n\n\t\n丙\n", "a.txt", read="text")
    assert found.values("line", "line_number") == [("甲 乙", 1), ("丙", 4)]
