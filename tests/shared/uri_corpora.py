"""A recipe of several small sources, for corpora at URIs, and the rows of a folder."""

import json
from pathlib import Path

import polars as pl
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.schemas.recipe import Recipe

Rows = dict[str, tuple[list[object], list[object]]]
TASKS = ("pretrain", "retrieval", "pretrain")


def make_recipe(folder: Path, sources: int, model: Path | None = None, shortest: int = 2) -> Recipe:
    """Write sources of ten pairs, two of which have the same texts, and one of single characters; a source is a shard.

    `shortest` is the least characters of a positive that filter keeps; with 30, it keeps that of one source alone.
    """
    settings: dict[str, object] = {"filter": {"rules": {"positive_length": shortest}}}
    named = []
    for number in range(sources):
        end = "，在很多地方都能见到" * number
        texts = [f"第{number}组第{row % 9}个问题是什么意思？" for row in range(10)]
        records = [{"query": text, "positive": f"{text}的回答，说明了它的意思和用法{end}。"} for text in texts]
        lines = [json.dumps(record, ensure_ascii=False) for record in [*records, {"query": "好", "positive": "好"}]]
        file = folder / f"source-{number}.jsonl"
        if not file.exists():  # a file that is written again is another file
            file.write_text("\n".join(lines), "utf-8")
        source = {"name": f"source-{number}", "files": [str(file)], "read": "jsonl", "task": TASKS[number % 3]}
        named.append(source | {"query": "query", "positive": "positive", "format": "question_answer"})
    if model is not None:
        settings |= {"score": {"model": str(model), "cutoff": -1.0}, "mine": {"model": str(model), "method": "topk"}}
    return Recipe.model_validate({"sources": named, **settings})


def read_rows(corpus: Path, folder: str) -> Rows:
    """Return the rows and rejects of each shard, by its name. Raises unless rows in = rows out + rejected."""
    rows = {}
    for shard in folders.committed(corpus, folder):
        footer, rejects = folders.read_footer(shard), folders.rejects(shard)
        rejected = pl.read_parquet(rejects).rows() if rejects.exists() else []
        footer.check()
        assert len(rejected) == sum(footer.rejected.values())
        rows[shard.name] = pl.read_parquet(shard).rows(), rejected
    return rows
