"""A recipe with one clean source of three pairs, and the type of the fixture `conan`."""

import json
from collections.abc import Callable
from pathlib import Path

RECIPE = """\
sources:
  - name: web
    format: question_answer
    files: {folder}/*.jsonl
    read: jsonl
    query: question
    positive: answer
"""
RECORDS = [
    ("北京的秋天为什么适合旅行？", "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"),
    ("怎样才能学好数学这门功课？", "多做练习，把每一个概念弄懂，遇到不会的题目先自己想一想再去问老师。"),
    ("长城有多长？", "根据国家文物局的测量，历代长城的总长度超过两万一千公里。"),
]

Conan = Callable[..., tuple[int, str, str]]


def write_recipe(folder: Path) -> Path:
    """Write a recipe with one clean source, and its data."""
    lines = (json.dumps({"question": query, "answer": positive}, ensure_ascii=False) for query, positive in RECORDS)
    (folder / "data").mkdir()
    (folder / "data" / "qa.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder / "data"), "utf-8")
    return folder / "recipe.yaml"
