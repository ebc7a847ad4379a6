"""Decode files in any encoding to blocks of UTF-8, so that a file of any size takes little memory."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import charset_normalizer

from .files import FileError, FileSplit, read_chunks

BROKEN = "\U0010ffff"
"""Put before and after the byte offset of undecodable bytes: a noncharacter, which text should not contain."""

DAMAGED_SHARE = 0.1
"""Chosen here: an encoding in which more than this share of the non-ASCII characters is undecodable is wrong."""

BLOCK = 4 << 20
"""Chosen here: bytes of a file that are decoded together."""

LONGEST_DOCUMENT = 128 << 20
"""Chosen here: the most bytes of a document that is held in memory as a whole."""

_SAMPLE = 4 << 20
_COMMON = re.compile(
    "[的一是不了在有人我他這这個个們们中來来上大為为和國国地到以說说時时要就出會会可也你對对生能而子那得於于着下自之年過过發发後后"
    "作里用道行所然家種种事成方多經经麼么去法學学如都同現现當当沒没動动面起看定天分還还進进好小部其些主樣样理心本前開开但因從从想實实"
    "，。、？！：]"
)
_CLEARLY = 5  # lead in common characters that decides; each of 300 Chinese texts of 50 characters had it
_CERTAIN = 16  # characters valid in UTF-8; 56,000 Chinese texts began with at most 7 by chance in GB18030, 2 in Big5
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_MARK = "\ufeff".encode()


@dataclass(frozen=True)
class Block:
    """Whole lines of a file as UTF-8, ending in \\n, or a piece of a line that is longer than a block."""

    text: bytes
    first_line: int


def read_blocks(split: FileSplit, declared: str | None = None) -> Iterator[Block]:
    """Decode a split to blocks; undecodable bytes are replaced by their offset between two BROKEN.

    A byte order mark is dropped at the start of every line, since files joined from several have more than one.

    Raises:
        FileError: see files.read_chunks; or the text is not in the declared encoding. What came before is yielded
            first.
    """
    encoding = split.encoding or find_encoding(read_chunks(FileSplit(split.path)), declared)
    encoding = encoding.removesuffix("-sig")
    chunks = read_chunks(split)
    if encoding.startswith(("utf-16", "utf-32")):  # a line feed is more than one byte there
        chunks, encoding = _transcode(chunks, encoding), "utf-8"
    line, before = split.first_line, b"\n"
    carriage_returns = False if split.start else None  # a file that was split has line feeds
    for offset, data in _cut_pieces(chunks, encoding, split.start):
        text = decode(data, encoding, offset)
        if carriage_returns is None:  # carriage returns end lines only in a file without line feeds
            carriage_returns = b"\r" in text and b"\n" not in text
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
            text = text.replace(b"\r", b"\n") if carriage_returns else text
        if _MARK in text:
            text = (before + text).replace(b"\n" + _MARK, b"\n")[1:]
        yield Block(text, line)
        line += text.count(b"\n")
        before = text[-1:] or before


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
    size, enough = 0, BLOCK
    damage: FileError | None = None
    try:
        for chunk in chunks:
            parts.append(chunk)
            size += len(chunk)
            if size < enough:
                continue
            data = b"".join(parts)
            cut = data.rfind(b"\n") + 1 or (_find_last_character(data) if encoding.startswith("utf-8") else 0)
            if cut:
                yield offset, data[:cut]
                offset += cut
            elif size > LONGEST_DOCUMENT:
                raise FileError("too_long", f"a line of more than {LONGEST_DOCUMENT:,} bytes")
            parts, size = [data[cut:]], size - cut
            enough = max(BLOCK, 2 * size)
    except FileError as error:
        damage = error
    if size:
        yield offset, b"".join(parts)
    if damage:
        raise damage


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
    """Convert bytes at `offset` of a file to UTF-8; undecodable ones become their offset between two BROKEN."""
    if encoding == "utf-8":
        try:
            data.decode()
        except UnicodeDecodeError:
            pass
        else:
            return data

    _mark_offsets_from(offset)
    return data.decode(encoding, "conan.mark").encode()


def _mark_offsets_from(offset: int) -> None:
    """Register "conan.mark", an error handler that writes offsets in the file; `offset` is where the data begins."""

    def mark(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        return f"{BROKEN}{offset + error.start}{BROKEN}", error.end

    codecs.register_error("conan.mark", mark)


def find_encoding(chunks: Iterable[bytes], declared: str | None = None) -> str:
    """Check the declared encoding of a file, or detect it, from the first megabytes that are not ASCII.

    Raises:
        FileError: the declared encoding is unknown, or another fits better; names the offset where it first fails.
    """
    begin, sample, offset = b"", b"", 0
    try:
        for chunk in chunks:
            begin = (begin + chunk)[:4]
            if not sample and chunk.isascii():
                offset += len(chunk)
                continue
            sample += chunk
            if len(sample) >= _SAMPLE:
                sample = sample[: sample.rfind(b"\n") + 1 or _find_last_character(sample)]
                break
    except FileError:
        if not begin:
            raise
    if declared is None:
        marked = (encoding for mark, encoding in _MARKS if begin.startswith(mark))
        return next(marked, None) or detect(sample)
    try:
        encoding = codecs.lookup(declared).name  # normalised: UTF-16 becomes utf-16
        (sample or b" ").decode(encoding, "replace")  # fails for a codec that does not decode to text
    except (LookupError, ValueError) as error:
        raise FileError("encoding", f"unknown encoding {declared!r}; try utf-8, gb18030 or big5") from error
    _check_encoding(sample, encoding, offset)
    return encoding


def _check_encoding(sample: bytes, encoding: str, offset: int) -> None:
    """Raise FileError if another encoding fits better than the declared one; a few broken bytes don't matter."""
    if encoding.startswith(("utf-16", "utf-32")):  # the sample may begin or end within a character
        if b"\0" not in sample and _is_text(sample, "utf-8"):
            raise FileError("encoding", f"not {encoding}; it looks like utf-8")
        return
    try:
        sample.decode(encoding)
    except UnicodeDecodeError as error:
        first = offset + error.start
    else:
        return
    likely = detect(sample)
    damage, other = (_measure_damage(sample.decode(one, "replace")) for one in (encoding, likely))
    if other < damage and (damage > DAMAGED_SHARE or likely == "utf-8"):
        raise FileError("encoding", f"not {encoding} at byte {first:,}; it looks like {likely}")


