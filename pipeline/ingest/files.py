"""From a glob to bytes: listing, archives, decompression within bounds, and the splits that workers share."""

import bz2
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import zstandard

from ...schemas.errors import ConanError

UNPACKED_RATIO = 200
"""Chosen here: how many times its size a compressed file may unpack to; text seldom packs 30 times."""
UNPACKED_FLOOR = 256 << 20
"""Chosen here: bytes that any compressed file may unpack to."""

_CHUNK = 1 << 20
_SLICE = 512  # bytes that a decompressor is given at a time
_BLOCK_OF_BZIP2 = 32  # two dozen bytes may stand for a block of 46 MB, 900,000 bytes of runs
_MEMORY_OF_XZ = 256 << 20  # that a file may ask for; `xz -9` asks for 65 MB
_PACKED = (".gz", ".zst", ".bz2", ".xz")
# RuntimeError: a password; MemoryError: a size that can't be
_UNREADABLE = (OSError, RuntimeError, MemoryError, ValueError, ImportError, zipfile.BadZipFile)
_CUT = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile)


class FileError(ConanError):
    """A file that can't be read, or not further; `reason` is one word for the rejects."""

    def __init__(self, reason: str, detail: str, line: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.line = reason, detail, line


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `version` changes when the file does."""

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class FileSplit:
    """What one task reads of a file: bytes from a line's start to a line's end, or row groups of a Parquet file."""

    path: str
    start: int = 0
    end: int | None = None
    first_line: int = 1
    encoding: str | None = None  # where whoever cut the file has found it out

    @property
    def name(self) -> str:
        """The path as it stands in rejects: the bytes of a file's name may be no text."""
        return self.path.encode("utf-8", "backslashreplace").decode()


def list_files(globs: Sequence[str], exclude: Sequence[str] = (), folders: bool = False) -> list[SourceFile]:
    """The files (and folders) that match any of the globs (paths or fsspec URIs) and none of `exclude`, by path.

    A .zip archive counts as the files in it. What can't be read (a link to nothing, a folder that is named as a file)
    is listed too: reading it tells why.
    """
    left_out = {path for pattern in exclude for path in _expand(pattern, folders)}
    listed = (item for pattern in globs for item in _expand(pattern, folders).items())
    found = {path: file for path, file in listed if path not in left_out}
    return [member for path in sorted(found) for member in _members(found[path])]


def file_at(path: str) -> SourceFile:
    """A file by its path or URI."""
    filesystem, name = fsspec.core.url_to_fs(path)
    return SourceFile(path, filesystem.size(name) or 0, filesystem.ukey(name))


def _expand(pattern: str, folders: bool) -> dict[str, SourceFile]:
    filesystem, path = fsspec.core.url_to_fs(pattern)
    names = filesystem.glob(path) if any(mark in path for mark in "*?[") else []
    if not names and filesystem.lexists(path):
        names = [path]
    folders_too = folders or "." in path.rpartition("/")[2]
    files = {}
    for name in names:
        try:
            info, version = filesystem.info(name), filesystem.ukey(name)
        except OSError:
            info, version = {"type": "link", "size": 0}, "unreadable"
        if info["type"] != "directory" or folders_too:
            uri = pattern if "::" in pattern else filesystem.unstrip_protocol(name).removeprefix("file://")
            files[name] = SourceFile(uri, info["size"] or 0, version)
    return files


def _members(file: SourceFile) -> list[SourceFile]:
    """The files of an archive, named as fsspec chains URIs; they are read in place, nothing is unpacked to disk."""
    if not file.path.lower().endswith(".zip") or "::" in file.path:
        return [file]
    try:
        with fsspec.open(file.path, "rb") as opened, zipfile.ZipFile(opened) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except _UNREADABLE:
        return [file]
    return [
        SourceFile(f"zip://{member.filename}::{file.path}", member.compress_size, f"{file.version} {member.CRC}")
        for member in members
    ] or [file]


def is_packed(path: str) -> bool:
    """Whether a file is compressed, and so can be read from its start only."""
    return "::" in path or PurePosixPath(path).suffix.lower() in (*_PACKED, ".zip")


@contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """A file's own bytes. Raises FileError where there are none to be had."""
    with _told(), fsspec.open(path, "rb") as file:
        yield file


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except _UNREADABLE as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error


def read_chunks(split: FileSplit) -> Iterator[bytes]:
    """The bytes of a split, unpacked, about a megabyte at a time.

    Raises:
        FileError: unreadable, not the compression its ending says, cut short, or unpacking without end; what came
            before is given first.
    """
    member, _, archive = split.path.rpartition("::")
    if member.startswith("zip://"):
        with _told():
            yield from _member_chunks(archive, member.removeprefix("zip://"))
        return
    with open_file(split.path) as file:
        if not is_packed(split.path):
            file.seek(split.start)
            yield from _slices(file, None if split.end is None else split.end - split.start)
            return
        packed = _CountingFile(file)
        yield from _bounded(_unpacked(packed, split.path.partition("::")[0]), lambda: packed.taken)


def _member_chunks(path: str, name: str) -> Iterator[bytes]:
    archive, packed = _opened_archive(path, file_at(path).version)
    if name not in archive.NameToInfo:
        raise FileError("unreadable", f"{path} holds no {name} any more")
    before = packed.taken
    with archive.open(name) as inside:
        inside.MIN_READ_SIZE = _SLICE  # type: ignore[attr-defined]
        yield from _bounded(_unpacked(inside, name), lambda: packed.taken - before)


@lru_cache(maxsize=1)
def _opened_archive(path: str, version: str) -> tuple[zipfile.ZipFile, "_CountingFile"]:
    """An archive, which stays open: to find thousands of files in its directory takes as long as to read one."""
    packed = _CountingFile(fsspec.open(path, "rb").open())
    return zipfile.ZipFile(packed), packed


def _bounded(pieces: Iterator[bytes], taken: Callable[[], int]) -> Iterator[bytes]:
    """Pieces together, as long as they don't grow out of all proportion to the bytes that were taken for them."""
    parts: list[bytes] = []
    size = total = 0
    damage = None
    try:
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size < _CHUNK:
                continue
            total += size
            if total > max(UNPACKED_FLOOR, UNPACKED_RATIO * taken()):
                detail = (
                    f"unpacks to more than {UNPACKED_RATIO} times its size; unpack it yourself if it can be trusted"
                )
                raise FileError("too_large", detail)
            yield b"".join(parts)
            parts, size = [], 0
    except _CUT as error:
        damage = error
    if size:
        yield b"".join(parts)
    if damage:
        after = f"after {total + size:,} bytes" if total + size else "before its first byte, if it is packed so at all"
        raise FileError("truncated", f"breaks off {after}: {damage}") from damage


def _slices(file: IO[bytes], left: int | None) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        yield chunk
        left = None if left is None else left - len(chunk)


class _CountingFile:
    """A file that counts what was taken from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.taken = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.taken += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _unpacked(file: Any, path: str) -> Iterator[bytes]:
    match PurePosixPath(path).suffix.lower():
        case ".gz":
            return _streams(file, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16))
        case ".zst":
            return _streams(file, lambda: zstandard.ZstdDecompressor().decompressobj())
        case ".bz2":
            return _streams(file, bz2.BZ2Decompressor, _BLOCK_OF_BZIP2)
        case ".xz":
            return _streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY_OF_XZ))
        case ".zip":
            raise FileError("unreadable", "no zip archive that can be read, or an empty one")
        case _:  # a member of an archive that is not packed once more
            return iter(lambda: file.read1(_SLICE), b"")


def _streams(file: IO[bytes], start: Callable[[], Any], some: int = _SLICE) -> Iterator[bytes]:
    """What streams one after the other unpack to, zeros between them left out; one that breaks off is told.

    A decompressor that comes to a break gives nothing of what it was called with, so it is given little.
    """
    stream, begun = start(), False
    while packed := file.read(_CHUNK):
        at, begun = 0, True
        while at < len(packed):
            if stream is None and packed[at] == 0:
                at += 1
                continue
            stream = stream or start()
            yield stream.decompress(packed[at : at + some])
            at += some
            if stream.eof:
                at = min(at, len(packed)) - len(stream.unused_data)
                stream = None
    if begun and stream is not None:
        raise EOFError("the last stream is not whole")
