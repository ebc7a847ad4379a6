"""The reader of documents: every format, what is told of files that can't be read, and passages."""

import gzip
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conan_embedding.pipeline.ingest import documents_reader
from conan_embedding.schemas.errors import MissingExtraError
from conan_embedding.schemas.recipe import Recipe
from document_files import PICTURE, docx, formula, link, paragraph, pdf, table, text
from ingested import Ingested
from read_files import Read

RAISED = '<w:r><w:rPr><w:vertAlign w:val="superscript"/></w:rPr><w:t>{}</w:t></w:r>'
STYLES = [
    ("a", "Title", "", ""),
    ("1", "heading 1", "", "0"),
    ("2", "heading 2", "", "1"),
    ("own", "一级'标题", "1", ""),
    ("deep", "深", "own", "7"),
    ("body", "正文文本", "", "9"),
    ("loop", "环", "loop", ""),
    ("t1", "toc 1", "", ""),
]


def read(tmp_path: Path, name: str, data: bytes | str, **options: Any) -> Read:
    file = tmp_path / name
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return Read([str(file)], read="documents", options=options)


def test_markdown(tmp_path: Path) -> None:
    found = read(tmp_path, "手册 v1.2.md", "前言\n第二行。\n# 安装\n先断电。\n## 接线\n红正，\nblack 负。\n")
    assert found.values("query", "positive", "title", "headings", "page", "_line") == [
        ("手册 v1.2", "前言第二行。", "安装", [], None, None),
        ("安装", "先断电。", "安装", ["安装"], None, None),
        ("安装 > 接线", "红正，\nblack 负。", "安装", ["安装", "接线"], None, None),
    ]
    assert found.values("meta")[2] == {"title": "安装", "headings": ["安装", "接线"], "page": None}


@pytest.mark.parametrize(
    ("markdown", "queries"),
    [
        ("---\ntitle: 手册\n---\n前言\n# 安装\n文\n", ["手册", "手册 > 安装"]),
        ("---\ntitle: 手册\n---\n# 手册\n前言\n## 安装\n文\n", ["手册", "手册 > 安装"]),
        ("# 手册\n# 安装\n文\n## 接线\n文\n# 拆除\n文\n", ["手册 > 安装", "手册 > 安装 > 接线", "手册 > 拆除"]),
        ("# 手册\n文\n# 安装\n文\n", ["手册", "安装"]),
        ("# 手册\n## 安装\n文\n", ["手册 > 安装"]),
        ("只有文字。", ["a"]),
    ],
)
def test_the_path_begins_with_the_documents_title(tmp_path: Path, markdown: str, queries: list[str]) -> None:
    assert read(tmp_path, "a.md", markdown).values("query") == queries


def test_chunks_have_the_size_that_options_say(tmp_path: Path) -> None:
    body = "".join(f"第{number}句话写在这里。" for number in range(20))
    found = read(tmp_path, "a.md", f"# 一\n{body}", max_chars=30, overlap=10)
    texts = found.values("positive")
    assert max(map(len, texts)) <= 30 and set(found.values("query")) == {"一"}
    assert texts[0] == body[:27] and texts[1].startswith("第2句话写在这里。第3句")
    assert "".join(read(tmp_path, "a.md", body, max_chars=30, overlap=0).values("positive")) == body


