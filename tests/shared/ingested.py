"""Ingest a recipe and look at the results."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from conan_embedding.pipeline.corpus import folder as folders
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.ingest import stage
from conan_embedding.schemas.outcomes import Summary
from conan_embedding.schemas.pairs import PAIR, REJECTED_AT_INGEST
from conan_embedding.schemas.recipe import Recipe

ALONE = Engine(workers=1)


class Ingested:
    """The results of ingesting a recipe."""

    def __init__(self, corpus: Path, recipe: Recipe, engine: Engine = ALONE) -> None:
        self.summary: Summary = stage.ingest(corpus, recipe, engine)
        self.pairs, self.rejects = frames(corpus, "ingest")

    def reasons(self, source: str = "web") -> list[str]:
        return self.rejects.filter(source=source)["reason"].to_list()

    def values(self, *names: str) -> list[Any]:
        rows = self.pairs.select(names).rows()
        return [value for (value,) in rows] if len(names) == 1 else rows


def frames(corpus: Path, folder: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the pairs and rejects of a finished stage."""
    shards = folders.shards(corpus, folder)
    for shard in shards:
        folders.read_footer(shard).check()
        assert pq.read_schema(shard).equals(PAIR)
        assert pq.read_schema(folders.rejects(shard)).equals(REJECTED_AT_INGEST)
    names = pl.col("source", "category", "format", "task").cast(pl.String)
    read = [
        pl.concat([pl.read_parquet(path).with_columns(names) for path in paths])
        for paths in (shards, map(folders.rejects, shards))
    ]
    return read[0], read[1]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def faultless(folder: Path, name: str = "faultless") -> dict[str, Any]:
    """A faultless source."""
    (folder / f"{name}.jsonl").write_text(lines({"query": "问", "positive": "答"}))
    return {"name": name, "files": f"{folder}/{name}.jsonl", "read": "jsonl"}
