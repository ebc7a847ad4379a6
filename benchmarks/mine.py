"""`conan mine` against `sentence_transformers.util.mine_hard_negatives` (FAISS on): the same model, texts and filter.

Run: `python benchmarks/mine.py --pairs SHARDS [--number 10000] [--turns 3]`, with SHARDS a folder of Parquet shards
with `query` and `positive` (a corpus's `dedup`). Distinct queries with a positive each are drawn by seed; every query
searches all positives for negatives that score below its own. The model is a BERT of 4 layers, 312 wide, with random
weights and mean pooling: what it finds is worth nothing, how long it takes is the same.

Each turn is a process of its own. First all is encoded; then, with the vectors that both keep on disk, everything else
is timed, from texts to 10 negatives of each query. Theirs looks at 101 neighbours and ends with a dataset in memory;
ours looks at all passages and writes pools.duckdb. Beside it stands what of this is the search: theirs by FAISS alone,
ours with the filter. Memory is the most that the process held, with all its libraries and the model. Given are medians
of the turns.
"""

import argparse
import json
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
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps({"ours": ours, "theirs": theirs}[options.only](options.place)))
        return
    took: dict[str, list[dict[str, float]]] = {"theirs": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, options.pairs, options.number)
        for _ in range(options.turns):
            for only, turns in took.items():
                command = [sys.executable, __file__, "--pairs", options.pairs, "--only", only, "--place", place]
                turns.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    print(f"{options.number:,} queries, {options.number:,} passages")
    medians = {
        only: {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        for only, turns in took.items()
    }
    for only, figures in medians.items():
        print(
            f"{only:8} encoding {figures['encoding']:7.1f} s   all else {figures['mining']:6.2f} s, of it the search "
            f"{figures['searching']:.2f}   peak {figures['peak']:6,.0f} MB   {figures['negatives']:,.0f} negatives"
        )
    for name in ("encoding", "mining", "searching", "peak"):
        print(f"theirs / ours, {name}: {medians['theirs'][name] / medians['ours'][name]:.2f}")


def prepare(place: Path, shards: Path, number: int) -> None:
    """Write the pairs, as a table and as a corpus after convert, and the model."""
    from conan_embedding.pipeline.corpus import ShardWriter
    from conan_embedding.trainer.bootstrap import tiny_bert

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


def ours(place: Path) -> dict[str, float]:
    """Mine once for the vectors, without a filter; then as asked, with the model loaded as in theirs."""
    import shutil

    from conan_embedding.pipeline import mine as module
    from conan_embedding.pipeline.engine import Engine
    from conan_embedding.pipeline.mine import mine
    from conan_embedding.pipeline.pools import read_candidates
    from conan_embedding.schemas.settings import MineSettings

    corpus, model = place / "corpus", str(place / "bert")
    searched = stopwatch(module, "search")
    started = time.perf_counter()
    mine(corpus, MineSettings(model=model, pooling="mean", method="topk", top_k=1), Engine(workers=1))
    encoded = time.perf_counter()
    settings = MineSettings(model=model, pooling="mean", method="topk-marginpos", margin=0, top_k=NEGATIVES)
    mine(corpus, settings, Engine(workers=1))
    mined = time.perf_counter()
    negatives = int(read_candidates(corpus)["passage_ids"].list.len().sum())
    for made in ("vectors", "pools.duckdb"):
        path = corpus / made
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return figures(encoded - started, mined - encoded, searched[-1], negatives)


def theirs(place: Path) -> dict[str, float]:
    """Mine once for the vectors, then as asked."""
    import faiss
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.util import mine_hard_negatives

    transformer = Transformer(str(place / "bert"), max_seq_length=512)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")])
    searched = stopwatch(faiss.IndexFlatIP, "search")
    pairs = Dataset.from_polars(pl.read_parquet(place / "pairs.parquet"))
    with tempfile.TemporaryDirectory() as cache:
        common = {"use_faiss": True, "cache_folder": cache, "output_format": "labeled-list", "verbose": False}
        started = time.perf_counter()
        mine_hard_negatives(pairs, model, num_negatives=1, range_max=2, **common)
        encoded = time.perf_counter()
        found = mine_hard_negatives(
            pairs, model, num_negatives=NEGATIVES, range_max=NEIGHBOURS, absolute_margin=0.0, **common
        )
        mined = time.perf_counter()
    negatives = sum(len(labels) - sum(labels) for labels in found["labels"])
    return figures(encoded - started, mined - encoded, searched[-1], negatives)


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


def figures(encoding: float, mining: float, searching: float, negatives: int) -> dict[str, float]:
    """Seconds, how many negatives there are, and the most megabytes that this process has held."""
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return {
        "encoding": encoding,
        "mining": mining,
        "searching": searching,
        "negatives": negatives,
        "peak": 1024 * int(peak.split()[1]) / 1e6,
    }


if __name__ == "__main__":
    main()
