"""Build a corpus from Python: a recipe, a custom filter rule, the first stages, and their rejects.

Run: python examples/corpus.py
"""

import json
import tempfile
from pathlib import Path

import conan_embedding as conan
import polars as pl

RECIPE = """\
sources:
  - name: questions
    category: community_qa
    format: question_answer
    files: {folder}/*.jsonl
    read: jsonl
    query: question
    positive: answer
"""
PAIRS = [
    ("怎样泡一壶好绿茶？", "水温控制在八十度上下，先温杯，再投三克茶叶，第一泡二十秒就可以出汤。"),
    ("怎样泡一壶好绿茶？", "水温控制在八十度上下，先温杯，再投三克茶叶，第一泡二十秒就可以出汤！"),
    ("自行车链条多久上一次油？", "每骑两百公里或者淋过雨之后擦干净，再滴一遍链条油，多余的要用布抹掉。"),
    ("自行车链条多久上一次油？", "呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵呵"),
    ("明天下雨吗？", "请联系客服微信领取优惠，客服微信每天都在线，客服微信欢迎你。"),
]


def main(folder: Path) -> None:
    """Write a source, run ingest, filter and dedup on it, and print what was kept and what was rejected."""
    lines = (json.dumps({"question": query, "answer": answer}, ensure_ascii=False) for query, answer in PAIRS)
    (folder / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder), "utf-8")

    # A rule compares the value of a Polars expression with a threshold; here: at most one 客服微信 per positive.
    mentions = pl.col("positive").str.count_matches("客服微信")
    rule = conan.Rule("advert", "positive", "max", 1, mentions, "chosen here: by reading the rejects")
    conan.RULES.register(rule.name, rule)

    recipe = conan.load_recipe(folder / "recipe.yaml")
    corpus = conan.Corpus(folder / "corpus")
    for stage in ("ingest", "filter", "dedup"):
        print(conan.run_stage(stage, corpus.folder, recipe, workers=1))

    print(corpus.read("dedup").select("query", "positive"))
    print(corpus.rejected().select("stage", "reason", "detail", "positive"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
