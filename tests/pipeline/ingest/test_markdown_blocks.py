"""Blocks of Markdown: what is a heading, what may be cut, what stays whole."""

import pytest
from conan_embedding.pipeline.ingest.chunks import Block
from conan_embedding.pipeline.ingest.markdown_blocks import parse_markdown, read_title


@pytest.mark.parametrize(
    ("markdown", "title", "body"),
    [
        ("---\ntitle: 安装手册\ntags: [甲, 乙]\n---\n正文", "安装手册", "正文"),
        ('---\ntitle: "引号: 冒号"\n---\n\n正文', "引号: 冒号", "\n正文"),
        ("---\ntitle: |\n  两行\n...\n正文", "两行", "正文"),
        ("---\ntitle: 2024\n---\n", "2024", ""),
        ("---\ndate: 2024-01-01\n---\n正文", None, "正文"),
        ("---\n一条线，不是元数据\n---\n正文", None, "---\n一条线，不是元数据\n---\n正文"),
        ("---\n坏: [\n---\n正文", None, "---\n坏: [\n---\n正文"),
        ("正文\n---\ntitle: 甲\n---\n", None, "正文\n---\ntitle: 甲\n---\n"),
    ],
)
def test_front_matter(markdown: str, title: str | None, body: str) -> None:
    found = read_title(markdown)
    assert (found[0].strip() if found[0] else None, found[1]) == (title, body)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# 一\n文", [("heading", "一", 1), ("prose", "文", 0)]),
        ("## `a_b` 的 **粗** [链接](x) ##\n", [("heading", "a_b 的 粗 链接", 2)]),
        ("标题\n===\n次题\n---\n", [("heading", "标题", 1), ("heading", "次题", 2)]),
        ("#没有空格\n", [("prose", "#没有空格", 0)]),
        ("```\n# 不是标题\n\n。\n```\n", [("whole", "```\n# 不是标题\n\n。\n```", 0)]),
        ("~~~py\n# x\n", [("whole", "~~~py\n# x", 0)]),
        ("    # 缩进的代码\n", [("whole", "    # 缩进的代码", 0)]),
        ("| a |\n|---|\n| 。 |\n\n文", [("whole", "| a |\n|---|\n| 。 |", 0), ("prose", "文", 0)]),
        ("$$\na\n=\n\n# b\n$$\n", [("whole", "$$\na\n=\n\n# b\n$$", 0)]),
        ("$$ a $$\n文", [("whole", "$$ a $$", 0), ("prose", "文", 0)]),
        ("$$\na\n$$ (1)\n文", [("whole", "$$\na\n$$ (1)", 0), ("prose", "文", 0)]),
        (
            "$$ a $$ 后面还有很长的一段话，所以这是一个段落。",
            [("prose", "$$ a $$ 后面还有很长的一段话，所以这是一个段落。", 0)],
        ),
        ("$$ 没有结尾\n\n# 一\n", [("prose", "$$ 没有结尾", 0), ("heading", "一", 1)]),
        ("设\n\\[ a\n=\nb \\]\n则", [("prose", "设", 0), ("whole", "\\[ a\n=\nb \\]", 0), ("prose", "则", 0)]),
        (
            "\\begin{align}\na\n\\begin{x}\n\\end{x}\n\n=\n\\end{align}\n",
            [("whole", "\\begin{align}\na\n\\begin{x}\n\\end{x}\n\n=\n\\end{align}", 0)],
        ),
        (
            "- 一\n  续\n- 二\n\n  ```\n  x\n  ```\n",
            [("prose", "- 一\n  续", 0), ("whole", "- 二\n\n  ```\n  x\n  ```", 0)],
        ),
        ("1. 甲\n2. 乙\n", [("prose", "1. 甲", 0), ("prose", "2. 乙", 0)]),
        ("> 引\n> # 用\n", [("prose", "> 引\n> # 用", 0)]),
        ("上\n\n***\n\n下", [("prose", "上", 0), ("prose", "下", 0)]),
        ("<!-- 注 -->\n\n<div>块</div>\n", [("prose", "<div>块</div>", 0)]),
        ("", []),
    ],
)
def test_blocks(markdown: str, expected: list[tuple[str, str, int]]) -> None:
    assert [(block.kind, block.text, block.level) for block in parse_markdown(markdown)] == expected


@pytest.mark.parametrize("opening", ["\\[\n", "\\begin{x}\n"])
def test_unclosed_formulas_end(opening: str) -> None:
    assert [block.kind for block in parse_markdown(opening * 2_000)] == ["prose"]


def test_items_follow_each_other_on_lines() -> None:
    assert [block.glue for block in parse_markdown("文\n\n- 一\n- 二\n\n文")] == ["\n\n", "\n\n", "\n", "\n\n"]


def test_comments_of_the_converter_number_slides() -> None:
    slides = "<!-- Slide number: 1 -->\n# 一\n文\n\n<!-- Slide number: 2 -->\n续"
    assert list(parse_markdown(slides)) == [
        Block("heading", "一", 1, 1),
        Block("prose", "文", page=1),
        Block("prose", "续", page=2),
    ]
