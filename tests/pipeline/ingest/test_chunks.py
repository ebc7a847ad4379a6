"""Chunks: where a document is cut, what stays whole, and what is repeated."""

from itertools import pairwise

import pytest
from conan_embedding.pipeline.ingest.chunks import Block, Chunk, cut
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples


def prose(text: str, page: int | None = None, glue: str = "\n\n") -> Block:
    return Block("prose", text, page=page, glue=glue)


def whole(text: str) -> Block:
    return Block("whole", text)


def texts(*blocks: Block, max_chars: int = 20, overlap: int = 0) -> list[str]:
    return [chunk.text for chunk in cut(blocks, max_chars, overlap)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("先断开电源。再打开机箱！取出螺丝？装好；", ["先断开电源。", "再打开机箱！", "取出螺丝？", "装好；"]),
        ("他说：“先断电。”然后走了。别的事再说吧。", ["他说：“先断电。”", "然后走了。", "别的事再说吧。"]),
        ("真的吗？！怎么会……好吧。就这样吧。", ["真的吗？！", "怎么会……", "好吧。", "就这样吧。"]),
        ("Stop it now. Open the box! It is 1.5 m.", ["Stop it now.", "Open the box!", "It is 1.5 m."]),
        ("1. 安装设备。第 2.5 节说明接线。", ["1. 安装设备。", "第 2.5 节说明接线。"]),
        ("见 a.b/c?d=e;f 的说明页。后文", ["见 a.b/c?d=e;f 的说明页。", "后文"]),
        ("设 $x。y。z$ 为真。则 `a。b` 亦真。", ["设 $x。y。z$ 为真。", "则 `a。b` 亦真。"]),
        (r"有 \(a。b\) 与 \[c。d\] 两式。完", [r"有 \(a。b\) 与 \[c。d\] 两式。", "完"]),
        ("价格 $5。另一个 $6。合计十一。", ["价格 $5。", "另一个 $6。", "合计十一。"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert "".join(text.split()) == "".join("".join(expected).split())
    for first, second in pairwise(expected):  # two neighbours don't fit: the cut is between them
        pair = f"{first} {second}" if first.isascii() else first + second
        assert texts(prose(pair), max_chars=max(len(first), len(second))) == [first, second]


def test_paragraphs_are_cut_before_sentences() -> None:
    one, two, three = "一二三四五六七八九。", "甲。乙。丙。", "长" * 12 + "。" + "句" * 12 + "。"
    assert texts(prose(one), prose(two), max_chars=18) == [f"{one}\n\n{two}"]
    assert texts(prose(one), prose(two), max_chars=17) == [one, two]
    assert texts(prose(one), prose(three), max_chars=20) == [one, three[:13], three[13:]]
    assert texts(prose("- 一"), prose("- 二", glue="\n"), prose("- 三", glue="\n"), max_chars=7) == [
        "- 一\n- 二",
        "- 三",
    ]


def test_a_long_sentence_is_cut_at_clauses_and_then_anywhere() -> None:
    assert texts(prose("一二三四五，六七八九十，完。"), max_chars=7) == ["一二三四五，", "六七八九十，", "完。"]
    assert texts(prose("字" * 45), max_chars=20) == ["字" * 20, "字" * 20, "字" * 5]
    formula = f"${'x + ' * 20}1$"
    assert texts(prose(f"设 {formula} 为真"), max_chars=20) == ["设", formula, "为真"]


def test_what_is_whole_is_never_cut_or_repeated() -> None:
    table = "| 甲 | 乙 |\n" * 6
    assert texts(prose("前文。"), whole(table), prose("后文。"), max_chars=20, overlap=9) == [
        "前文。",
        table.strip(),
        "后文。",
    ]
    assert texts(prose("前文。"), whole("| 甲 |"), prose("后文。"), max_chars=20) == ["前文。\n\n| 甲 |\n\n后文。"]


def test_the_end_of_a_chunk_is_repeated_in_whole_sentences() -> None:
    sentences = [f"第{number}句有八个字。" for number in "一二三四"]
    text = "".join(sentences)
    assert texts(prose(text), max_chars=27, overlap=8) == ["".join(sentences[:3]), "".join(sentences[2:])]
    assert texts(prose(text), max_chars=27, overlap=7) == ["".join(sentences[:3]), sentences[3]]
    assert texts(prose(text), max_chars=27, overlap=17) == ["".join(sentences[:3]), "".join(sentences[1:])]
    assert texts(prose("甲乙。丙丁。"), prose("戊" * 16 + "。"), max_chars=20, overlap=3) == [
        "甲乙。丙丁。",
        "戊" * 16 + "。",
    ]  # with the sentence before, it would not fit
    long = "第二句很长很长很长，分成两段。"  # its first half is neither a sentence nor short enough
    assert texts(prose(f"第一句。{long}"), max_chars=14, overlap=9) == [f"第一句。{long[:10]}", long[10:]]
    assert texts(prose("甲乙。"), Block("heading", "题", 1), prose("丙丁。"), max_chars=5, overlap=3) == [
        "甲乙。",
        "丙丁。",
    ]


def test_headings_lead_to_their_sections() -> None:
    headings = [("一", 1), ("二", 2), ("三", 3), ("四", 2), ("五", 1), ("六", 3)]
    blocks = [prose("前言", 1)]
    for text, level in headings:
        blocks += [Block("heading", text, level, 2), *([] if text == "二" else [prose(f"{text}文", 3)])]
    assert list(cut(blocks, 100, 0)) == [
        Chunk((), "前言", 1),
        Chunk(("一",), "一文", 3),
        Chunk(("一", "二", "三"), "三文", 3),
        Chunk(("一", "四"), "四文", 3),
        Chunk(("五",), "五文", 3),
        Chunk(("五", "六"), "六文", 3),
    ]


PIECES = st.lists(
    st.sampled_from(["字", "，", "。", "？", "”", " ", "$x$", "`c。c`", "1.5", "word", ". ", "\n"]), max_size=40
)
BLOCKS = st.lists(
    st.builds(
        lambda kind, pieces: Block(kind, "".join(pieces).strip(), 1),
        st.sampled_from(["prose", "prose", "prose", "whole", "heading"]),
        PIECES,
    ).filter(lambda block: block.text),
    max_size=8,
)


@max_examples(100)
@given(BLOCKS, st.integers(1, 60), st.integers(0, 30))
def test_nothing_is_lost(blocks: list[Block], max_chars: int, overlap: int) -> None:
    """Without overlap, the chunks are the text; with it, they are once what each repeats is left out."""

    def squeeze(words: str) -> str:
        return "".join(words.split())

    body = [block for block in blocks if block.kind != "heading"]
    apart = list(cut(blocks, max_chars, 0))
    assert squeeze("".join(chunk.text for chunk in apart)) == squeeze("".join(block.text for block in body))
    found = list(cut(blocks, max_chars, overlap))
    joined = ""
    for chunk in found:
        text = squeeze(chunk.text)
        repeated = next(size for size in range(min(overlap, len(text)), -1, -1) if joined.endswith(text[:size]))
        joined += text[repeated:]
        kept = [block.text for block in body if block.kind == "whole"]
        assert len(chunk.text) <= max_chars or chunk.text in kept or "$x$" in chunk.text or "`c。c`" in chunk.text
    for block in body:
        if block.kind == "whole":
            assert any(block.text in chunk.text for chunk in found)
