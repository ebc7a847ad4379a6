"""Decode files in any encoding to blocks of UTF-8, so that a file of any size takes little memory."""

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath

import fsspec
import numpy as np
import numpy.typing as npt

from . import charsets
from .charsets import (
    CHINESE,
    DAMAGED_SHARE,
    SAMPLE,
    find_codec,
    find_fault,
    find_utf_16,
    is_surely_utf_8,
    is_utf_8,
    judge,
    measure_damage,
    rescue,
)
from .file_kinds import find_format
from .files import FileError, FileSplit, read_chunks, stat_file

BROKEN = "\U0010ffff"
"""A noncharacter, which text should not contain; put before and after what stands for undecodable bytes."""

BROKEN_BYTES = f"{BROKEN}(\\d+) ([\\w-]+) ([0-9a-f]*){BROKEN}"
"""The pattern of the mark in place of undecodable bytes: offset, encoding, and the bytes in hexadecimal."""

BLOCK = 8 << 20
"""Chosen here: bytes of a file that are decoded together."""

_FIRST_SHARE = 8
"""Chosen here: a file's first block is this many times smaller, since often only the beginning is looked at."""

LONGEST_DOCUMENT = 128 << 20
"""Chosen here: the most bytes of a document that is held in memory as a whole."""

_NEIGHBOURS = 50  # files by which a short one is decided; more would not change a majority
_MOST_OF_A_NEIGHBOUR = 1 << 16  # bytes
_DETECTED = ("utf-8", "gb18030", "big5", "utf-16-le", "utf-16-be")
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_MARK = "\ufeff".encode()
_MARKS_AT_STARTS = re.compile(b"(?m)^(?:%b)+" % _MARK)
_RETURNS = re.compile(rb"\r+\n")
_END_OF_DOS = b"\x1a"  # Ctrl-Z
_OTHER = "neither UTF-8, GB18030 nor Big5; it looks like {0}: declare it with `encoding: {0}`"
_SHIFTED = {b"B": "iso-2022-jp", b"@": "iso-2022-jp", b")C": "iso-2022-kr"}
_SHIFTS = re.compile(rb"\x1b\$(B|@|\)C)")
"""The shifts by which the codes of 7 bits (ISO 2022) begin their own characters; all else in them is ASCII."""


@dataclass(frozen=True)
class Block:
    """Whole lines of a file as UTF-8, ending in \\n, or a piece of a line that is longer than a block."""

    text: bytes
    first_line: int

    @cached_property
    def breaks(self) -> npt.NDArray[np.int64]:
        """The offsets of the line feeds."""
        return np.flatnonzero(np.frombuffer(self.text, np.uint8) == 0x0A)


def read_blocks(split: FileSplit, declared: str | None = None, quote: str = "") -> Iterator[Block]:
    """Decode a split to blocks; undecodable bytes are replaced by marks, BROKEN_BYTES.

    Lines end in LF, CR LF or CR CR LF, or in CR if no line ends otherwise. Byte order marks are dropped at the start of
    every line, since files joined from several have more than one, and so is the Ctrl-Z with which DOS ends a file.

    Args:
        quote: What stands around fields that may contain line breaks; these don't tell how lines end.

    Raises:
        FileError: see files.read_chunks; or the text is not in the declared encoding. What came before is yielded
            first.
    """
    encoding = split.encoding or find_encoding(read_chunks(FileSplit(split.path)), declared, split.path)
    encoding = encoding.removesuffix("-sig")
    chunks = read_chunks(split)
    if encoding.startswith(("utf-16", "utf-32")):  # a line feed is more than one byte there
        chunks, encoding = _transcode(chunks, encoding), "utf-8"
    line, before = split.first_line, b"\n"
    carriage_returns = False if split.start or split.end is not None else None  # a file that was split has line feeds
    for offset, data in _cut_pieces(chunks, encoding, split.start):
        text = decode(data, encoding, offset)
        if carriage_returns is None:  # carriage returns end lines only in a file without line feeds
            carriage_returns = b"\r" in text and _ends_lines_in_carriage_returns(text, quote.encode())
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
            text = _RETURNS.sub(b"\n", text) if b"\r\n" in text else text
            text = text.replace(b"\r", b"\n") if carriage_returns else text
        block = Block(text, line)
        if _may_have_marks(block):
            block = Block(_MARKS_AT_STARTS.sub(b"", before + text)[1:], line)
        yield block
        line += len(block.breaks)
        before = block.text[-1:] or before


def _ends_lines_in_carriage_returns(text: bytes, quote: bytes) -> bool:
    """Whether lines end in CR alone: there is no line feed outside of quotes, except at the end."""
    outside = b"".join(text.split(quote)[::2]) if quote else text
    return b"\n" not in outside.rstrip(b"\n")


def _may_have_marks(block: Block) -> bool:
    """Whether any line begins as a byte order mark does; five times as fast as a search for the mark."""
    starts = block.breaks[block.breaks < len(block.text) - 1] + 1
    return block.text[:1] == _MARK[:1] or bool((np.frombuffer(block.text, np.uint8)[starts] == _MARK[0]).any())


