"""Decoding to UTF-8: the encoding is detected or checked, undecodable bytes are marked, block sizes don't matter."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conan_embedding.pipeline.ingest import files, text_encodings
from conan_embedding.pipeline.ingest.files import FileError, FileSplit
from conan_embedding.pipeline.ingest.text_encodings import BROKEN, detect, find_encoding, read_blocks, read_text
from hypothesis import example, given
from hypothesis import strategies as st
from properties import max_examples

SIMPLIFIED = "今天天气很好，我们去公园散步。人民政府发布了新的政策，经济增长稳定。\n"
TRADITIONAL = "今天天氣很好，我們去公園散步。臺灣的經濟發展與環境保護同樣重要，學習語言需要時間。\n"

Text = Callable[..., str]


@pytest.fixture
def text(tmp_path: Path) -> Text:
    """Return a function that writes these bytes to a file and reads its text."""

    def read(data: bytes, declared: str | None = None) -> str:
        (tmp_path / "a.txt").write_bytes(data)
        return read_text(f"{tmp_path}/a.txt", declared)[0]

    return read


# Which encoding


@pytest.mark.parametrize(
    ("content", "encoding", "found"),
    [
        (SIMPLIFIED, "utf-8", "utf-8"),
        (SIMPLIFIED, "utf-8-sig", "utf-8-sig"),
        (SIMPLIFIED, "gb18030", "gb18030"),
        (SIMPLIFIED + "𠀀㐀€", "gb18030", "gb18030"),  # four bytes each
        (TRADITIONAL, "big5", "big5"),
        (SIMPLIFIED, "utf-16", "utf-16"),
        ("\ufeff" + SIMPLIFIED, "utf-16-be", "utf-16"),
        (SIMPLIFIED, "utf-32", "utf-32"),
        ("\ufeff" + SIMPLIFIED, "utf-32-be", "utf-32"),
        ("plain", "ascii", "utf-8"),
        ("", "ascii", "utf-8"),
    ],
)
def test_encodings_are_found(content: str, encoding: str, found: str, text: Text) -> None:
    for times in (1, 50):
        data = (content * times).encode(encoding)
        assert find_encoding([data]) == found
        assert text(data) == text(data, encoding) == content.removeprefix("\ufeff").replace("\n\ufeff", "\n") * times


def test_a_mark_of_gb18030(text: Text) -> None:
    assert text(("\ufeff" + SIMPLIFIED).encode("gb18030")) == SIMPLIFIED


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_long_document_on_one_line(encoding: str) -> None:
    assert detect((SIMPLIFIED.strip() * 60_000).encode(encoding)) == encoding
    assert detect((" " + SIMPLIFIED.strip() * 60_000).encode(encoding)) == encoding


@pytest.mark.parametrize("name", ["GB18030", "gb2312", "GBK", "UTF8", "utf_8_sig", "UTF-16", "utf16", "U16", "hz"])
def test_names_of_encodings(name: str, text: Text) -> None:
    content = "今天天气很好，我们去公园散步。\n" * 50
    assert text(content.encode(name), name) == content


@pytest.mark.parametrize("name", ["gbk-8", "zlib", "rot13", "undefined", ""])
@pytest.mark.parametrize("data", [b"x", "甲".encode(), b""])
def test_an_unknown_encoding(name: str, data: bytes) -> None:
    with pytest.raises(FileError, match=rf"unknown encoding '{name}'; try utf-8, gb18030 or big5"):
        find_encoding([data], name)


@pytest.mark.parametrize("times", [1, 2, 50])
def test_gb18030_declared_as_utf_8(times: int) -> None:
    with pytest.raises(FileError, match=r"not utf-8 at byte 4; it looks like gb18030") as raised:
        find_encoding([b"abc\n", (SIMPLIFIED * times).encode("gb18030")], "utf-8")
    assert raised.value.reason == "encoding"


@pytest.mark.parametrize("declared", ["gb18030", "utf-16"])
def test_utf_8_declared_as_another(declared: str) -> None:
    with pytest.raises(FileError, match="it looks like utf-8"):
        find_encoding([(SIMPLIFIED * 20).encode()], declared)


@pytest.mark.parametrize("chunk", [3, 1001])
def test_long_utf_16_without_a_mark(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample, or the ASCII before it, may end within a character."""
    monkeypatch.setattr(text_encodings, "_SAMPLE", 1000)
    monkeypatch.setattr(files, "_CHUNK", chunk)
    content = "abc\n" * 1000 + SIMPLIFIED * 50
    (tmp_path / "a.txt").write_bytes(content.encode("utf-16-le"))
    assert read_text(f"{tmp_path}/a.txt", "utf-16-le") == (content, None)


# What does not decode


