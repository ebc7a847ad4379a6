"""Find the files of a source (globs, fsspec URIs, zip archives), and read them decompressed, within size limits."""

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
"""Chosen here: how many times its size a compressed file may decompress to; text rarely compresses 30-fold."""
UNPACKED_FLOOR = 256 << 20
"""Chosen here: bytes that any compressed file may decompress to, however small it is."""

_CHUNK = 1 << 20
_SLICE = 512  # compressed bytes passed to a decompressor at a time
_BLOCK_OF_BZIP2 = 32  # the same for bzip2, where two dozen bytes can encode 46 MB
_MEMORY_OF_XZ = 256 << 20  # memory limit of the xz decoder in bytes; files made by `xz -9` need 65 MB
_PACKED = (".gz", ".zst", ".bz2", ".xz")
# RuntimeError: the archive needs a password; MemoryError: it declares an impossible size
_UNREADABLE = (OSError, RuntimeError, MemoryError, ValueError, ImportError, zipfile.BadZipFile)
_CUT = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile)


class FileError(ConanError):
    """A file that can't be read, or only in part. `reason` becomes the reason of its reject."""

    def __init__(self, reason: str, detail: str, line: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.line = reason, detail, line


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `version` changes when the file changes."""

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class FileSplit:
    """The part of a file that one task reads: a byte range of whole lines, or a range of row groups in Parquet."""

    path: str
    start: int = 0
    end: int | None = None
    first_line: int = 1
    encoding: str | None = None  # set if it was detected while the file was split

    @property
    def name(self) -> str:
        """The path as valid text, for rejects; a file name may contain any bytes."""
        return self.path.encode("utf-8", "backslashreplace").decode()


def list_files(globs: Sequence[str], exclude: Sequence[str] = (), folders: bool = False) -> list[SourceFile]:
    """List the files that match any of the globs (paths or fsspec URIs) and none of `exclude`, sorted by path.

    A .zip archive is listed as its members. Unreadable files (a dangling link, a folder named like a file) are listed
    too, so that the reader reports them.

    Args:
        folders: Whether to list folders as well as files.
    """
    left_out = {path for pattern in exclude for path in _expand(pattern, folders)}
    listed = (item for pattern in globs for item in _expand(pattern, folders).items())
    found = {path: file for path, file in listed if path not in left_out}
    return [member for path in sorted(found) for member in _list_members(found[path])]


def stat_file(path: str) -> SourceFile:
    """Look up size and version of the file at a path or URI."""
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


def _list_members(file: SourceFile) -> list[SourceFile]:
    """List the members of a zip archive as chained fsspec URIs: they are read in place, not extracted to disk."""
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
    """Whether a file is compressed or a member of an archive, so that it can only be read from its start."""
    return "::" in path or PurePosixPath(path).suffix.lower() in (*_PACKED, ".zip")


@contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file's raw bytes. Raises FileError if it can't be opened, or can't be read within the `with` block."""
    with _wrap_errors(), fsspec.open(path, "rb") as file:
        yield file


@contextmanager
def _wrap_errors() -> Iterator[None]:
    """Turn errors of file systems and archives into FileError."""
    try:
        yield
    except FileError:
        raise
    except _UNREADABLE as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error


def read_chunks(split: FileSplit) -> Iterator[bytes]:
    """Yield the bytes of a split, decompressed, about 1 MiB at a time.

    Raises:
        FileError: the file can't be read, is not compressed as its name says, ends early, or decompresses to too much.
            The bytes before the fault are yielded first.
    """
    member, _, archive = split.path.rpartition("::")
    if member.startswith("zip://"):
        with _wrap_errors():
            yield from _read_member(archive, member.removeprefix("zip://"))
        return
    with open_file(split.path) as file:
        if not is_packed(split.path):
            file.seek(split.start)
            yield from _read_slices(file, None if split.end is None else split.end - split.start)
            return
        packed = _CountingFile(file)
        yield from _check_growth(_unpack(packed, split.path.partition("::")[0]), lambda: packed.taken)


def _read_member(path: str, name: str) -> Iterator[bytes]:
    archive, packed = _open_archive(path, stat_file(path).version)
    if name not in archive.NameToInfo:
        raise FileError("unreadable", f"{path} no longer contains {name}")
    before = packed.taken
    with archive.open(name) as inside:
        inside.MIN_READ_SIZE = _SLICE  # type: ignore[attr-defined]
        yield from _check_growth(_unpack(inside, name), lambda: packed.taken - before)


@lru_cache(maxsize=1)
def _open_archive(path: str, version: str) -> tuple[zipfile.ZipFile, "_CountingFile"]:
    """Open an archive and keep it open: its directory, with thousands of members, takes as long to read as a member."""
    packed = _CountingFile(fsspec.open(path, "rb").open())
    return zipfile.ZipFile(packed), packed


def _check_growth(pieces: Iterator[bytes], taken: Callable[[], int]) -> Iterator[bytes]:
    """Join pieces into chunks of about 1 MiB.

    Raises:
        FileError: the output exceeds the limit for `taken()` bytes of compressed input, or the input ends early.
    """
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
                detail = f"decompresses to over {UNPACKED_RATIO} times its size; decompress it yourself if you trust it"
                raise FileError("too_large", detail)
            yield b"".join(parts)
            parts, size = [], 0
    except _CUT as error:
        damage = error
    if size:
        yield b"".join(parts)
    if damage:
        read = total + size
        fault = f"ends early, after {read:,} bytes" if read else "ends early, or is not compressed as its name says"
        raise FileError("truncated", f"{fault}: {damage}") from damage


def _read_slices(file: IO[bytes], left: int | None) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        yield chunk
        left = None if left is None else left - len(chunk)


class _CountingFile:
    """Wraps a file and counts the bytes read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.taken = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.taken += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _unpack(file: Any, path: str) -> Iterator[bytes]:
    match PurePosixPath(path).suffix.lower():
        case ".gz":
            return _unpack_streams(file, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16))
        case ".zst":
            return _unpack_streams(file, lambda: zstandard.ZstdDecompressor().decompressobj())
        case ".bz2":
            return _unpack_streams(file, bz2.BZ2Decompressor, _BLOCK_OF_BZIP2)
        case ".xz":
            return _unpack_streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY_OF_XZ))
        case ".zip":
            raise FileError("unreadable", "not a readable zip archive, or an empty one")
        case _:  # a member of an archive, not compressed a second time
            return iter(lambda: file.read1(_SLICE), b"")


def _unpack_streams(file: IO[bytes], start: Callable[[], Any], some: int = _SLICE) -> Iterator[bytes]:
    """Decompress concatenated streams, which may have zero bytes between them. Raises EOFError if one is incomplete.

    A decompressor that meets damage returns nothing for the whole input of that call, so each call gets `some` bytes.
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
        raise EOFError("the last stream is incomplete")