def read_text(path: str, declared: str | None = None) -> tuple[str, str | None]:
    """Return the whole text of a file, and the error that cut it short (None if nothing did).

    Raises:
        FileError: the text is longer than LONGEST_DOCUMENT; or see read_blocks.
    """
    parts: list[bytes] = []
    try:
        for block in read_blocks(FileSplit(path), declared):
            parts.append(block.text)
            if sum(map(len, parts)) > LONGEST_DOCUMENT:
                break
    except FileError as error:
        if not parts or error.reason != "truncated":
            raise
        return b"".join(parts).decode(), error.detail
    if sum(map(len, parts)) > LONGEST_DOCUMENT:
        raise FileError("too_long", f"more than {LONGEST_DOCUMENT:,} bytes in one document")
    return b"".join(parts).decode(), None


def _cut_pieces(chunks: Iterable[bytes], encoding: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield pieces and their offsets. A piece ends where a line does or, in UTF-8, at least where a character does."""
    parts: list[bytes] = []
    size, enough = 0, BLOCK // _FIRST_SHARE
    damage: FileError | None = None
    try:
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size < enough:
                continue
            if enough < BLOCK and not _are_lines_plain(parts):
                enough = BLOCK
                if size < enough:
                    continue
            data, rest = _cut(parts, encoding)
            if data:
                yield offset, data
                offset += len(data)
            elif size > LONGEST_DOCUMENT:
                raise FileError("too_long", f"a line of more than {LONGEST_DOCUMENT:,} bytes")
            parts, size = [rest], len(rest)
            enough = max(min(2 * enough, BLOCK), 2 * size)
    except FileError as error:
        damage = error
    if rest := _drop_end_of_dos(b"".join(parts)):
        yield offset, rest
    if damage:
        raise damage


def _drop_end_of_dos(text: bytes) -> bytes:
    before = text.rstrip(b"\r\n")
    return before.rstrip(_END_OF_DOS) if before.endswith(_END_OF_DOS) else text


def _are_lines_plain(parts: Sequence[bytes]) -> bool:
    """Whether it is clear, without more of the file, that lines end in LF."""
    return any(b"\n" in part for part in parts) and not any(b"\r" in part for part in parts)


def _cut(parts: Sequence[bytes], encoding: str) -> tuple[bytes, bytes]:
    """Join parts of a file; return all whole lines or, in UTF-8, at least whole characters, and the rest."""
    *before, last = parts
    if cut := last.rfind(b"\n") + 1:  # nearly always: each byte is copied only once
        return b"".join([*before, last[:cut]]), last[cut:]
    data = b"".join(parts)
    cut = data.rfind(b"\n") + 1 or (_find_last_character(data) if encoding.startswith("utf-8") else 0)
    return data[:cut], data[cut:]


def _find_last_character(data: bytes) -> int:
    """Find where the last UTF-8 character, which may be incomplete, begins."""
    end = len(data) - 1
    while end > max(len(data) - 4, 0) and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _transcode(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Convert chunks, which may end within a character, to UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)("conan.mark")
    offset = 0
    damage: FileError | None = None
    try:
        for chunk in chunks:
            _mark_offsets_from(offset - len(decoder.getstate()[0]))
            yield decoder.decode(chunk).encode()
            offset += len(chunk)
        _mark_offsets_from(offset - len(decoder.getstate()[0]))
    except FileError as error:
        damage = error
    except UnicodeError as error:
        raise FileError("encoding", f"{error}; declare utf-16-le or utf-16-be") from error
    yield decoder.decode(b"", final=True).encode()
    if damage:
        raise damage


def decode(data: bytes, encoding: str, offset: int) -> bytes:
    """Convert bytes at `offset` of a file to UTF-8; undecodable ones become BROKEN_BYTES."""
    if encoding == "utf-8" and is_utf_8(data):
        return data
    _mark_offsets_from(offset)
    return charsets.decode(data, encoding, "conan.mark").encode()


def restore_bytes(text: str) -> bytes:
    """Return the bytes from which a text with BROKEN_BYTES was decoded; in UTF-16 and UTF-32, all the rest as UTF-8."""
    parts = re.split(BROKEN_BYTES, text)
    encoding = parts[2] if len(parts) > 1 and not parts[2].startswith("utf-") else "utf-8"
    restored = [_encode(part, encoding) if number % 4 == 0 else b"" for number, part in enumerate(parts)]
    restored[3::4] = [bytes.fromhex(lost) for lost in parts[3::4]]
    return b"".join(restored)


def _encode(text: str, encoding: str) -> bytes:
    """Encode a text; characters that only another codec of the same encoding knows, by that, and others as UTF-8."""
    codecs_of = (encoding, "big5hkscs", "cp950") if encoding.startswith(("big5", "cp950")) else (encoding,)
    for codec in codecs_of:
        with suppress(UnicodeError, TypeError):  # Python's multi-byte codecs raise either
            return text.encode(codec)
    return text.encode() if len(text) == 1 else b"".join(_encode(character, encoding) for character in text)


def _mark_offsets_from(offset: int) -> None:
    """Register "conan.mark", an error handler that writes BROKEN_BYTES; `offset` is where the data begins."""

    def mark(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        lost = error.object[error.start : error.end].hex()
        return rescue(error) or (f"{BROKEN}{offset + error.start} {error.encoding} {lost}{BROKEN}", error.end)

    codecs.register_error("conan.mark", mark)


def find_encoding(chunks: Iterable[bytes], declared: str | None = None, path: str | None = None) -> str:
    """Check the declared encoding of a file, or detect it, from the first megabytes that are not ASCII.

    Args:
        path: Where the file is. If it is too short to be sure, the files next to it decide.

    Raises:
        FileError: the file is not text; the declared encoding is unknown, or another fits better (names the offset
            where it first fails); or none is declared, and the text is in one of another language.
    """
    begin, sample, offset = b"", b"", 0
    try:
        for chunk in chunks:
            if not begin and (advice := find_format(chunk)):
                raise FileError("unreadable", advice)
            if not begin and not declared and (shift := _SHIFTS.search(chunk)):
                raise FileError("encoding", _OTHER.format(_SHIFTED[shift[1]]))
            begin = (begin + chunk)[:4]
            if not sample and chunk.isascii() and b"\0" not in chunk:
                offset += len(chunk)
                continue
            sample += chunk
            if len(sample) >= SAMPLE:
                sample = sample[:SAMPLE]
                sample = sample[: sample.rfind(b"\n") + 1 or _find_last_character(sample)]
                break
    except FileError:
        if not begin:
            raise
    marked = next((encoding for mark, encoding in _MARKS if begin.startswith(mark)), None)
    if declared is not None:
        return _check_declared(sample, declared, offset, marked)
    return marked or _choose_encoding(sample, path)


def _choose_encoding(sample: bytes, path: str | None) -> str:
    encoding, is_clear = judge(sample)
    if path and not is_clear:
        votes = _ask_neighbours(path).most_common()
        encoding = next((vote for vote, _ in votes if find_fault(sample, vote) is None), encoding)
    if encoding not in _DETECTED:
        raise FileError("encoding", _OTHER.format(encoding))
    return encoding


def _ask_neighbours(path: str) -> Counter[str]:
    """Count the encodings of the files in a file's folder, or archive, whose names end like its own."""
    member, colons, archive = path.partition("::")
    folder, slash, name = member.rpartition("/")
    try:
        version = stat_file(archive or folder or ".").version
        return _count_encodings(folder + slash, PurePosixPath(name).suffix, colons + archive, version)
    except OSError:
        return Counter()


@lru_cache(maxsize=64)
def _count_encodings(folder: str, suffix: str, archive: str, version: str) -> Counter[str]:
    """Count the encodings of a folder's files that are long enough to be sure; `version` changes with the folder."""
    filesystem, inner = fsspec.core.url_to_fs(f"{folder}x{archive}")
    names = sorted(name.rpartition("/")[2] for name in filesystem.ls(inner.rpartition("/")[0], detail=False))
    votes: Counter[str] = Counter()
    for name in [name for name in names if name.endswith(suffix)][:_NEIGHBOURS]:
        try:
            sample = next(read_chunks(FileSplit(f"{folder}{name}{archive}")), b"")[:_MOST_OF_A_NEIGHBOUR]
        except FileError:
            continue
        encoding, is_clear = judge(sample)
        if is_clear and not sample.isascii():
            votes[encoding] += 1
    return votes


def _check_declared(sample: bytes, declared: str, offset: int, marked: str | None) -> str:
    encoding = find_codec(declared)
    try:
        (sample or b" ").decode(encoding or "", "replace")  # fails for a codec that does not decode to text
    except (LookupError, ValueError) as error:
        raise FileError("encoding", f"unknown encoding {declared!r}; try utf-8, gb18030 or big5") from error
    assert encoding
    if encoding == "utf-16" and not marked and (found := find_utf_16(sample)):
        return found
    _check_encoding(sample, encoding, offset)
    return encoding


def _check_encoding(sample: bytes, encoding: str, offset: int) -> None:
    """Raise FileError if another encoding fits better than the declared one; a few broken bytes don't matter."""
    if encoding.startswith(("utf-16", "utf-32")):  # the sample may begin or end within a character
        if b"\0" not in sample and find_fault(sample, "utf-8") is None:
            raise FileError("encoding", f"not {encoding}; it looks like utf-8")
        return
    if not encoding.startswith("utf-8") and is_surely_utf_8(sample):
        raise FileError("encoding", f"not {encoding}; it looks like utf-8")
    fault = find_fault(sample, encoding)
    if fault is None and encoding not in CHINESE:
        return
    likely, is_clear = judge(sample)
    if fault is None:
        if is_clear and likely in CHINESE and likely != encoding:  # many bytes are valid in both
            raise FileError("encoding", f"not {encoding}; it looks like {likely}")
        return
    damage, other = (measure_damage(sample.decode(one, "replace")) for one in (encoding, likely))
    if other < damage and (damage > DAMAGED_SHARE or likely == "utf-8"):
        raise FileError("encoding", f"not {encoding} at byte {offset + fault:,}; it looks like {likely}")