def _is_text(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def detect(data: bytes) -> str:
    """Detect the encoding of Chinese text: UTF-8 if it fits, else the likelier of GB18030 and Big5."""
    head = data[:_SAMPLE]
    damage = {encoding: _measure_damage(head.decode(encoding, "replace")) for encoding in ("utf-8", "gb18030", "big5")}
    if damage["utf-8"] <= max(DAMAGED_SHARE, min(damage.values())) or _begins_as_utf_8(head):
        return "utf-8"
    few = head[:65_536]
    common = {encoding: len(_COMMON.findall(few.decode(encoding, "replace"))) for encoding in damage}
    likely, next_likely = sorted(common, key=common.__getitem__, reverse=True)[:2]
    if common[likely] - common[next_likely] >= _CLEARLY:  # bytes broken in one encoding may be valid in another
        return likely
    if damage["gb18030"] == damage["big5"]:
        best = charset_normalizer.from_bytes(few, cp_isolation=["gb18030", "big5"]).best()
        return best.encoding if best else "gb18030"
    return "gb18030" if damage["gb18030"] < damage["big5"] else "big5"


def _begins_as_utf_8(data: bytes) -> bool:
    """Whether more characters before the first fault are valid UTF-8 than chance explains."""
    try:
        begin = data.decode()
    except UnicodeDecodeError as error:
        begin = data[: error.start].decode()
    return len(begin) - len(begin.encode("ascii", "ignore")) >= _CERTAIN


def _measure_damage(text: str) -> float:
    """Compute the share of replacement characters among a text's non-ASCII characters."""
    foreign = len(text) - len(text.encode("ascii", "ignore"))
    return text.count("\ufffd") / foreign if foreign else 0.0