def test_docx(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="needs the extra documents")
    data = docx(
        paragraph("产品手册", "a"),
        paragraph("第一章\t1", "t1"),
        paragraph("第一章", "1"),
        paragraph("价格是 5*3 元，snake_case 与 [括号]。", "body"),
        paragraph("# systemctl start", "body"),
        paragraph("- a\\b [1] <c> 1. d~e|f", "body"),
        formula("a=b"),
        paragraph("环", "loop"),
        link("见图 [1]", "_Ref1"),
        paragraph("自己的标题", "own"),
        table(("项目", "规格"), ("电压", "5V")),
        paragraph("更深", "deep"),
        paragraph("约 10").replace("</w:p>", f"{RAISED.format(-6)}</w:p>"),
        paragraph("附录", "body").replace("</w:pPr>", '<w:outlineLvl w:val="0"/></w:pPr>'),
        paragraph("末尾。"),
        styles=STYLES,
    )
    assert read(tmp_path, "a.docx", data).values("query", "positive") == [
        (
            "产品手册 > 第一章",
            "价格是 5*3 元，snake_case 与 [括号]。\n\n# systemctl start\n\n"
            "- a\\b [1] <c> 1. d~e|f\n\n$$a=b$$\n\n环\n\n见图 [1]",
        ),
        ("产品手册 > 自己的标题", "| 项目 | 规格 |\n| --- | --- |\n| 电压 | 5V |"),
        ("产品手册 > 自己的标题 > 更深", "约 10<sup>-6</sup>"),
        ("产品手册 > 附录", "末尾。"),
    ]


def test_pptx(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="needs the extra documents")
    pptx = pytest.importorskip("pptx")
    slides = pptx.Presentation()
    untitled = slides.slide_layouts[6]
    for title, body, notes in (("总结", "营收增长\n成本下降", "强调营收。"), ("展望", "明年继续", "")):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, body
        if notes:
            slide.notes_slide.notes_text_frame.text = notes
    cells = slide.shapes.add_table(2, 2, 0, 0, 9_999, 9_999).table
    for place, words in enumerate("甲乙丙丁"):
        cells.cell(*divmod(place, 2)).text = words
    slides.slides.add_slide(untitled).shapes.add_textbox(0, 0, 9_999, 9_999).text_frame.text = "谢谢"
    file = io.BytesIO()
    slides.save(file)
    assert read(tmp_path, "a.pptx", file.getvalue()).values("query", "positive", "page", "title") == [
        ("总结", "营收增长\n\n成本下降\n\n强调营收。", 1, "总结"),
        ("展望", "| 甲 | 乙 |\n| --- | --- |\n| 丙 | 丁 |\n\n明年继续", 2, "总结"),
        ("a", "谢谢", 3, "总结"),
    ]


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pdfplumber", reason="needs the extra documents")
    pages = [text(60, 80, f"第{number}章", 16) + text(60, 110, f"第{number}章的正文。") for number in "一二"]
    found = read(tmp_path, "a.pdf", pdf(*pages, PICTURE))
    assert found.values("query", "positive", "page") == [
        ("第一章", "第一章的正文。", 1),
        ("第二章", "第二章的正文。", 2),
    ]
    assert found.problems == [(None, "no_content", None)]


def test_html(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="needs the extra web")
    page = """<html><head><title>安装手册 - 某公司</title></head><body><nav><a href="/">首页</a></nav><main>
    <h1>安装手册</h1><p>本手册说明如何安装设备。请在安装之前阅读全部内容，并准备好所需的工具。</p><h2>接线</h2>
    <p>红线接正极，5*3 是算式，snake_case 是名称。</p>
    <p># 参见[1]与 a[0]，C:\\[x]，&lt;b&gt;、`c`、~~d~~ 和 \\(x_1\\[2\\]\\)。</p><p>1. 不是列表</p>
    <pre><code># x_y
z</code></pre><table><tr><th>项目</th><th>规格</th></tr><tr><td>电压</td><td>5*3</td></tr></table></main></body>"""
    found = read(tmp_path, "a.html", page.encode("gb18030")).values("query", "positive")
    assert [query for query, _ in found] == ["安装手册", "安装手册 > 接线"]
    assert found[1][1].startswith(
        "红线接正极，5*3 是算式，snake_case 是名称。\n\n"
        "# 参见[1]与 a[0]，C:\\[x]，<b>、`c`、~~d~~ 和 $x_1\\[2\\]$。\n\n"
        "1. 不是列表\n\n```\n# x_y\nz\n```\n\n| 项目 | 规格 |"
    )
    assert found[1][1].endswith("| 电压 | 5*3 |")


