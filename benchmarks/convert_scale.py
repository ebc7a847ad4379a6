"""Time and memory of `conan convert` on one large source of questions, or of classified texts.

Run: `python benchmarks/convert_scale.py [--pairs 1000000] [--task classification] [OUT]`. OUT is the corpus folder to
create, or one that an earlier run made with the same options, which is converted again; by default a temporary one is
used. Ten million questions take 2.5 GB of disk, what convert writes as much, and the files that it divides them into
another 5 GB for a while.

The pairs are generated, the same each time, of characters of unequal frequency. A third of the questions ask what
another pair of the source asks, anywhere in it; a positive has 40 to 80 Han characters, and each pair a negative of as
many. Classified texts have 15 to 60 characters and one of 100 classes.

Memory is the resident set size (RSS) of all processes of the command together, sampled ten times a second. Pages shared
by several processes are counted several times.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.schemas.pairs import SCORED, rejected
from conan_embedding.schemas.recipe import Recipe
from dedup_scale import CONAN, SHARD, random_side, watch

REPEATED = 1 / 3
ANSWER, TEXT = (40, 80), (15, 60)
CLASSES = 100


def main() -> None:
    """Generate the corpus, run convert on it, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--task", choices=["retrieval", "classification"], default="retrieval")
    parser.add_argument("out", nargs="?", type=Path, help="the corpus folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run(options.out or Path(place, "corpus"), options.pairs, options.task)


def run(corpus: Path, pairs: int, task: str) -> None:
    """Generate the corpus unless it is there, run convert on it, print the results."""
    if not corpus.exists():
        write_corpus(corpus, pairs, task)
    shutil.rmtree(corpus / "convert", ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, "-c", CONAN, "convert", str(corpus), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    peak, processes = watch(process)
    seconds = time.monotonic() - started
    assert process.stdout is not None
    found = json.loads(process.stdout.read()) if process.returncode == 0 else {"failed": process.returncode}
    print(
        f"conan convert: {pairs:,} pairs ({task}) in {seconds:.0f} s, {pairs / seconds:,.0f} pairs/s, peak memory "
        f"{peak / 1e6:,.0f} MB (RSS of up to {processes} processes together); {found}"
    )


def write_corpus(corpus: Path, pairs: int, task: str) -> None:
    """Write the shards of score and a default recipe."""
    save_recipe(corpus, Recipe())
    for number, start in enumerate(range(0, pairs, SHARD)):
        rows = min(SHARD, pairs - start)
        texts = (questions if task == "retrieval" else classified_texts)(number, start, rows, pairs)
        path = corpus / "score" / f"part-{number:05d}.parquet"
        with ShardWriter(path, SCORED, rejected(SCORED), stage="score", version=1, fingerprint=str(number)) as writer:
            writer.received(rows)
            writer.keep(as_scored(texts, number, task).to_arrow())


def questions(number: int, start: int, rows: int, pairs: int) -> pl.DataFrame:
    """Return a shard's `query, positive, negatives, cluster_id`."""
    rng = np.random.default_rng([3, number])
    asked = np.where(rng.random(rows) < REPEATED, rng.integers(0, pairs, rows), np.arange(start, start + rows))
    negatives = random_side(rng, rows, ANSWER).to_series()
    return pl.DataFrame({"asked": asked, "positive": random_side(rng, rows, ANSWER).to_series()}).select(
        "positive",
        query=pl.format("第{}位顾客问这种药一次吃几片饭前还是饭后", "asked"),
        negatives=negatives.reshape((rows, 1)).arr.to_list(),
        cluster_id=pl.int_range(start, start + rows),
    )


def classified_texts(number: int, start: int, rows: int, pairs: int) -> pl.DataFrame:
    """Return a shard's `query, positive, negatives, cluster_id`: texts and the names of their classes."""
    rng = np.random.default_rng([4, number])
    return pl.DataFrame({"cluster_id": rng.integers(0, CLASSES, rows)}).with_columns(
        query=random_side(rng, rows, TEXT).to_series(),
        positive=pl.format("第{}类", "cluster_id"),
        negatives=pl.lit([], pl.List(pl.String)),
    )


def as_scored(texts: pl.DataFrame, number: int, task: str) -> pl.DataFrame:
    """Add the other columns of schemas.pairs.SCORED; the ids are in random order, as hashes are."""
    ids = np.random.default_rng([5, number]).integers(0, 10**18, texts.height)
    return texts.with_columns(
        pair_id=pl.format("{}{}", pl.Series(ids).cast(pl.String).str.zfill(18), pl.lit(f"{number:014}")),
        source=pl.lit("made_up"),
        category=pl.lit("web_page"),
        format=pl.lit("question_answer"),
        task=pl.lit(task),
        label=pl.lit(None, pl.Float32),
        meta=pl.lit('{"url":"https://example.com/"}'),
        score=pl.lit(None, pl.Float32),
        mismatched=pl.lit(None, pl.Float32),
        rank=pl.lit(None, pl.Int32),
    )


if __name__ == "__main__":
    main()
