"""Blocks of PDFs: paragraphs, headings, tables, running lines, and files without text."""

from collections.abc import Sequence

import pytest
from conan_embedding.pipeline.ingest.chunks import Block
from conan_embedding.pipeline.ingest.files import FileError
from document_files import PICTURE, grid, pdf, text

pytest.importorskip("pdfplumber", reason="needs the extra documents")
from conan_embedding.pipeline.ingest.pdf_blocks import parse_pdf

FULL = "这一行写满三十个汉字为的是让它一直到达右边的边缘处再换下一行"  # 30 characters of 10 pt

ONE_LINE = "　" + FULL[3:] + "。"


def blocks(*pages: str, outline: Sequence[str] = ()) -> list[tuple[str, str, int, int | None]]:
    found, lost = parse_pdf(pdf(*pages, outline=outline))
    assert lost == []
    return [(block.kind, block.text, block.level, block.page) for block in found]


def column(*lines: str, left: float = 60, top: float = 100, pitch: float = 15) -> str:
    """Return the operators for lines below each other; those that begin with a full-width space are indented."""
    return "".join(
        text(left + 20 * line.startswith("　"), top + pitch * number, line.strip()) for number, line in enumerate(lines)
    )


@pytest.mark.parametrize("pitch", [12, 15, 25])
def test_lines_are_joined_to_paragraphs(pitch: float) -> None:
    page = column("　" + FULL[2:], FULL, "到此为止。", "　" + FULL[2:], "也到此为止。", pitch=pitch)
    assert blocks(page) == [
        ("prose", FULL[2:] + FULL + "到此为止。", 0, 1),
        ("prose", FULL[2:] + "也到此为止。", 0, 1),
    ]


def test_indented_blocks() -> None:
    item = "　" + FULL[2:]
    assert blocks(column(FULL, item, item, "　写完了。")) == [
        ("prose", FULL, 0, 1),
        ("prose", FULL[2:] * 2 + "写完了。", 0, 1),
    ]
    assert blocks(column(item, "写完了。", ONE_LINE, ONE_LINE, "写完了。")) == [
        ("prose", FULL[2:] + "写完了。", 0, 1),
        ("prose", ONE_LINE[1:], 0, 1),
        ("prose", ONE_LINE[1:] + "写完了。", 0, 1),
    ]


def test_words_of_other_scripts_keep_their_spaces() -> None:
    english = ["The quick brown fox jumps over the lazy dog, and then it hyphen-", "ates. It", "ends."]
    assert blocks(column(*english))[0] == (
        "prose", "The quick brown fox jumps over the lazy dog, and then it hyphenates. It", 0, 1,
    )  # fmt: skip
    long_word = column(FULL, FULL[:-4], "internationalisation 不能断开。")
    assert blocks(long_word) == [("prose", FULL + FULL[:-4] + "internationalisation 不能断开。", 0, 1)]
    assert blocks(column("目 录", "第 1 章 总则")) == [("prose", "目录", 0, 1), ("prose", "第 1 章 总则", 0, 1)]


def test_a_paragraph_goes_on_on_the_next_page_without_headers_and_footers() -> None:
    pages = [
        text(60, 30, "海洋手册 内部资料", 9) + column(*lines) + text(200, 570, f"第 {number} 页", 9)
        for number, lines in enumerate(([FULL, FULL], ["接着写完。", ONE_LINE], [ONE_LINE]), 1)
    ]
    assert blocks(*pages) == [
        ("prose", FULL * 2 + "接着写完。", 0, 1),
        ("prose", ONE_LINE[1:], 0, 2),
        ("prose", ONE_LINE[1:], 0, 3),
    ]
    assert blocks(pages[0])[0] == ("prose", "海洋手册 内部资料", 0, 1)  # a single page says nothing of the others


def test_columns_are_read_one_after_the_other() -> None:
    half = FULL[:15]
    page = column("　" + half[2:], half, "左完。", half) + column(half, "右完。", left=230)
    assert blocks(page) == [("prose", half[2:] + half + "左完。", 0, 1), ("prose", half * 2 + "右完。", 0, 1)]


def test_headings_are_larger_than_the_body() -> None:
    page = text(60, 80, "第一章 总则", 16) + column(FULL, FULL) + text(60, 150, "一、范围", 12) + column(FULL, top=170)
    page += text(60, 200, "很长的标题需要两行才", 12) + text(60, 216, "写得下", 12) + column(FULL, top=240)
    page += text(60, 270, "这一句虽然大，但是它以句号结束。", 12)
    assert blocks(page) == [
        ("heading", "第一章 总则", 1, 1),
        ("prose", FULL * 2, 0, 1),
        ("heading", "一、范围", 2, 1),
        ("prose", FULL, 0, 1),
        ("heading", "很长的标题需要两行才写得下", 2, 1),
        ("prose", FULL, 0, 1),
        ("prose", "这一句虽然大，但是它以句号结束。", 0, 1),
    ]


def test_an_outline_says_what_is_a_heading() -> None:
    page = text(60, 80, "公司名称", 20) + column("一、范围", FULL, FULL, "二、职责", FULL)
    assert blocks(page, outline=["一、 范围", "二、职责"]) == [
        ("heading", "公司名称", 2, 1),
        ("heading", "一、范围", 1, 1),
        ("prose", FULL * 2, 0, 1),
        ("heading", "二、职责", 1, 1),
        ("prose", FULL, 0, 1),
    ]
    assert blocks(page, outline=["别的书签"])[0] == ("heading", "公司名称", 1, 1)


def test_ruled_tables_stay_whole() -> None:
    cells = [("项目", 65, 214), ("规格", 125, 214), ("电压", 65, 234), ("5|12", 125, 228), ("伏", 125, 238)]
    page = column(FULL) + grid(60, 200, 2, 2) + "".join(text(x, y, words, 9) for words, x, y in cells)
    page += column("　" + FULL[2:], top=280)
    assert blocks(page) == [
        ("prose", FULL, 0, 1),
        ("whole", "| 项目 | 规格 |\n| --- | --- |\n| 电压 | 5\\|12伏 |", 0, 1),
        ("prose", FULL[2:], 0, 1),
    ]
    boxed = grid(50, 80, 1, 1, 320, 60) + column(FULL)
    assert blocks(boxed) == [("prose", FULL, 0, 1)]


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (pdf(PICTURE, PICTURE), "no_content", "no text in 2 pages, so probably a scan; run OCR"),
        (pdf(column(FULL), encrypted=True), "unreadable", "it is encrypted; save it without a password"),
        (pdf(column(FULL))[:600], "unreadable", "not a readable PDF"),
        (b"%PDF-1.7\n", "unreadable", "not a readable PDF"),
        (b"", "unreadable", "not a readable PDF"),
        (b"<html>404</html>", "unreadable", "not a readable PDF"),
        (pdf(column(FULL), encoding="Identity-H"), "encoding", "its fonts don't say what .* of its characters are"),
    ],
)
def test_files_without_text_are_told(data: bytes, reason: str, detail: str) -> None:
    with pytest.raises(FileError, match=detail) as raised:
        parse_pdf(data)
    assert raised.value.reason == reason


def test_what_is_missing_is_told() -> None:
    found, lost = parse_pdf(pdf(column(FULL), PICTURE, "", PICTURE)[:-7])
    assert found == [Block("prose", FULL, page=1)]
    assert lost == [
        ("no_content", "page 2 is a picture without text; run OCR on it"),
        ("no_content", "page 4 is a picture without text; run OCR on it"),
        ("truncated", "the file breaks off, so that pages may be missing"),
    ]
