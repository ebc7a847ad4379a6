"""Atomic replacement: which temporary files are deleted."""

from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus.atomic import clear_temporaries, write_text


@pytest.mark.parametrize("name", ["a.txt", "[a]*.txt"])
def test_only_the_temporaries_of_the_file_itself_are_deleted(name: str, tmp_path: Path) -> None:
    for leftover in (f".{name}.7.tmp", f".{name}.7.tmp.wal"):
        (tmp_path / leftover).touch()
    (tmp_path / f".{name}.8.tmp.tmp").mkdir()
    others = {f".{name}.other.7.tmp", ".a.7.tmp", f".{name}.tmp"}
    for other in others:
        (tmp_path / other).touch()
    write_text(tmp_path / name, "new")
    assert {file.name for file in tmp_path.iterdir()} == {name, *others}
    clear_temporaries(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {name, f".{name}.tmp"}
