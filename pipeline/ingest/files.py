"""Read files, at paths or fsspec URIs or in archives: decompressed, within size limits, damage reported."""

import bz2
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec
import zstandard
from fsspec.implementations.local import LocalFileSystem

from ...schemas.errors import ConanError
from .archives import ARCHIVES, OFFICE, Archive, find_members, open_archive, open_member
from .file_kinds import HEAD, POINTER_SIZE, find_packing, find_pointer

UNPACKED_RATIO = 200
"""Chosen here: how many times its size a compressed file may decompress to; text rarely compresses 30-fold."""
UNPACKED_FLOOR = 256 << 20
"""Chosen here: bytes that any compressed file may decompress to, however small it is."""

_CHUNK = 1 << 20
_SLICE = 512  # compressed bytes passed to a decompressor at a time
_BLOCK_OF_BZIP2 = 32  # the same for bzip2, where two dozen bytes can encode 46 MB
_MEMORY_OF_XZ = 256 << 20  # memory limit of the xz decoder in bytes; files made by `xz -9` need 65 MB
_WINDOW_OF_ZSTD = 1 << 31  # bytes, the most there is: `zstd --long=31`; memory is taken only for text that is there
# RuntimeError: the archive needs a password; MemoryError: it declares an impossible size
_UNREADABLE = (OSError, RuntimeError, MemoryError, ValueError, ImportError, zipfile.BadZipFile, tarfile.TarError)
_CUT = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile, tarfile.TarError)


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


def stat_file(path: str) -> SourceFile:
    """Look up size and version of the file at a path or URI, following links. Raises OSError if it does not exist."""
    if "://" not in path:
        found = Path(path).stat()
        return SourceFile(path, found.st_size, f"{found.st_mtime_ns} {found.st_size} {found.st_ino}")
    filesystem, name = fsspec.core.url_to_fs(path)
    return SourceFile(path, filesystem.size(name) or 0, filesystem.ukey(name))


def is_packed(path: str) -> bool:
    """Whether a file is compressed or a member of an archive, so that it can only be read from its start.

    Raises:
        FileError: the file can't be read.
    """
    if "::" in path:
        return True
    with open_file(path) as file:
        return bool(find_packing(file.read(HEAD), path))


@contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file's raw bytes.

    Raises:
        FileError: it can't be opened, or not be read within the `with` block; it is a pipe, a device or a socket, or
            the pointer that a version control system left in its place.
    """
    with _wrap_errors():
        opened = fsspec.open(path, "rb")
        if isinstance(opened.fs, LocalFileSystem):
            _check_file(Path(opened.path))
        with opened as file:
            yield file


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # opening a folder gives the right error
        raise FileError("unreadable", "a named pipe, a device or a socket; write the data to a file first")
    if 0 < status.st_size < POINTER_SIZE and (advice := find_pointer(path.read_bytes())):
        raise FileError("unreadable", advice)


@contextmanager
def _wrap_errors() -> Iterator[None]:
    """Turn errors of file systems and archives into FileError."""
    try:
        yield
    except FileError:
        raise
    except _UNREADABLE as error:
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error


def read_chunks(split: FileSplit, enter_archives: bool = True) -> Iterator[bytes]:
    """Yield the bytes of a split, decompressed, about 1 MiB at a time.

    Args:
        enter_archives: Whether an archive that is not named as one is read as the file in it. Office files are archives
            themselves.

    Raises:
        FileError: the file can't be read, is not compressed as its name says, ends early, or decompresses to too much.
            The bytes before the fault are yielded first.
    """
    member, _, archive = split.path.rpartition("::")
    protocol, _, name = member.partition("://")
    if protocol in ARCHIVES.values():
        with _wrap_errors():
            yield from _read_member(archive, protocol, name, enter_archives)
        return
    with open_file(split.path) as file:
        if split.start or split.end is not None:  # only files that are not packed are split
            file.seek(split.start)
            yield from _read_slices(file, None if split.end is None else split.end - split.start)
            return
        packed = _CountingFile(file)
        packing = find_packing(packed.peek(HEAD), split.path)
        if packing in ARCHIVES and enter_archives:
            yield from _read_only_member(split.path, ARCHIVES[packing])
        elif packing and packing not in ARCHIVES:
            yield from _check_growth(_unpack(packed, packing), lambda: packed.taken)
        else:
            yield from _read_slices(packed, None)


def _read_only_member(path: str, protocol: str) -> Iterator[bytes]:
    """Read an archive that is not named as one, or can't be listed."""
    archive, _ = _open_archive(path, stat_file(path).version, protocol)
    names = [name for name, *_ in find_members(archive)]
    if OFFICE in names:
        raise FileError("unreadable", "an Office file (Excel, Word …): save it as CSV or text")
    if len(names) != 1:
        raise FileError(
            "unreadable", f"a {protocol} archive of {len(names):,} files, whose name must end in .{protocol}"
        )
    yield from _read_member(path, protocol, names[0])


def _read_member(path: str, protocol: str, name: str, enter_archives: bool = True) -> Iterator[bytes]:
    archive, packed = _open_archive(path, stat_file(path).version, protocol)
    before = packed.taken
    try:
        member = open_member(archive, name, _SLICE)
    except KeyError as error:
        raise FileError("unreadable", f"{path} no longer contains {name}") from error
    with member:
        yield from _check_growth(
            _unpack_member(_CountingFile(member), name, enter_archives), lambda: packed.taken - before
        )


def _unpack_member(inside: "_CountingFile", name: str, enter_archives: bool) -> Iterator[bytes]:
    packing = find_packing(inside.peek(HEAD), name)
    if packing in ARCHIVES and enter_archives:
        raise FileError("unreadable", "an archive within an archive: unpack the outer one")
    yield from _unpack(inside, packing)


@lru_cache(maxsize=1)
def _open_archive(path: str, version: str, protocol: str) -> tuple[Archive, "_CountingFile"]:
    """Open an archive and keep it open: its directory, with thousands of members, takes as long to read as a member."""
    packed = _CountingFile(fsspec.open(path, "rb").open())
    return open_archive(packed, protocol), packed


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


def _read_slices(file: Any, left: int | None) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        yield chunk
        left = None if left is None else left - len(chunk)


class _CountingFile:
    """Wraps a file, counts the bytes read from it, and can look ahead before the first is read."""

    def __init__(self, file: Any) -> None:
        self.file, self.taken, self.ahead = file, 0, b""

    def peek(self, size: int) -> bytes:
        """Return the first bytes, fewer than `size` only if the file has no more; `read` will return them again."""
        self.ahead = self.file.read(size)
        return self.ahead

    def read(self, size: int = -1) -> bytes:
        data, self.ahead = (self.ahead[:size], self.ahead[size:]) if self.ahead else (self.file.read(size), b"")
        self.taken += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _unpack(file: Any, packing: str) -> Iterator[bytes]:
    match packing:
        case ".gz":
            return _unpack_streams(file, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16))
        case ".zst":
            decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_OF_ZSTD)
            return _unpack_streams(file, decompressor.decompressobj)
        case ".bz2":
            return _unpack_streams(file, bz2.BZ2Decompressor, _BLOCK_OF_BZIP2)
        case ".xz" | ".lzma":
            kind = lzma.FORMAT_XZ if packing == ".xz" else lzma.FORMAT_ALONE
            return _unpack_streams(file, lambda: lzma.LZMADecompressor(kind, _MEMORY_OF_XZ))
        case _:  # a member of an archive, not compressed a second time
            return iter(lambda: file.read(_SLICE), b"")


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
