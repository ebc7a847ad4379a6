"""Decoding to UTF-8: the encoding is detected or checked, undecodable bytes are marked, block sizes don't matter."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conan_embedding.pipeline.ingest import files, text_encodings
from conan_embedding.pipeline.ingest.charsets import detect
from conan_embedding.pipeline.ingest.files import FileError, FileSplit
from conan_embedding.pipeline.ingest.text_encodings import (
    BROKEN,
    find_encoding,
    is_utf_8,
    read_blocks,
    read_text,
    restore_bytes,
)
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


@pytest.mark.parametrize(
    ("names", "data", "content"),
    [
        ("gb2312 gbk cp936 936 ms936 gb18030 GB18030-2000 euc-cn", b"\xd6\xec\xe9\x46\xbb\xf9\x80", "朱镕基€"),
        ("big5 big5-tw cp950 950 ms950 big5-hkscs big5hkscs", b"\xf9\xda\xa5\xcd\xf9\xd8\xc8\x7e\xa3\xe1", "恒生裏䒑€"),
        ("cp950 big5 big5hkscs", b"\xa1\x45\xa1\x4e\xa1\xe3\xa2\x44\xc6\xa1\xc6\xe7", "‧﹑～￥①ぁ"),  # as browsers
        ("latin-1 iso-8859-1 cp1252 windows-1252", b"don\x92t caf\xe9", "don’t café"),
        ("shift_jis sjis cp932 ms932", b"\x87\x40\x93\xfa", "①日"),
        ("euc-kr cp949 uhc ks_c-5601-1987", b"\xb0\xa1\x8c\x63", "가똠"),
    ],
)
def test_declared_encodings_are_read_as_their_supersets(names: str, data: bytes, content: str, text: Text) -> None:
    for name in names.split():
        assert text(data, name) == content


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
    monkeypatch.setattr(text_encodings, "SAMPLE", 1000)
    monkeypatch.setattr(files, "_CHUNK", chunk)
    content = "abc\n" * 1000 + SIMPLIFIED * 50
    (tmp_path / "a.txt").write_bytes(content.encode("utf-16-le"))
    assert read_text(f"{tmp_path}/a.txt", "utf-16-le") == (content, None)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("content", [SIMPLIFIED, TRADITIONAL, "query,positive\r\n一,二\r\n", "plain text\n", "中\n"])
def test_utf_16_without_a_mark(content: str, encoding: str, text: Text) -> None:
    assert text(content.encode(encoding)) == text(content.encode(encoding), "utf-16") == content.replace("\r", "")


@pytest.mark.parametrize("data", [b"a\0,b\n1,2\n", b"hello\0 world\n", b"abc" * 10 + b"\0" * 100, "中\0文\n".encode()])
def test_zero_bytes_make_no_utf_16(data: bytes, text: Text) -> None:
    assert text(data) == data.decode()


JAPANESE = "日本語の文章を保存すると、読み込み器は文字化けを起こすことがあります。今日は公園を散歩しました。\n"
KOREAN = "한국어 문장을 저장하면 중국어 판독기가 글자를 잘못 읽을 수 있습니다. 오늘은 공원을 산책했습니다.\n"
RUSSIAN = "Сегодня очень хорошая погода, и мы пошли гулять в парк, где живёт много птиц и белок.\n"
FRENCH = "Aujourd’hui, il fait très beau et nous sommes allés à la forêt. La ville compte déjà près d’un million.\n"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "iso-2022-jp"),
        (KOREAN, "iso-2022-kr"),
        (KOREAN, "cp949"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (FRENCH, "cp1252"),
    ],
)
def test_other_languages_are_told_and_not_misread(content: str, encoding: str, text: Text) -> None:
    for times in (1, 50):
        data = (content * times).encode(encoding)
        with pytest.raises(
            FileError, match=rf"nor Big5; it looks like {encoding}: declare it with `encoding: {encoding}`"
        ):
            find_encoding([data])
        assert text(data, encoding) == content * times
    assert find_encoding([content.encode()]) == "utf-8"


def test_a_little_of_another_language_costs_its_lines(text: Text) -> None:
    assert text(b"one\ndon\x92t\ntwo\n") == f"one\ndon{BROKEN}7 utf-8 92{BROKEN}t\ntwo\n"


def test_one_chinese_encoding_declared_as_the_other() -> None:
    """Such bytes may be valid in both."""
    with pytest.raises(FileError, match="not gb18030; it looks like big5"):
        find_encoding([TRADITIONAL.encode("big5")], "gbk")
    with pytest.raises(FileError, match="not big5 at byte 18; it looks like gb18030"):
        find_encoding([SIMPLIFIED.encode("gbk")], "big5")
    assert find_encoding(["你好".encode("big5")], "gbk") == "gb18030"  # too short to know better


def test_utf_8_declared_as_an_encoding_in_which_any_bytes_are_text() -> None:
    for declared in ("latin-1", "cp1252", "koi8-r", "gb18030"):
        with pytest.raises(FileError, match="it looks like utf-8"):
            find_encoding([(SIMPLIFIED * 20).encode()], declared)


@pytest.mark.parametrize("packed", [False, True])
def test_short_files_are_decided_by_their_folder(packed: bool, tmp_path: Path) -> None:
    """These bytes are 一 in GB18030, һ in UTF-8 and 珨 in Big5."""
    short = "一".encode("gbk")
    files = {"a/short.txt": short, "a/long.txt": (SIMPLIFIED * 9).encode("gbk"), "a/plain.txt": b"plain"}
    files |= {"a/other.csv": (TRADITIONAL * 9).encode("big5"), "b/short.txt": short, "c/short.txt": short}
    files |= {"c/1.txt": (TRADITIONAL * 9).encode("big5"), "c/2.txt": (TRADITIONAL * 9).encode("big5")}
    files |= {"c/3.txt": SIMPLIFIED.encode()}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    form = f"{tmp_path}/{{}}"
    if packed:
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        form = f"zip://{{}}::{tmp_path}/all.zip"
    assert [read_text(form.format(f"{folder}/short.txt"))[0] for folder in "abc"] == ["一", "һ", "珨"]


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
        assert found[number] == f"ab{BROKEN}{offset} utf-8 ff{BROKEN}{SIMPLIFIED}"
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
        kept, lost = found.replace(f"{TRADITIONAL * 7}{BROKEN}{len(before)} ", "").split(BROKEN)
        assert (kept.split()[-1], lost) == (fault.hex(), TRADITIONAL * 23)
        if encoding != "utf-16":
            assert restore_bytes(found) == before + fault + b"".join(lines[7:])
    assert text(before[:-1], encoding).startswith(TRADITIONAL * 6)


def test_a_broken_byte_among_ascii_costs_its_line(text: Text) -> None:
    first, second, third = text(b"one\ntwo \xff\xfe\nthree\n", "utf-8").splitlines()
    assert (first, third) == ("one", "three")
    assert second == f"two {BROKEN}8 utf-8 ff{BROKEN}{BROKEN}9 utf-8 fe{BROKEN}"
    assert restore_bytes(second) == b"two \xff\xfe"


def test_what_comes_later_makes_no_other_encoding_of_utf_8(text: Text) -> None:
    """For example, the second half of the file may have been overwritten."""
    rest = TRADITIONAL.encode("gb18030") * 100
    assert text(SIMPLIFIED.encode() + rest).startswith(SIMPLIFIED)


def test_damage_all_over_makes_no_other_encoding_of_utf_8(text: Text) -> None:
    """Most of it would decode in GB18030, too, but to other characters."""
    found = text("今天{}天气{}很好{}，\n".encode().replace(b"{}", b"\xff") * 3)
    assert found.startswith(f"今天{BROKEN}6 utf-8 ff{BROKEN}天气")


def test_marks_at_the_start_of_lines_go(text: Text) -> None:
    """Files joined from several have such marks."""
    one = "\ufeff甲\r\n".encode()
    assert text(one * 3) == "甲\n" * 3
    assert text("\ufeff甲\n\ufeff\n乙\ufeff丙\n\ufeff".encode()) == "甲\n\n乙\ufeff丙\n"

    assert text("\ufeff\ufeff甲\r\n\ufeff\ufeff\ufeff乙\n".encode()) == "甲\n乙\n"


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("甲\n乙\n", "甲\n乙\n"),
        ("甲\r\n乙\r\n", "甲\n乙\n"),
        ("甲\r\r\n乙\r\r\n", "甲\n乙\n"),
        ("甲\r\r\n乙\r\n丙\n", "甲\n乙\n丙\n"),
        ("甲\r乙\r", "甲\n乙\n"),
        ("甲\r乙\r\n", "甲\n乙\n"),
        ("甲\r乙\r丙\n", "甲\n乙\n丙\n"),  # the line feed of an editor
        ("甲\r乙\n丙\n", "甲\r乙\n丙\n"),
        ("甲\x85乙\u2028丙\u2029丁\v戊\f己\n", "甲\x85乙\u2028丙\u2029丁\v戊\f己\n"),
        ("甲\r\n\x1a", "甲\n"),
        ("甲\n\x1a\x1a\x1a", "甲\n"),
        ("甲\x1a乙\n\x1a\r\n", "甲\x1a乙\n"),
        ("\x1a", ""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le"])
def test_line_ends(data: str, lines: str, encoding: str, text: Text) -> None:
    assert text(data.encode(encoding), encoding) == lines


def test_lines_that_begin_almost_like_a_mark_stay(text: Text) -> None:
    content = "（甲）\n（乙）\n\n\ufeff（丙）\n\n"
    assert text(content.encode()) == content.replace("\ufeff", "")


ODD_BYTES = st.sampled_from(
    [b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xf4\x8f\xbf\xbf", b"\0", "中".encode()]
)


@given(st.lists(st.one_of(st.binary(max_size=4), st.text().map(str.encode), ODD_BYTES), max_size=5).map(b"".join))
def test_is_utf_8_is_what_python_decodes(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        assert not is_utf_8(data)
    else:
        assert is_utf_8(data)


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
