"""Listing files, archives, decompression within limits; damage is reported, never hidden."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import fsspec
import pytest
import zstandard
from conan_embedding.pipeline.ingest import files
from conan_embedding.pipeline.ingest.files import FileError, FileSplit, read_chunks
from conan_embedding.pipeline.ingest.listing import list_files
from conan_embedding.pipeline.ingest.text_encodings import read_text

TEXT = "今天天气很好，我们去公园散步。人民政府发布了新的政策，经济增长稳定。\n"

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": partial(lzma.compress, preset=1),
    ".GZ": gzip.compress,
    "": bytes,
}


def unpack(path: str) -> tuple[bytes, FileError | None]:
    """Return the bytes of a file, and the error that ended them."""
    found = []
    try:
        for chunk in read_chunks(FileSplit(path)):
            found.append(chunk)
    except FileError as error:
        return b"".join(found), error
    return b"".join(found), None


# Compression


@pytest.mark.parametrize("ending", PACKERS)
def test_decompression(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(PACKERS[ending](TEXT.encode() * 1000))
    assert read_text(str(path)) == (TEXT * 1000, None)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("padding", [b"", b"\0" * 512])
def test_several_streams_in_a_file_are_one_text(ending: str, padding: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACKERS[ending](b"one\n") + padding + PACKERS[ending](b"two\n") + padding)
    assert unpack(str(path)) == (b"one\ntwo\n", None)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_a_file_cut_short_keeps_what_came_before(ending: str, tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % number for number in range(300_000))
    packed = PACKERS[ending](text)
    path = tmp_path / f"a{ending}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    found, error = unpack(str(path))
    assert text.startswith(found)
    assert 30_000 < len(found) < len(text)
    assert error is not None
    assert error.reason == "truncated"
    assert f"after {len(found):,} bytes" in error.detail
    assert read_text(str(path)) == (found.decode(), error.detail)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_break_costs_little_of_what_stands_before_it(ending: str, tmp_path: Path) -> None:
    rng = Random(0)
    text = b"".join(b"%d\n" % rng.getrandbits(64) for _ in range(20_000))
    packed = bytearray(PACKERS[ending](text))
    at = len(packed) // 2
    packed[at : at + 8] = b"\xff" * 8
    path = tmp_path / f"a{ending}"
    path.write_bytes(packed)
    found, error = unpack(str(path))
    same = os.path.commonprefix([found, text])  # noqa: RUF071
    assert len(same) > len(text) * 0.49
    assert error is not None


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("rest", [b"cut", b"plain", b"\0plain"])
def test_what_follows_a_whole_stream_is_told(ending: str, rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACKERS[ending](b"one\n") + (PACKERS[ending](b"two\n" * 1000)[:-8] if rest == b"cut" else rest))
    text, error = unpack(str(path))
    assert text.startswith(b"one\n")
    assert error is not None
    assert error.reason == "truncated"


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".bz2", ".zip"])
def test_not_the_compression_that_the_name_says(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"\0" * 5000)
    with pytest.raises(FileError):
        read_text(str(path))


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".jsonl", ".txt"])
@pytest.mark.parametrize("packing", [*PACKERS, ".zip", ".tar"])
def test_a_file_is_read_by_what_it_is_whatever_its_name(packing: str, ending: str, tmp_path: Path) -> None:
    path, data = tmp_path / f"a{ending}", TEXT.encode() * 1000
    match packing:
        case ".zip":
            write_zip(path, {"a.txt": data})
        case ".tar":
            write_tar(path, {"a.txt": data})
        case _:
            path.write_bytes(PACKERS[packing](data))
    (file,) = list_files([str(path)]).files
    assert unpack(file.path) == (data, None)
    assert files.is_packed(file.path) == (packing != "")


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".bz2"])
def test_an_empty_file_is_empty(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").write_bytes(b"")
    (tmp_path / f"b{ending}").write_bytes(PACKERS[ending](b""))
    assert unpack(f"{tmp_path}/a{ending}") == unpack(f"{tmp_path}/b{ending}") == (b"", None)


@pytest.mark.parametrize("name", ["nowhere.txt", "link.txt", "folder.txt"])
def test_unreadable(name: str, tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("/nowhere/at/all")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(FileError) as raised:
        read_text(str(tmp_path / name))
    assert raised.value.reason == "unreadable"


# Files that decompress without end


@pytest.mark.parametrize(
    (
        "ending",
        "floor",
        "most",
    ),  # megabytes; a block of bzip2 alone can be 46, and tracing the pieces of zip takes long
    [(".gz", 256, 50), (".zst", 256, 50), (".bz2", 256, 200), (".xz", 256, 50), (".zip", 32, 10)],
)
def test_a_bomb_is_refused_in_little_memory(
    ending: str, floor: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.UNPACKED_FLOOR == 256 << 20
    monkeypatch.setattr(files, "UNPACKED_FLOOR", floor << 20)
    path = tmp_path / f"a{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.jsonl", "w") as inside:
            inside.write(b'{"a":1}\n')
            for _ in range(floor + 8):
                inside.write(bytes(1 << 20))
    else:
        path.write_bytes(PACKERS[ending](b'{"a":1}\n' + bytes(140 << 20)) * 2)
    assert path.stat().st_size < 1 << 20
    (listed,) = list_files([str(path)]).files
    total, first, began = 0, b"", time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(FileError) as raised:
            for chunk in read_chunks(FileSplit(listed.path)):
                total += len(chunk)
                first = first or chunk[:7]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert raised.value.reason == "too_large"
    assert total <= floor << 20
    assert peak < most << 20
    assert time.process_time() - began < 20
    assert first == b'{"a":1}'


def test_what_is_packed_well_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "UNPACKED_FLOOR", 1 << 10)
    rng = Random(0)
    text = "".join(f'{{"query": "问题{rng.random()}", "positive": "回答"}}\n' for _ in range(30_000)).encode()
    for ending in (".gz", ".zst", ".bz2", ".xz"):
        (tmp_path / f"a{ending}").write_bytes(PACKERS[ending](text))
        assert unpack(f"{tmp_path}/a{ending}") == (text, None)


# Archives


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.mkdir("nothing in it")


@pytest.mark.parametrize(("protocol", "write"), [("zip", write_zip), ("tar", write_tar)])
def test_the_files_of_an_archive(
    protocol: str, write: Callable[[Path, dict[str, bytes]], None], tmp_path: Path
) -> None:
    members = {
        "a.txt": TEXT.encode(),
        "folder/乙 [1]*?.txt": b"two",
        "c.txt.gz": gzip.compress(b"three"),
        "a::b.txt": b"four",
    }
    archive = tmp_path / f"a.{protocol}"
    write(archive, {**members, "empty.txt": b"", "__MACOSX/._a.txt": b"x", "folder/.DS_Store": b"x"})
    listing = list_files([f"{tmp_path}/*.{protocol}"])
    assert [file.path for file in listing.files] == [f"{protocol}://{name}::{archive}" for name in members]
    expected = [*members.values()]
    expected[2] = b"three"
    assert [unpack(file.path) for file in listing.files] == [(data, None) for data in expected]
    assert sum(file.size for file in listing.files) < archive.stat().st_size
    skipped = {"empty.txt": "empty", "__MACOSX/._a.txt": "hidden", "folder/.DS_Store": "hidden"}
    assert listing.skipped == {f"{protocol}://{name}::{archive}": why for name, why in skipped.items()}


def test_a_member_that_changed_has_another_version(tmp_path: Path) -> None:
    versions = []
    for text in (b"1", b"2"):
        write_zip(tmp_path / "a.zip", {"a": text})
        versions += [file.version for file in list_files([f"{tmp_path}/a.zip"]).files]
    assert versions[0] != versions[1]


def test_an_archive_writes_nothing_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "deep/er/place"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    names = ["../../evil.jsonl", f"{tmp_path}/evil.jsonl", "..\\evil.jsonl", "a/../../evil.jsonl"]
    write_zip(place / "a.zip", dict.fromkeys(names, b'{"a":1}\n'))
    link = zipfile.ZipInfo("link.jsonl")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(place / "a.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    listed = list_files(["*.zip"]).files
    assert [unpack(file.path)[0] for file in listed] == [b'{"a":1}\n'] * 4 + [b"/etc/passwd"]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_can_not_be_read(tmp_path: Path) -> None:
    write_zip(tmp_path / "empty.zip", {})
    write_zip(tmp_path / "inner.zip", {"a.txt": b"x"})
    write_zip(tmp_path / "outer.zip", {"inner.zip": (tmp_path / "inner.zip").read_bytes()})
    (tmp_path / "cut.zip").write_bytes((tmp_path / "inner.zip").read_bytes()[:-20])
    locked = bytearray((tmp_path / "inner.zip").read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.index(header) + flags] |= 1  # encrypted
    (tmp_path / "locked.zip").write_bytes(locked)
    for name in ("empty", "outer", "cut", "locked"):
        (file,) = list_files([f"{tmp_path}/{name}.zip"]).files
        found, error = unpack(file.path)
        assert (name, found, error and error.reason) == (name, b"", "unreadable")


def test_a_damaged_member_costs_itself(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {name: f"{name}{Random(name).getrandbits(14000)}".encode() for name in "abc"})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    found = [unpack(file.path) for file in list_files([f"{tmp_path}/a.zip"]).files]
    assert [error and error.reason for _, error in found] == [None, "truncated", None]
    assert found[1][0].startswith(b"b")


def test_an_archive_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    for text in (b"1", b"22"):
        write_zip(tmp_path / "a.zip", {"a": text, "b": text})
        assert [unpack(file.path) for file in list_files([f"{tmp_path}/a.zip"]).files] == [(text, None)] * 2
    write_zip(tmp_path / "a.zip", {"c": b"333"})
    found, error = unpack(f"zip://a::{tmp_path}/a.zip")
    assert (found, error and error.reason) == (b"", "unreadable")


def test_the_directory_of_an_archive_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "a.zip", {str(number): b"x" for number in range(50)})
    listed = list_files([f"{tmp_path}/a.zip"]).files
    opened = []
    original = zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda *given: (opened.append(1), original(*given))[1])
    assert all(unpack(file.path) == (b"x", None) for file in listed)
    assert len(opened) == 1


# Listing


def names(*globs: str, exclude: tuple[str, ...] = ()) -> list[str]:
    return [os.path.basename(file.path) for file in list_files(globs, exclude).files]  # noqa: PTH119


def test_listing(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.txt", "deep/er/d.json", "[1].json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names(f"{tmp_path}/*.json") == ["[1].json", "a.json", "b.json"]
    assert names(f"{tmp_path}/**/*.json", exclude=(f"{tmp_path}/a*",)) == ["[1].json", "b.json", "d.json"]
    assert names(f"{tmp_path}/a.json", f"{tmp_path}/?.json") == ["a.json", "b.json"]
    assert names(f"{tmp_path}/[1].json") == ["[1].json"]
    assert names(f"{tmp_path}/*") == ["[1].json", "a.json", "b.json", "c.txt"]
    assert names(f"{tmp_path}/nowhere/*") == names(str(tmp_path)) == names() == []


def test_what_can_not_be_read_is_listed(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    (tmp_path / "dangling.json").symlink_to("/nowhere/at/all")
    (tmp_path / "whole.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "whole.json")
    assert names(f"{tmp_path}/*.json") == ["dangling.json", "whole.json", "x.json"]
    assert names(f"{tmp_path}/dangling.json") == ["dangling.json"]


def test_a_version_changes_with_its_file(tmp_path: Path) -> None:
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    path.write_text("1")
    link.symlink_to(path)
    before = list_files([f"{tmp_path}/*.json"]).files
    assert before == list_files([f"{tmp_path}/*.json"]).files
    path.write_text("22")
    after = list_files([f"{tmp_path}/*.json"]).files
    assert all(old.version != new.version for old, new in zip(before, after, strict=True))
    assert after[0].size == 2


def test_uris() -> None:
    fsspec.filesystem("memory").pipe("/conan_files/a.txt.gz", gzip.compress(TEXT.encode()))
    (file,) = list_files(["memory://conan_files/*.gz"]).files
    assert file.path.startswith("memory://")
    assert read_text(file.path)[0] == TEXT
    with pytest.raises(FileError) as raised:
        read_text("memory://conan_files/nowhere.txt")
    assert raised.value.reason == "unreadable"


def test_an_archive_at_a_uri() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", TEXT)
    fsspec.filesystem("memory").pipe("/conan_files/b.zip", buffer.getvalue())
    (file,) = list_files(["memory://conan_files/*.zip"]).files
    assert unpack(file.path) == (TEXT.encode(), None)
