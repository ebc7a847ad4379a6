"""Every glob is accounted for: files that are listed, once each; globs without files; what was skipped, and why."""

import os
import socket
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pytest
from conan_embedding.pipeline.ingest.files import FileError, FileSplit, read_chunks
from conan_embedding.pipeline.ingest.listing import Listing, list_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with two files, reached by links in several ways."""
    top = tmp_path / "top"
    (top / "real").mkdir(parents=True)
    (top / "real/a.jsonl").write_text("a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.jsonl").write_text("b")
    (top / "linked").symlink_to("../elsewhere")
    (top / "again").symlink_to("real")
    (top / "loop").symlink_to(".")
    (top / "latest.jsonl").symlink_to("real/a.jsonl")
    return top


def names(listing: Listing, top: Path) -> list[str]:
    return [os.path.relpath(file.path, top) for file in listing.files]


@pytest.mark.parametrize(
    ("globs", "exclude", "expected"),
    [
        (["**/*.jsonl"], [], ["linked/b.jsonl", "real/a.jsonl"]),
        (["*/*.jsonl"], [], ["linked/b.jsonl", "real/a.jsonl"]),
        (["again/*"], [], ["again/a.jsonl"]),
        (["again/*", "real/*"], [], ["real/a.jsonl"]),
        (["latest.jsonl"], [], ["latest.jsonl"]),
        (["*.jsonl", "**/a.jsonl"], ["latest.jsonl"], ["real/a.jsonl"]),
        (["*.jsonl", "**/a.jsonl"], ["real/*"], ["latest.jsonl"]),
        (["**/*.jsonl"], ["linked/**"], ["real/a.jsonl"]),
        (["loop/loop/real/a.jsonl", "real/a.jsonl"], [], ["real/a.jsonl"]),
        (["{linked,real}/*.jsonl"], [], ["linked/b.jsonl", "real/a.jsonl"]),
    ],
)
def test_a_file_reached_in_several_ways_is_listed_once(
    globs: list[str], exclude: list[str], expected: list[str], tree: Path
) -> None:
    listing = list_files([f"{tree}/{glob}" for glob in globs], [f"{tree}/{glob}" for glob in exclude])
    assert names(listing, tree) == expected
    assert listing.unmatched == []


def test_globs_without_files_and_what_is_skipped(tree: Path) -> None:
    (tree / "empty.jsonl").touch()
    (tree / ".DS_Store").write_text("x")
    (tree / "B.JSONL").write_text("x")
    globs = [f"{tree}/{glob}" for glob in ("*", "*.jsonl", "nowhere/*", "real", "{real,unreal}/a.jsonl", "no[1].csv")]
    listing = list_files(globs)
    assert names(listing, tree) == ["B.JSONL", "real/a.jsonl"]
    assert listing.unmatched == [f"{tree}/{glob}" for glob in ("nowhere/*", "unreal/a.jsonl", "no[1].csv")]
    skipped = {".DS_Store": "hidden", "empty.jsonl": "empty", "real": "folder"}
    assert listing.skipped == {f"{tree}/{name}": why for name, why in skipped.items()}
    listing = list_files([f"{tree}/*.jsonl"], [f"{tree}/empty*"])
    assert listing.skipped == {f"{tree}/B.JSONL": "in another case"}


def test_a_link_has_another_version_if_its_target_changes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "link.json").symlink_to("a")
    (before,) = list_files([f"{tmp_path}/*.json"]).files
    os.utime(tmp_path / "a", (1, 1))
    (after,) = list_files([f"{tmp_path}/*.json"]).files
    assert before.version != after.version


def test_pipes_devices_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe would block until something writes to it."""
    os.mkfifo(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "b.zip")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("c.jsonl")
        listed = list_files([f"{tmp_path}/*", "/dev/zero"]).files
        assert len(listed) == 4
        for file in listed:
            with pytest.raises(FileError, match="a named pipe, a device or a socket"):
                next(read_chunks(FileSplit(file.path)))


def test_globs_within_chained_uris(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.txt", "d/b.txt", "c.json"):
            archive.writestr(name, name)
    fsspec.filesystem("memory").pipe("/chained/d.txt", b"d.txt")
    listed = list_files([f"zip://**/*.txt::{tmp_path}/a.zip", "simplecache::memory://chained/**.txt"]).files
    assert [b"".join(read_chunks(FileSplit(file.path))) for file in listed] == [b"d.txt", b"a.txt", b"d/b.txt"]


@pytest.mark.parametrize("end", [1024, 1200, 1536, 1700, 3072])
def test_a_tar_archive_that_breaks_off_is_told(end: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("a", "b"):
            (tmp_path / name).write_text(name * 600)
            archive.add(tmp_path / name, name)
    (tmp_path / "a.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:end])
    faults, found = [], []
    for file in list_files([f"{tmp_path}/a.tar"]).files:
        try:
            found.append(b"".join(read_chunks(FileSplit(file.path))))
        except FileError as error:
            faults.append(error)
    assert found == [b"a" * 600, b"b" * 600][: (end + 424) // 1536]  # the padding of 600 bytes to 1,024 may be missing
    assert {fault.reason for fault in faults} <= {"unreadable", "truncated"}
    assert faults