def office(**members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


OLD = bytes.fromhex("d0cf11e0a1b11ae1")


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("a.doc", OLD, "unreadable", "expected a name that ends with .md, .markdown, .html, .htm, .docx, .pptx, .pdf"),
        ("a", b"x", "unreadable", "found a"),
        ("a.docx", OLD, "unreadable", "a file of Office before 2007; save it as .docx or .pptx"),
        ("a.pptx", OLD + "EncryptedPackage".encode("utf-16-le"), "unreadable", "encrypted; save it without a password"),
        ("a.docx", docx(paragraph("文"))[:-40], "unreadable", "not a DOCX or PPTX file, or only a part of one"),
        ("~$a.docx", b"\x05user", "unreadable", "not a DOCX or PPTX file"),
        ("a.docx", office(x="y"), "unreadable", "Could not find main document part"),
        ("a.docx", docx(), "no_content", "no text"),
        ("a.md", "# 一\n## 二\n", "no_content", "no text under its headings"),
        ("a.md", "", "no_content", "no text"),
        ("a.md", "好的文字。".encode() * 50 + b"\xff", "encoding", "undecodable bytes at offset 750"),
        ("a.html", "", "no_content", "no HTML"),
    ],
)
def test_files_that_cannot_be_read_are_told(
    tmp_path: Path, name: str, data: bytes | str, reason: str, detail: str
) -> None:
    pytest.importorskip("markitdown", reason="needs the extra documents")
    found = read(tmp_path, name, data)
    assert found.rows == [] and len(found.problems) == 1
    [problem] = found.problems_frame.to_dicts()
    assert (problem["file"], problem["line"], problem["reason"]) == (str(tmp_path / name), None, reason)
    assert detail in problem["detail"]


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_reader, "UNPACKED_FLOOR", 10_000)
    bomb = office(**{"word/document.xml": " " * 1_000_000})
    assert read(tmp_path, "a.docx", bomb).problems == [(None, "too_large", None)]
    monkeypatch.setattr(documents_reader, "LONGEST_DOCUMENT", 100)
    assert read(tmp_path, "a.docx", bomb).problems == [(None, "too_long", None)]


def test_compressed_files_and_members_of_archives(tmp_path: Path) -> None:
    (tmp_path / "b.md.gz").write_bytes(gzip.compress("压缩的正文。".encode()))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("docs/d.markdown", "归档的正文。")
        archive.writestr("e.docx", docx(paragraph("字处理的正文。")))
    source = {"name": "web", "read": "documents", "files": [f"{tmp_path}/b.md.gz", f"{tmp_path}/c.zip"]}
    found = Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [source]}))
    assert found.values("query", "positive") == [("b", "压缩的正文。"), ("d", "归档的正文。"), ("e", "字处理的正文。")]


def test_documents_as_passages(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 安装\n先断电。\n## 接线\n红正黑负。\n")
    (tmp_path / "b.md").write_text("\n")
    source = {"name": "web", "read": "documents", "files": f"{tmp_path}/*.md", "task": "passage"}
    found = Ingested(tmp_path / "corpus", Recipe.model_validate({"sources": [source]}))
    assert found.values("task", "query", "positive", "meta") == [
        ("passage", "", "先断电。", '{"title":"安装","headings":["安装"],"page":null}'),
        ("passage", "", "红正黑负。", '{"title":"安装","headings":["安装","接线"],"page":null}'),
    ]
    assert found.rejects.select(pl.col("file").str.split("/").list.last(), "reason").rows() == [("b.md", "no_content")]


@pytest.mark.parametrize(("name", "module"), [("a.docx", "markitdown"), ("a.pdf", "pdfplumber")])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    data = docx(paragraph("文")) if module == "markitdown" else b"%PDF"
    with pytest.raises(
        MissingExtraError, match=r"needs the extra documents: pip install 'conan-embedding\[documents\]'"
    ):
        read(tmp_path, name, data)
