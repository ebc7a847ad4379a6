"""From a glob to decoded text: listing, decompression, encodings. Damage is marked, never hidden."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import charset_normalizer
import fsspec
import zstandard

BROKEN = "\U0010ffff"
"""Put around the byte offset of what could not be decoded; no text holds this noncharacter of its own right."""

DAMAGED_SHARE = 0.1
"""Ours: with more than this share undecodable (of non-ASCII lines, or characters) the encoding is another."""

_CHUNK = 1 << 20


class FileError(ValueError):
    """A file that can't be read at all; `reason` is one word for the rejects."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `version` changes when the file does."""

    path: str
    size: int
    version: str


def list_files(globs: Sequence[str], exclude: Sequence[str] = ()) -> list[SourceFile]:
    """The files that match any of the globs (paths or fsspec URIs) and none of `exclude`, sorted by path.

    What can't be read (a link to nothing, a folder that is named as a file) is listed too: reading it tells why.
    """
    left_out = {path for pattern in exclude for path in _expand(pattern)}
    found = {path: file for pattern in globs for path, file in _expand(pattern).items() if path not in left_out}
    return [found[path] for path in sorted(found)]


def _expand(pattern: str) -> dict[str, SourceFile]:
    filesystem, path = fsspec.core.url_to_fs(pattern)
    names = filesystem.glob(path) if any(mark in path for mark in "*?[") else []
    if not names and filesystem.lexists(path):
        names = [path]
    folders_too = "." in path.rpartition("/")[2]
    files = {}
    for name in names:
        try:
            info, version = filesystem.info(name), filesystem.ukey(name)
        except OSError:
            info, version = {"type": "link", "size": 0}, "unreadable"
        if info["type"] != "directory" or folders_too:
            uri = filesystem.unstrip_protocol(name).removeprefix("file://")
            files[name] = SourceFile(uri, info["size"] or 0, version)
    return files


def read_text(path: str, declared: str | None = None) -> tuple[str, str, str | None]:
    """A file's text (lines end in \\n), its encoding, and what cut it short (None where it is whole).

    A compressed file that breaks off yields what came before the break. Lines that don't decode hold the marker BROKEN
    around their byte offset.

    Raises:
        FileError: unreadable, not the compression its ending says, not in the declared encoding.
    """
    try:
        with fsspec.open(path, "rb") as file:
            data, problem = _decompress(file, path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: an archive with a password
        raise FileError("unreadable", f"{type(error).__name__}: {error}") from error
    if problem and not data:
        raise FileError("truncated", problem)
    text, encoding = decode(data, declared)
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n"), encoding, problem


def _decompress(file: IO[bytes], path: str) -> tuple[bytes, str | None]:
    ending = PurePosixPath(path).suffix.lower()
    stream: Any
    if ending == ".gz":
        stream = gzip.GzipFile(fileobj=file)
    elif ending == ".zst":
        stream = _ZstdFile(file)
    elif ending == ".bz2":
        stream = bz2.BZ2File(file)
    elif ending == ".xz":
        stream = lzma.LZMAFile(file)  # noqa: SIM115
    elif ending == ".zip":
        archive = zipfile.ZipFile(file)
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise FileError("unreadable", f"expected one file in the archive, found {len(members)}")
        stream = archive.open(members[0])
    else:
        return file.read(), None
    parts = []
    try:
        while part := stream.read1(_CHUNK):  # `read` would lose what it has when it comes to the break
            parts.append(part)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile) as error:
        return b"".join(parts), f"breaks off after {sum(map(len, parts)):,} bytes: {error}"
    return b"".join(parts), None


class _ZstdFile:
    """Zstandard frames one after the other; unlike the library's own reader it tells a frame that breaks off."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.frame: Any = None
        self.rest = b""

    def read1(self, size: int) -> bytes:
        while packed := self.rest or self.file.read(size):
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            unpacked: bytes = self.frame.decompress(packed)
            self.rest = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
            if unpacked:
                return unpacked
        if self.frame is not None:
            raise EOFError("the last frame is not whole")
        return b""


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """Text and encoding of a file's bytes; without a byte order mark.

    Raises:
        FileError: too many lines are not in the declared encoding; names the first offset and a likelier encoding.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark) and declared is None:
            declared = encoding
    encoding = declared or detect(data)
    try:
        return data.decode(encoding).removeprefix("\ufeff"), encoding
    except LookupError as error:
        raise FileError("encoding", f"unknown encoding {encoding!r}; try utf-8, gb18030 or big5") from error
    except UnicodeDecodeError as error:
        lines = data.split(b"\n")
        foreign = sum(not line.isascii() for line in lines)
        text, broken = _decode_lines(lines, encoding)
        likely = detect(data)
        flawless = likely != encoding and not _damage(data.decode(likely, "replace"))
        if broken > DAMAGED_SHARE * foreign + 1 or flawless or encoding.startswith("utf-16"):
            hint = f"; it looks like {likely}" if likely != encoding else ""
            raise FileError("encoding", f"not {encoding} at byte {error.start:,}{hint}") from error
        return text.removeprefix("\ufeff"), encoding


def _decode_lines(lines: list[bytes], encoding: str) -> tuple[str, int]:
    decoded, offset, broken = [], 0, 0
    for line in lines:
        try:
            decoded.append(line.decode(encoding))
        except UnicodeDecodeError as error:
            broken += 1
            position = offset + error.start
            decoded.append(f"{BROKEN}{position}{BROKEN}" + line.decode(encoding, errors="replace"))
        offset += len(line) + 1
    return "\n".join(decoded), broken


def detect(data: bytes) -> str:
    """The encoding of Chinese text: UTF-8 where it fits, else the likelier of GB18030 and Big5."""
    head = data[: 4 * _CHUNK]
    damage = {encoding: _damage(head.decode(encoding, "replace")) for encoding in ("utf-8", "gb18030", "big5")}
    if damage["utf-8"] <= max(DAMAGED_SHARE, min(damage.values())):
        return "utf-8"
    if damage["gb18030"] == damage["big5"]:
        best = charset_normalizer.from_bytes(head[:65_536], cp_isolation=["gb18030", "big5"]).best()
        return best.encoding if best else "gb18030"
    return "gb18030" if damage["gb18030"] < damage["big5"] else "big5"


def _damage(text: str) -> float:
    """The share of replacement characters in a text's non-ASCII characters."""
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    return text.count("\ufffd") / foreign if foreign else 0.0
