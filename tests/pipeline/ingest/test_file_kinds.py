"""Files that are not what they seem: the reject says what they are and what to do."""

import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import zstandard
from read_files import Read, reader

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"a": [1]}).write_parquet(buffer)
    return buffer.getvalue()


def arrow() -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def excel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return buffer.getvalue()


def packed_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    return buffer.getvalue()


FILES = {
    "lfs": (POINTER, "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    "annex": (b"/annex/objects/MD5E-s7--0a.jsonl\n", "a git-annex pointer, not the file itself: run `git annex get`"),
    "parquet": (parquet(), "a Parquet file: `read: parquet`"),
    "arrow": (arrow(), "an Arrow file: `read: hf`"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\n", "a PDF file, not text"),
    "excel": (excel(), "an Office file (Excel, Word …): save it as CSV or text"),
    "old excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "an Excel or Word file of the old kind"),
    "sqlite": (b"SQLite format 3\0" + bytes(84), "an SQLite database"),
    "packed tar": (packed_tar(), "a tar archive that is compressed: unpack it with `tar xf`"),
    "packed twice": (gzip.compress(zstandard.compress(b"{}")), "packed twice: unpack it once"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40", "compressed with lz4"),
    "png": (b"\x89PNG\r\n\x1a\n\0", "a picture"),
    "rtf": (b"{\\rtf1\\ansi\\ansicpg936 \\'d6\\'d0}", "an RTF document: save it as text or DOCX"),
    "mhtml": (
        b"From: <Saved by Blink>\r\nSubject: a\r\nMIME-Version: 1.0\r\nContent-Type: multipart/related;\r\n",
        "a web page saved as MHTML: save it as HTML",
    ),
    "avro": (b"Obj\x01\x04\x14avro.codec\x08null", "an Avro or ORC file: convert it to Parquet"),
    "numpy": (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}\n\0\0", "arrays or objects of Python (NumPy, HDF5, pickle)"),
    "pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0]\x94.", "arrays or objects of Python (NumPy, HDF5, pickle)"),
    "snappy": (b"\xff\x06\0\0sNaPpY\0\x10\0\0", "compressed with snappy, which can't be read"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z or rar archive"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "a.jsonl.gz"])
@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_text_is_one_reject_that_says_what_to_do(kind: str, name: str, tmp_path: Path) -> None:
    data, advice = FILES[kind]
    read = {"txt": "text", "md": "markdown", "gz": "jsonl"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
    found = reader(tmp_path)(data, name, read=read)
    assert (found.rows, found.problems) == ([], [(None, "unreadable", None)])
    assert found.details[0].startswith(advice)


@pytest.mark.parametrize("read", ["parquet", "hf", "html", "warc"])
def test_a_pointer_is_told_by_every_reader(read: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(POINTER)
    found = Read([f"{tmp_path}/a"], read=read)
    assert found.details == ["a Git LFS pointer, not the file itself: run `git lfs pull`"]


def test_the_older_format_of_xz_is_read(tmp_path: Path) -> None:
    packed = lzma.compress(b'{"a": 1}\n', lzma.FORMAT_ALONE)
    assert reader(tmp_path)(packed, "a.jsonl", read="jsonl").values("a") == [1]


def test_a_text_that_begins_like_a_pointer_is_read(tmp_path: Path) -> None:
    found = reader(tmp_path)(POINTER * 20, "a.txt", read="text")
    assert len(found.rows) == 60


def test_the_largest_window_of_zstd_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # so the size is not in the header
    packed = stream.compress(b'{"a": 1}\n' * 5) + stream.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 31
    assert reader(tmp_path)(packed, "a.jsonl.zst", read="jsonl").values("a") == [1] * 5
