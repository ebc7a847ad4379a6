"""Blocks of Markdown: what is a heading, what may be cut, what stays whole."""

import pytest
from conan_embedding.pipeline.ingest.chunks import Block
from conan_embedding.pipeline.ingest.markdown_blocks import parse_markdown


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("# 一\n文", [("heading", "一", 1), ("prose", "文", 0)]),
        ("## `a_b` 的 **粗** [链接](x) ##\n", [("heading", "a_b 的 粗 链接", 2)]),
        ("标题\n===\n次题\n---\n", [("heading", "标题", 1), ("heading", "次题", 2)]),
        ("#没有空格\n##二\n文", [("heading", "没有空格", 1), ("heading", "二", 2), ("prose", "文", 0)]),
        ("#标签 #二\n文", [("prose", "#标签 #二\n文", 0)]),
        ("# 一 {#id .x}\n", [("heading", "一", 1)]),
        ("# <a id=x></a>List<String> <!-- x -->的 vector<int>\n", [("heading", "List<String> 的 vector<int>", 1)]),
        ('<h1 align="center">一 &amp; <b>二</b></h1>\n文', [("heading", "一 & 二", 1), ("prose", "文", 0)]),
        ("<div>\n<h2>一</h2>\n<img>\n</div>\n\n文", [("heading", "一", 2), ("prose", "文", 0)]),
        (
            "文\n<table>\n<td>。\n\n。</td>\n</table>\n\n文",
            [("prose", "文", 0), ("whole", "<table>\n<td>。\n\n。</td>\n</table>", 0), ("prose", "文", 0)],
        ),
        ("<div><table><td>。</td></table></div>", [("whole", "<div><table><td>。</td></table></div>", 0)]),
        ("<table>\n\n# 一\n", [("whole", "<table>", 0), ("heading", "一", 1)]),
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
