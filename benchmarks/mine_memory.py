"""Time and peak memory of `conan mine` with a generated corpus and vectors made from hashes, so that no model runs.

Run: `python benchmarks/mine_memory.py [--passages 1000000] [--queries 100000] [--width 64] [--block 100000]
[--memory 256MB]`. A query has one positive; the rest of the passages have no query. `--memory` is DuckDB's limit.
Writing the corpus and the vectors is not counted: they are made by a first process, and a second one mines again from
the vectors.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from conan_embedding.pipeline.corpus import pools
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.encoder import encoder as encoders
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.settings import MineSettings
from conan_embedding.schemas.training import PASSAGES, RETRIEVAL
from conan_embedding.trainer.model.bootstrap import tiny_bert

MEDIAN, SHARD = 200, 100_000  # characters of a passage; records of a shard


def main() -> None:
    """Make the corpus, mine it in a process of its own, print seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--block", type=int)
    parser.add_argument("--index")
    parser.add_argument("--memory", default=pools.MEMORY)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_corpus(place / "corpus", options.passages, options.queries)
        tiny_bert(place / "bert", texts=pa.array(["文本"]))
        for kind in ("encode", "mine"):
            command = [sys.executable, __file__, *sys.argv[1:], "--only", str(place)]
            print(kind, subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
            (place / "corpus" / "pools.duckdb").rename(place / f"{kind}.duckdb")


def measure(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Mine once; return the seconds, those of all cores (imports too), and the peak memory in MB, before and after."""
    encoders.encode = make_vectors(options.width)
    pools.MEMORY = options.memory
    more = {} if options.block is None else {"block": options.block}
    settings = MineSettings(model=str(place / "bert"), pooling="mean", top_k=options.top_k, index=options.index, **more)
    before = peak()
    started = time.perf_counter()
    summary = mine(place / "corpus", settings, Engine(workers=1))
    seconds, times = time.perf_counter() - started, os.times()
    took = {"seconds": round(seconds, 1), "core_seconds": round(times.user + times.system, 1)}
    return took | {"peak_mb": peak(), "peak_mb_before": before, **summary.notes}


def make_vectors(width: int) -> Any:
    """Return a function that takes the place of encoder.encode: unit vectors that depend on nothing but the text."""
    tables = np.random.default_rng(0).standard_normal((3, 1_000, width), np.float32)

    def encode(encoder: Any, texts: pa.Array, prompt: str) -> Any:
        hashes = pl.Series(texts).hash().to_numpy()
        vectors = sum(table[hashes // 1_000**digit % 1_000] for digit, table in enumerate(tables))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def write_corpus(corpus: Path, passages: int, queries: int) -> None:
    """Write records, each with a query and a positive, and passages; every passage is a cluster of its own."""
    random = np.random.default_rng(0)
    characters = "".join(map(chr, random.integers(0x4E00, 0x5E00, 1_000_000)))
    for first in range(0, passages, SHARD):
        numbers = range(first, min(first + SHARD, passages))
        lengths = np.clip(random.lognormal(np.log(MEDIAN), 0.8, len(numbers)), 4, 5_000).astype(int)
        starts = random.integers(0, len(characters) - 5_000, len(numbers))
        texts = pl.Series(
            [f"{characters[at : at + size]}{n}" for n, at, size in zip(numbers, starts, lengths, strict=True)]
        )
        common = {"source": "made", "category": "web_page"}
        frame = pl.DataFrame({"text": texts, "cluster_id": pl.Series(numbers, dtype=pl.Int64)}).with_columns(
            pl.lit([], pl.List(pl.String)).alias("pair_ids"), **{name: pl.lit(value) for name, value in common.items()}
        )
        asked = max(0, min(queries - first, len(numbers)))
        records = frame.head(asked).select(
            "pair_ids",
            "source",
            "category",
            ("问" + pl.col("text").str.slice(0, 16) + pl.col("cluster_id").cast(pl.String)).alias("query"),
            pl.concat_list("text").alias("positives"),
            pl.concat_list("cluster_id").alias("cluster_ids"),
            pl.lit([], pl.List(pl.String)).alias("negatives"),
        )
        write_shard(corpus / "convert" / "retrieval" / f"part-{first // SHARD:05d}.parquet", RETRIEVAL, records)
        write_shard(
            corpus / "convert" / "passages" / f"part-{first // SHARD:05d}.parquet", PASSAGES, frame.slice(asked)
        )


def write_shard(shard: Path, schema: pa.Schema, records: pl.DataFrame) -> None:
    """Write a shard of convert."""
    with ShardWriter(shard, schema, None, stage="convert", version=1, fingerprint="") as writer:
        writer.received(records.height)
        writer.keep(records.to_arrow())


def peak() -> int:
    """Return this process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


if __name__ == "__main__":
    main()
