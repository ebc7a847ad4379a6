"""`conan mine` against `sentence_transformers.util.mine_hard_negatives` (FAISS on): the same model, texts and filter.

Run: `python benchmarks/mine.py --pairs SHARDS [--number 10000] [--turns 3]`, with SHARDS a folder of Parquet shards
with `query` and `positive` (a corpus's `dedup`). Distinct queries with a positive each are drawn by seed; every query
searches all positives for negatives that score below its own. The model is a BERT of 4 layers, 312 wide, with random
weights and mean pooling: what it finds is worth nothing, how long it takes is the same.

A turn has two processes of each side. One encodes all; the other finds the vectors that both sides keep on disk, as
whoever tries another margin does, and mines 10 negatives of each query. Of that one, two times are given: from vectors
to negatives, which is search and filter, and the whole, from texts to what is left: theirs a dataset in memory, ours
pools.duckdb. Theirs looks at 101 neighbours of each query, ours at all passages. Memory is the most that a process
held, with all its libraries and, in theirs always and in ours where something is to be encoded, the model. Given are
medians of the turns.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
from conan_embedding.schemas.training import RETRIEVAL

SHAPE = {"layers": 4, "hidden": 312, "heads": 12, "intermediate": 1200}
NEGATIVES, NEIGHBOURS = 10, 100
"""Of a query; how many neighbours theirs looks at beside the positive."""


def main() -> None:
    """Draw the pairs, let both mine in turn, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="a folder of shards")
    parser.add_argument("--number", type=int, default=10_000, help="queries, and passages")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=[*PROCESSES], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(PROCESSES[options.only](options.place) | {"peak": peak()}))
        return
    took: dict[str, list[dict[str, float]]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, options.pairs, options.number)
        for _ in range(options.turns):
            for only, turns in took.items():
                command = [sys.executable, __file__, "--pairs", options.pairs, "--only", only, "--place", place]
                turns.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
            for kept in (place / "cache", place / "corpus" / "vectors"):
                shutil.rmtree(kept)
            (place / "corpus" / "pools.duckdb").unlink()
    print(f"{options.number:,} queries, {options.number:,} passages")
    medians = {
        only: {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        for only, turns in took.items()
    }
    for step in ("encode", "mine"):
        theirs, ours = medians[f"theirs, {step}"], medians[f"ours, {step}"]
        for name, value in theirs.items():
            print(f"{step:8} {name:20} theirs {value:9,.2f}   ours {ours[name]:9,.2f}   ratio {value / ours[name]:.2f}")


def prepare(place: Path, shards: Path, number: int) -> None:
    """Write the pairs, as a table and as a corpus after convert, and the model."""
    from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
    from conan_embedding.trainer.model.bootstrap import tiny_bert

    pairs = pl.read_parquet(shards / "*.parquet", columns=["query", "positive"])
    pairs = pairs.unique("query", maintain_order=True).unique("positive", maintain_order=True).sample(number, seed=0)
    pairs.write_parquet(place / "pairs.parquet")
    tiny_bert(place / "bert", texts=pl.concat([pairs["query"], pairs["positive"]]).to_arrow(), **SHAPE)
    records = pairs.select(
        pl.lit([], pl.List(pl.String)).alias("pair_ids"),
        pl.lit("drawn").alias("source"),
        pl.lit("web_page").alias("category"),
        "query",
        pl.concat_list("positive").alias("positives"),
        pl.concat_list(pl.int_range(pl.len(), dtype=pl.Int64)).alias("cluster_ids"),
        pl.lit([], pl.List(pl.String)).alias("negatives"),
    )
    shard = place / "corpus" / "convert" / "retrieval" / "part-00000.parquet"
    with ShardWriter(shard, RETRIEVAL, None, stage="convert", version=1, fingerprint="") as writer:
        writer.received(number)
        writer.keep(records.to_arrow())


def our_encoding(place: Path) -> dict[str, float]:
    """Mine for the vectors, without a filter."""
    from conan_embedding.pipeline.engine.calls import Engine
    from conan_embedding.pipeline.mine.stage import mine
    from conan_embedding.schemas.settings import MineSettings

    started = time.perf_counter()
    settings = MineSettings(model=str(place / "bert"), pooling="mean", method="topk", top_k=1)
    mine(place / "corpus", settings, Engine(workers=1))
    return {"seconds": time.perf_counter() - started}


def our_mining(place: Path) -> dict[str, float]:
    """Mine as asked, after another time that is not counted."""
    from conan_embedding.pipeline.corpus.pools import read_candidates
    from conan_embedding.pipeline.engine.calls import Engine
    from conan_embedding.pipeline.mine import stage as module
    from conan_embedding.schemas.settings import MineSettings

    from_vectors = stopwatch(module, "_pools")
    for margin in (0.1, 0):
        settings = MineSettings(
            model=str(place / "bert"), pooling="mean", method="topk-marginpos", margin=margin, top_k=NEGATIVES
        )
        started = time.perf_counter()
        module.mine(place / "corpus", settings, Engine(workers=1))
        whole = time.perf_counter() - started
    negatives = int(read_candidates(place / "corpus")["passage_ids"].list.len().sum())
    return {"search and filter": from_vectors[-1], "whole": whole, "negatives": negatives}


def their_encoding(place: Path) -> dict[str, float]:
    """Mine for the vectors."""
    from sentence_transformers.util import mine_hard_negatives

    pairs, model, common = their_input(place)
    started = time.perf_counter()
    mine_hard_negatives(pairs, model, num_negatives=1, range_max=2, **common)
    return {"seconds": time.perf_counter() - started}


def their_mining(place: Path) -> dict[str, float]:
    """Mine as asked, after another time that is not counted."""
    import numpy as np
    from sentence_transformers.util import mine_hard_negatives

    pairs, model, common = their_input(place)
    loaded: list[float] = []
    load = np.load
    np.load = lambda *arguments, **named: (load(*arguments, **named), loaded.append(time.perf_counter()))[0]
    for margin in (0.1, 0.0):
        started = time.perf_counter()
        found = mine_hard_negatives(
            pairs, model, num_negatives=NEGATIVES, range_max=NEIGHBOURS, absolute_margin=margin, **common
        )
        ended = time.perf_counter()
    negatives = sum(len(labels) - sum(labels) for labels in found["labels"])
    return {"search and filter": ended - loaded[-1], "whole": ended - started, "negatives": negatives}


def their_input(place: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The dataset, the model and the options of both calls."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(place / "bert"), max_seq_length=512)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
    pairs = Dataset.from_polars(pl.read_parquet(place / "pairs.parquet"))
    cache = str(place / "cache")
    return pairs, model, {"use_faiss": True, "cache_folder": cache, "output_format": "labeled-list", "verbose": False}


def stopwatch(place: Any, name: str) -> list[float]:
    """Let a function note the seconds of each of its calls."""
    function, seconds = getattr(place, name), []

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **named)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(place, name, timed)
    return seconds


def peak() -> float:
    """The most megabytes that this process has held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1e6


PROCESSES = {
    "theirs, encode": their_encoding,
    "theirs, mine": their_mining,
    "ours, encode": our_encoding,
    "ours, mine": our_mining,
}

if __name__ == "__main__":
    main()
