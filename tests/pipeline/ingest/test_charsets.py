"""Telling encodings apart, and decoding each as its superset."""

import pytest
from conan_embedding.pipeline.ingest.charsets import decode, detect, find_codec, judge

SIMPLIFIED = "今天天气很好，我们去公园散步。人民政府发布了新的政策，经济增长稳定。\n"
TRADITIONAL = "今天天氣很好，我們去公園散步。臺灣的經濟發展與環境保護同樣重要，學習語言需要時間。\n"


def test_short_texts_by_their_ordinary_characters() -> None:
    assert detect("你好世界".encode("gbk")) == detect("朱镕基".encode("gbk")) == "gb18030"
    assert detect("香港恒生指數".encode("cp950")) == detect("裏面".encode("cp950")) == "big5"
    assert detect("价格€5万".encode("gbk", "replace").replace(b"?", b"\x80")) == "gb18030"


def test_ascii_lines_before_do_not_hide_the_others() -> None:
    assert detect(b"{}\n" * 100_000 + (SIMPLIFIED * 2).encode("gbk")) == "gb18030"


@pytest.mark.parametrize(
    ("data", "judged"),
    [
        (SIMPLIFIED.encode("gbk"), ("gb18030", True)),
        (TRADITIONAL.encode("big5"), ("big5", True)),
        ("你好".encode("gbk"), ("gb18030", False)),
        ("一".encode("gbk"), ("utf-8", False)),  # also һ in UTF-8
        ("中".encode(), ("utf-8", True)),
        (b"plain", ("utf-8", True)),
    ],
)
def test_short_texts_are_not_sure(data: bytes, judged: tuple[str, bool]) -> None:
    assert judge(data) == judged


def test_one_character_many_times_is_no_other_language() -> None:
    """Korean has the same bytes for other characters."""
    assert [detect("东北".encode("gbk") * times) for times in (1, 1000)] == ["gb18030"] * 2


def test_undecodable_bytes_become_one_replacement_each() -> None:
    assert decode(b"\xff\x80\xd6\xec", "gb18030") == "\ufffd€朱"
    assert decode(b"\xa3\xe1\xff", "big5") == "€\ufffd"
    assert find_codec("no-such") is None