@pytest.mark.parametrize("declared", [None, "utf-8"])
@pytest.mark.parametrize("broken", [1, 10])
def test_broken_bytes_mark_their_lines_alone(declared: str | None, broken: int, text: Text) -> None:
    lines = [SIMPLIFIED.encode()] * 30
    for number in range(7, 7 + broken):
        lines[number] = b"ab\xff" + lines[number]
    found = text(b"".join(lines), declared).splitlines(keepends=True)
    for number in range(7, 7 + broken):
        offset = sum(map(len, lines[:number])) + 2
        assert found[number] == f"ab{BROKEN}{offset}{BROKEN}{SIMPLIFIED}"
    assert [line for line in found if line != SIMPLIFIED] == found[7 : 7 + broken]


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16"])
def test_broken_bytes_of_other_encodings(encoding: str, text: Text) -> None:
    lines = [TRADITIONAL.encode(encoding)] * 30
    if encoding == "utf-16":
        lines[1:] = [TRADITIONAL.encode("utf-16-le")] * 29
    before = b"".join(lines[:7])
    fault = b"\x00\xd8" if encoding == "utf-16" else b"\xff"  # half a character
    for declared in (None, encoding):
        found = text(before + fault + b"".join(lines[7:]), declared)
        assert found == f"{TRADITIONAL * 7}{BROKEN}{len(before)}{BROKEN}{TRADITIONAL * 23}"
    assert text(before[:-1], encoding).startswith(TRADITIONAL * 6)


def test_a_broken_byte_among_ascii_costs_its_line(text: Text) -> None:
    first, second, third = text(b"one\ntwo \xff\xfe\nthree\n", "utf-8").splitlines()
    assert (first, third) == ("one", "three")
    assert second == f"two {BROKEN}8{BROKEN}{BROKEN}9{BROKEN}"


def test_what_comes_later_makes_no_other_encoding_of_utf_8(text: Text) -> None:
    """For example, the second half of the file may have been overwritten."""
    rest = TRADITIONAL.encode("gb18030") * 100
    assert text(SIMPLIFIED.encode() + rest).startswith(SIMPLIFIED)


def test_damage_all_over_makes_no_other_encoding_of_utf_8(text: Text) -> None:
    """Most of it would decode in GB18030, too, but to other characters."""
    found = text("今天{}天气{}很好{}，\n".encode().replace(b"{}", b"\xff") * 3)
    assert found.startswith(f"今天{BROKEN}6{BROKEN}天气")


def test_marks_at_the_start_of_lines_go(text: Text) -> None:
    """Files joined from several have such marks."""
    one = "\ufeff甲\r\n".encode()
    assert text(one * 3) == "甲\n" * 3
    assert text("\ufeff甲\n\ufeff\n乙\ufeff丙\n\ufeff".encode()) == "甲\n\n乙\ufeff丙\n"


def test_lines_end_in_one_way(text: Text) -> None:
    for data in (b"a\nb\n", b"a\r\nb\r\n", b"a\rb\r"):
        assert text(data) == "a\nb\n"
    assert text(b"a\rb\nc\n") == "a\rb\nc\n"


# Blocks

characters = st.one_of(st.sampled_from("甲乙丙，。一二三ab "), st.sampled_from("\n"))
broken_lines = st.lists(st.text(characters, max_size=30), max_size=20)


@max_examples(60)
@example(content=[], encoding="utf-8", end="\n", block=1, chunk=1, faults=[(0, b"\x80")])  # a piece of one damaged byte
@given(
    content=broken_lines,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16", "utf-16-be", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n"]),
    block=st.integers(1, 100),
    chunk=st.integers(1, 50),
    faults=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=2)), max_size=2),
)
def test_blocks_of_any_size_are_one_text(
    content: list[str],
    encoding: str,
    end: str,
    block: int,
    chunk: int,
    faults: list[tuple[int, bytes]],
    tmp_path: Path,
) -> None:
    data = end.join(content).replace("\r\n", "\n").replace("\n", end).encode(encoding)
    for at, fault in faults:
        at = max(at, 4)  # after the mark
        data = data[:at] + fault + data[at:]
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    fits = _fits(path, encoding)  # two bytes without a mark may not be enough to detect it
    whole = [(one.first_line, one.text) for one in read_blocks(FileSplit(str(path)), encoding)] if fits else []
    assert len(whole) <= 1
    if fits and not faults:
        assert b"".join(part for _, part in whole).decode() == end.join(content).replace("\r\n", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encodings, "BLOCK", block)
        patch.setattr(files, "_CHUNK", chunk)
        found = list(read_blocks(FileSplit(str(path)), encoding)) if whole else []
    if b"\r" in data.replace(b"\r\n", b"") and b"\r\0" not in data and b"\0\r" not in data:
        return  # the first block decides what a carriage return means
    assert b"".join(part.text for part in found) == b"".join(part for _, part in whole)
    line = 1
    for part in found:
        assert part.first_line == line
        line += part.text.count(b"\n")
        part.text.decode()


def _fits(path: Path, encoding: str) -> bool:
    try:
        find_encoding([path.read_bytes()], encoding)
    except FileError:
        return False
    return True


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_line_without_end(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In UTF-8 it is read in pieces; in encodings where a piece could end within a character, it is too long."""
    monkeypatch.setattr(text_encodings, "LONGEST_DOCUMENT", 1000)
    monkeypatch.setattr(text_encodings, "BLOCK", 100)
    monkeypatch.setattr(files, "_CHUNK", 10)
    path = tmp_path / "a.txt"
    path.write_bytes(f"one\n{SIMPLIFIED.strip() * 100}\ntwo\n".encode(encoding))
    found: list[bytes] = []
    try:
        found += [block.text for block in read_blocks(FileSplit(str(path)), encoding)]
        reason = None
    except FileError as error:
        reason = error.reason
    assert (reason, max(map(len, found), default=0) < 200) == (
        (None, True) if encoding == "utf-8" else ("too_long", True)
    )
    with pytest.raises(FileError) as raised:
        read_text(str(path), encoding)
    assert raised.value.reason == "too_long"
