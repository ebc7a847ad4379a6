"""Front matter of Markdown documents."""

from typing import Any

import pytest
from conan_embedding.pipeline.ingest.front_matter import find_title, split_front_matter


@pytest.mark.parametrize(
    ("front", "keys"),
    [
        ("---\ntitle: 题\ntags: [a, b]\ndate: 2024-05-01 10:00\n---\n", {"title": "题", "tags": ["a", "b"]}),
        ('---\nTitle: "引 \\"号\\" # 内"  # 外\n---\n', {"title": '引 "号" # 内'}),
        ("---\ntitle: >-\n  折\n  行\ntags:\n  - a\n...\n", {"title": "折 行", "tags": ["a"]}),
        ("\n\n---  \ntitle: yes\n---\n", {"title": "yes"}),
        ("---\ntitle: 2024-05-01\n---\n", {"title": "2024-05-01"}),
        ("---\ntitle: 冒号: 在里面\ntags: a\n---\n", {"title": "冒号: 在里面", "tags": "a"}),  # not YAML
        ("---\ntitle: '@题'\nauthor: @某人\n---\n", {"title": "@题", "author": "@某人"}),
        ("---\ntitle:题\ntags:a\n---\n", {"title": "题", "tags": "a"}),  # a text in YAML
        ('---\ntitle: "题" 外\nauthor: "某人": 甲\n---\n', {"title": '"题" 外', "author": '"某人": 甲'}),
        ("-----\ntitle: 题\n-----\n", {"title": "题"}),
        ("title: 题\ntags:\n- a\n---\n", {"title": "题", "tags": ["a"]}),
        ("---\n---\n", {}),
        ("+++\ntitle = '题'\ntags = ['a']\n+++\n", {"title": "题", "tags": ["a"]}),
        ('+++\ntitle = "题"\nbroken\n+++\n', {"title": "题"}),
        ('{\n  "title": "题", "tags": ["a"]\n}\n', {"title": "题", "tags": ["a"]}),
    ],
)
def test_keys(front: str, keys: dict[str, Any]) -> None:
    found, rest = split_front_matter(f"{front}# 节\n---\n文")
    assert ({key: found[key] for key in found if key != "date"}, rest.lstrip()) == (keys, "# 节\n---\n文")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "文\n\n---\ntitle: 题\n---\n",
        "---\n\n# 节\n\n文\n\n---\n",
        "---\n只有一句话\n---\n文",
        "---\ntitle: 没有结束\n\n文",
        "title: 文里的一行\n\n文\n---\n",
        "title: 题\n文\n---\n",
        "{{ include }}\n文",
        '{"a": 1} 文\n',
        '{"a":' * 10_000,
        "---\n" + "[" * 10_000 + "\n---\n",
    ],
)
def test_documents_without_front_matter(text: str) -> None:
    assert split_front_matter(text) == ({}, text)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("题", "题"),
        (" 题 ", "题"),
        ("007", "007"),
        ("", None),
        ("~", None),
        ("null", None),
        (["题"], None),
        (None, None),
    ],
)
def test_titles(title: Any, expected: str | None) -> None:
    assert find_title({"title": title}) == expected
    assert find_title({}) is None
