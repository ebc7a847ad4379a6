"""From a glob to text: listing, decompression, encodings; damage is told, never hidden."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import zstandard
from conan_embedding.pipeline.files import BROKEN, FileError, decode, detect, list_files, read_text

SIMPLIFIED = "今天天气很好，我们去公园散步。人民政府发布了新的政策，经济增长稳定。\n"
TRADITIONAL = "今天天氣很好，我們去公園散步。臺灣的經濟發展與環境保護同樣重要，學習語言需要時間。\n"


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/inside.txt", data)
    return buffer.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
    ".GZ": gzip.compress,
    "": bytes,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_decompression(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(PACKERS[ending](SIMPLIFIED.encode() * 1000))
    assert read_text(str(path)) == (SIMPLIFIED * 1000, "utf-8", None)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_several_streams_in_a_file_are_one_text(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACKERS[ending](b"one\n") + PACKERS[ending](b"two\n"))
    assert read_text(str(path)) == ("one\ntwo\n", "utf-8", None)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_a_file_cut_short_keeps_what_came_before(ending: str, tmp_path: Path) -> None:
    text = "".join(f"{number}\n" for number in range(300_000))
    packed = PACKERS[ending](text.encode())
    path = tmp_path / f"a{ending}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    found, _, cut = read_text(str(path))
    assert text.startswith(found)
    assert 30_000 < len(found) < len(text)
    assert cut is not None
    assert f"after {len(found):,} bytes" in cut


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_what_follows_a_whole_stream_is_told(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACKERS[ending](b"one\n") + PACKERS[ending](b"two\n" * 1000)[:-8])
    text, _, cut = read_text(str(path))
    assert text.startswith("one\n")
    assert cut is not None


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".zip", ".bz2"])
def test_not_the_compression_that_the_name_says(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"plain text, and more of it")
    with pytest.raises(FileError):
        read_text(str(path))


def test_an_archive_of_two_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1", "a")
        archive.writestr("2", "b")
    with pytest.raises(FileError, match="expected one file in the archive, found 2"):
        read_text(str(tmp_path / "a.zip"))


@pytest.mark.parametrize("name", ["nowhere.txt", "link.txt", "folder.txt"])
def test_unreadable(name: str, tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("/nowhere/at/all")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(FileError) as raised:
        read_text(str(tmp_path / name))
    assert raised.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        (SIMPLIFIED, "utf-8", "utf-8"),
        (SIMPLIFIED, "utf-8-sig", "utf-8-sig"),
        (SIMPLIFIED, "gb18030", "gb18030"),
        (SIMPLIFIED + "𠀀㐀€", "gb18030", "gb18030"),  # four bytes each
        (TRADITIONAL, "big5", "big5"),
        (SIMPLIFIED, "utf-16", "utf-16"),
        ("plain", "ascii", "utf-8"),
        ("", "ascii", "utf-8"),
    ],
)
def test_encodings_are_found(text: str, encoding: str, found: str) -> None:
    assert decode(text.encode(encoding)) == (text, found)
    assert decode(text.encode(encoding), encoding)[0] == text
    assert decode((text * 50).encode(encoding))[1] == found


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_long_document_on_one_line(encoding: str) -> None:
    assert detect((SIMPLIFIED.strip() * 60_000).encode(encoding)) == encoding
    assert detect((" " + SIMPLIFIED.strip() * 60_000).encode(encoding)) == encoding


@pytest.mark.parametrize("times", [1, 2, 50])
def test_gb18030_declared_as_utf_8(times: int) -> None:
    with pytest.raises(FileError, match=r"not utf-8 at byte 0; it looks like gb18030") as raised:
        decode((SIMPLIFIED * times).encode("gb18030"), "utf-8")
    assert raised.value.reason == "encoding"


def test_utf_8_declared_as_gb18030() -> None:
    with pytest.raises(FileError, match="it looks like utf-8"):
        decode((SIMPLIFIED * 20).encode(), "gb18030")


def test_an_unknown_encoding() -> None:
    with pytest.raises(FileError, match=r"unknown encoding 'gbk-8'; try utf-8, gb18030 or big5"):
        decode(b"x", "gbk-8")


@pytest.mark.parametrize("declared", [None, "utf-8"])
def test_a_few_broken_bytes_mark_their_lines_alone(declared: str | None) -> None:
    lines = [SIMPLIFIED.encode()] * 30
    lines[7] = b"ab\xff" + lines[7]
    offset = sum(map(len, lines[:7])) + 2
    text, encoding = decode(b"".join(lines), declared)
    found = text.splitlines(keepends=True)
    assert encoding == "utf-8"
    assert found[7].startswith(f"{BROKEN}{offset}{BROKEN}")
    assert [line for line in found if line != SIMPLIFIED] == [found[7]]


def test_a_broken_byte_among_ascii_costs_its_line() -> None:
    text, _ = decode(b"one\ntwo \xff\xfe\nthree\n", "utf-8")
    first, second, third = text.splitlines()
    assert (first, third) == ("one", "three")
    assert BROKEN in second


def test_lines_end_in_one_way(tmp_path: Path) -> None:
    for data in (b"a\nb\n", b"a\r\nb\r\n", b"a\rb\r"):
        (tmp_path / "a.txt").write_bytes(data)
        assert read_text(str(tmp_path / "a.txt"))[0] == "a\nb\n"


def names(*globs: str, exclude: tuple[str, ...] = ()) -> list[str]:
    return [os.path.basename(file.path) for file in list_files(globs, exclude)]  # noqa: PTH119


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
    assert names(f"{tmp_path}/*.json") == ["dangling.json", "link.json", "whole.json", "x.json"]
    assert names(f"{tmp_path}/dangling.json") == ["dangling.json"]


def test_a_version_changes_with_its_file(tmp_path: Path) -> None:
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    path.write_text("1")
    link.symlink_to(path)
    before = list_files([f"{tmp_path}/*.json"])
    assert before == list_files([f"{tmp_path}/*.json"])
    path.write_text("22")
    after = list_files([f"{tmp_path}/*.json"])
    assert all(old.version != new.version for old, new in zip(before, after, strict=True))
    assert after[0].size == 2


def test_uris() -> None:
    fsspec.filesystem("memory").pipe("/conan_files/a.txt.gz", gzip.compress(SIMPLIFIED.encode()))
    (file,) = list_files(["memory://conan_files/*.gz"])
    assert file.path.startswith("memory://")
    assert read_text(file.path)[0] == SIMPLIFIED
    with pytest.raises(FileError) as raised:
        read_text("memory://conan_files/nowhere.txt")
    assert raised.value.reason == "unreadable"
