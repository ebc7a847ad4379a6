"""Shards of numbered texts for the tests of the corpus."""

import hashlib
from pathlib import Path

import pyarrow as pa
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.schemas.pairs import NAME

SCHEMA = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("source", NAME, nullable=False)])
REJECTED = pa.schema([*SCHEMA, pa.field("reason", pa.string()), pa.field("detail", pa.string())])


def rows(first: int, last: int) -> pa.Table:
    numbers = range(first, last)
    texts = [hashlib.md5(str(number).encode()).hexdigest() * (1 + number % 50) for number in numbers]
    return pa.table({"text": texts, "source": [f"source {number // 1000}" for number in numbers]})


def refused(first: int, last: int, reason: str = "too_short") -> pa.Table:
    table = rows(first, last)
    for name in ("reason", "detail"):
        table = table.append_column(name, [[reason] * table.num_rows])
    return table


def writer(path: Path, fingerprint: str = "f") -> ShardWriter:
    return ShardWriter(path, SCHEMA, REJECTED, stage="filter", version=3, fingerprint=fingerprint)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
