"""Compare `conan mine` with `sentence_transformers.util.mine_hard_negatives` on the same model, texts and filter.

Run: `python benchmarks/mine.py --pairs SHARDS [--number 10000] [--turns 3]`, where SHARDS is a folder of Parquet shards
with `query` and `positive` (such as a corpus's `dedup`). Distinct queries with one positive each are drawn at random;
every query searches all positives for negatives that score below its own positive. The model is a BERT with 4 layers of
width 312, random weights and mean pooling: the negatives are meaningless, but mining takes just as long. The other
library searches with FAISS.

In a turn, each library runs two processes. The first encodes all texts. The second reuses the vectors that both
libraries keep on disk, as when trying another margin, and mines 10 negatives per query. For the second, two times are
given: search and filter, from vectors to negatives; and the whole, from texts to the result, which is a dataset in
memory for sentence-transformers ("theirs") and pools.duckdb for Conan ("ours"). Theirs looks at 101 neighbours per
query, ours at all passages. Memory is the peak of a process with all its libraries, and with the model, which theirs
always loads, ours only to encode. Medians over the turns are given.
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
"""Negatives per query; neighbours that sentence-transformers looks at, apart from the positive."""


def main() -> None:
    """Draw the pairs, run both libraries in turn, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="a folder of shards")
    parser.add_argument("--number", type=int, default=10_000, help="number of queries and of passages")
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
    """Write the pairs, as a table and as a corpus in the state after convert, and the model."""
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
    """Mine without a filter, just to compute the vectors."""
    from conan_embedding.pipeline.engine.calls import Engine
    from conan_embedding.pipeline.mine.stage import mine
    from conan_embedding.schemas.settings import MineSettings

    started = time.perf_counter()
    settings = MineSettings(model=str(place / "bert"), pooling="mean", method="topk", top_k=1)
    mine(place / "corpus", settings, Engine(workers=1))
    return {"seconds": time.perf_counter() - started}


def our_mining(place: Path) -> dict[str, float]:
    """Mine with a filter, after a first call that is not timed."""
    from conan_embedding.pipeline.corpus.pools import read_candidates
    from conan_embedding.pipeline.engine.calls import Engine
    from conan_embedding.pipeline.mine import stage as module
    from conan_embedding.schemas.settings import MineSettings

    from_vectors = stopwatch(module, "_fill_pools")
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
    """Mine just to compute the vectors."""
    from sentence_transformers.util import mine_hard_negatives

    pairs, model, common = their_input(place)
    started = time.perf_counter()
    mine_hard_negatives(pairs, model, num_negatives=1, range_max=2, **common)
    return {"seconds": time.perf_counter() - started}


def their_mining(place: Path) -> dict[str, float]:
    """Mine with a filter, after a first call that is not timed."""
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
    """Return the dataset, the model and the options shared by both calls."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(place / "bert"), max_seq_length=512)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
    pairs = Dataset.from_polars(pl.read_parquet(place / "pairs.parquet"))
    cache = str(place / "cache")
    return pairs, model, {"use_faiss": True, "cache_folder": cache, "output_format": "labeled-list", "verbose": False}


def stopwatch(place: Any, name: str) -> list[float]:
    """Wrap a function so that it records the seconds of each call; return the list of records."""
    function, seconds = getattr(place, name), []

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **named)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(place, name, timed)
    return seconds


def peak() -> float:
    """Return this process's peak memory in MB."""
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
