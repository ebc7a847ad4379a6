"""A plugin: a module outside the package with a rule against red leaves, and a recipe and sources that meet it."""

import json
import shutil
from pathlib import Path

PLUGIN = """\
import os
from pathlib import Path

import polars as pl
from conan_embedding.pipeline.filter.rules import RULES, Rule

(Path(__file__).parent / "processes" / str(os.getpid())).touch()
leaves = pl.col("positive").str.contains("红叶")
rule = Rule("red_leaves", "positive", "max", 0.9, pl.when(leaves).then(0.7), "chosen here", version=VERSION)
RULES.register(rule.name, rule)
"""
SOURCE = "- {{name: {0}, files: {0}.jsonl, read: jsonl, query: question, positive: answer, format: question_answer}}\n"
AUTUMN = "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"
SPRING = "春天的北京天气晴朗，玉渊潭的樱花正开，是一年里最适合出门的季节。"


def write_rule_plugin(plugins: Path, version: int = 1) -> Path:
    """Write the module `leaf_rules`; gives the folder in which each process that imports it leaves its number."""
    (plugins / "leaf_rules.py").write_text(PLUGIN.replace("VERSION", str(version)), "utf-8")
    # Python takes what it compiled before for the same module if size and second of the file are equal.
    shutil.rmtree(plugins / "__pycache__", ignore_errors=True)
    (plugins / "processes").mkdir(exist_ok=True)
    return plugins / "processes"


def write_rule_recipe(folder: Path) -> Path:
    """Write two sources, which ingest makes two shards of, each with a pair that the rule rejects and one that passes.

    The recipe names the module, and the files by their names alone.
    """
    for source in ("one", "two"):
        rows = [{"question": f"北京的{name}为什么适合旅行？", "answer": name + text} for name, text in
                ((f"{source}秋", AUTUMN), (f"{source}春", SPRING))]  # fmt: skip
        (folder / f"{source}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (folder / "recipe.yaml").write_text(
        "plugins: [leaf_rules]\n"
        "filter: {rules: {red_leaves: 0.5}}\n"
        "sources:\n" + "".join(SOURCE.format(source) for source in ("one", "two")),
        "utf-8",
    )
    return folder / "recipe.yaml"
