"""Time and memory of `conan dedup` on many short pairs, and how many of the copies among them it finds.

Run: `python benchmarks/dedup_scale.py [--pairs 200000] [OUT]`. OUT is the corpus folder to create, which must not
exist; by default a temporary one is used. Twenty million pairs take 2 GB of disk, and the output of dedup another 9 GB,
mostly signatures.

The pairs are generated, the same each time: a query of 8 to 20 Han characters and a positive of 20 to 50, with
characters of unequal frequency. A shard has at most 500,000 rows, in random order. In shard i,

- 20 % are near copies of pairs of shard i // 2: one character of the positive and the last of the query are replaced,
  which leaves a similarity of at least 0.71 on both sides;
- 5 % are exact copies of such pairs;
- 5 % have the same boilerplate positive, with different queries;
- 1 % have another boilerplate positive, with a running number in it and different queries.

The last two are not duplicate pairs, as their queries differ, but the pairs of each boilerplate text should have one
cluster id.

Memory is the resident set size (RSS) of all processes of the command together, sampled ten times a second. Pages shared
by several processes are counted several times.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from conan_embedding.pipeline.corpus.saved_recipe import save_recipe
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.schemas.pairs import PAIR, rejected
from conan_embedding.schemas.recipe import Recipe
from numpy.typing import NDArray

CONAN = "from conan_embedding.cli import main; main()"
PAGE = os.sysconf("SC_PAGE_SIZE")
SHARD = 500_000
SHARES = {"near": 0.2, "exact": 0.05, "repeated": 0.05, "numbered": 0.01}
QUERY, POSITIVE = (8, 20), (20, 50)
"""Minimum and maximum number of characters of each side."""
REPEATED_TEXT = "感谢您的提问本店所有商品均支持七天无理由退换货如有任何疑问请随时联系在线客服"
NUMBERED_TEXT = "您好您的订单已经由仓库发出请注意查收快递物流信息如需帮助请提供单号{}号"
"""Fewer than 50 characters, so split into 3-grams; a number of 6 digits changes at most 8 of 40."""


class Side(NamedTuple):
    """Concatenated texts: uint16 code points, and the number of code points of each text."""

    points: NDArray[np.uint16]
    lengths: NDArray[np.int64]

    def rows(self, start: int, stop: int) -> "Side":
        """Return a copy of texts `start` to `stop`."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        return Side(self.points[ends[start] : ends[stop]].copy(), self.lengths[start:stop])

    def change(self, places: NDArray[np.int64], rows: int) -> None:
        """Replace one character in each of the first `rows` texts; `places` are its positions, counted from 0."""
        self.points[(np.cumsum(self.lengths) - self.lengths + places)[:rows]] += 1

    def to_series(self) -> pl.Series:
        """Return the texts as strings. Each of these characters takes three bytes of UTF-8."""
        data = np.empty((len(self.points), 3), np.uint8)
        data[:, 0] = 0xE0 | self.points >> 12
        data[:, 1] = 0x80 | self.points >> 6 & 0x3F
        data[:, 2] = 0x80 | self.points & 0x3F
        offsets = np.concatenate([[0], np.cumsum(3 * self.lengths)]).astype(np.int32)
        return pl.Series(pa.StringArray.from_buffers(len(self.lengths), pa.py_buffer(offsets), pa.py_buffer(data)))


def main() -> None:
    """Generate the corpus, run dedup on it, print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("out", nargs="?", type=Path, help="the corpus folder to create")
    options = parser.parse_args()
    if options.out is not None and options.out.exists():
        parser.error(f"{options.out} exists already; remove it or choose another folder")
    with tempfile.TemporaryDirectory() as place:
        run(options.out or Path(place, "corpus"), options.pairs)


def run(corpus: Path, pairs: int) -> None:
    """Generate a corpus, run dedup on it, print the results; `corpus` must not exist yet."""
    started = time.monotonic()
    made = write_corpus(corpus, pairs)
    size = sum(shard.stat().st_size for shard in corpus.glob("filter/*.parquet"))
    print(
        f"{made['rows']:,} pairs generated in {time.monotonic() - started:.0f} s, {size / 1e6:,.0f} MB of Parquet",
        flush=True,
    )
    started = time.monotonic()
    command = [sys.executable, "-c", CONAN, "dedup", str(corpus), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    peak, processes = watch(process)
    seconds = time.monotonic() - started
    if process.returncode:
        sys.exit(
            f"conan dedup failed with exit code {process.returncode} after {seconds:.0f} s, using {peak / 1e6:,.0f} MB"
        )
    print(
        f"conan dedup: {seconds:.0f} s, {made['rows'] / seconds:,.0f} rows/s, peak memory {peak / 1e6:,.0f} MB "
        f"(RSS of up to {processes} processes together)"
    )
    assert process.stdout is not None
    print_findings(corpus, made, json.loads(process.stdout.read())["rejected"])


# Pairs.


def write_corpus(corpus: Path, pairs: int) -> dict[str, int]:
    """Write shards of equal size and a default recipe; return the number of pairs of each kind, and of rows."""
    save_recipe(corpus, Recipe())
    shards = -(-pairs // SHARD)
    counts = {kind: round(share * pairs / shards) for kind, share in SHARES.items()} | {"rows": pairs // shards}
    for number in range(shards):
        frame = as_pairs(shard_texts(number, counts), number * counts["rows"])
        path = corpus / "filter" / f"part-{number:05d}.parquet"
        with ShardWriter(path, PAIR, rejected(PAIR), stage="filter", version=1, fingerprint=str(number)) as writer:
            writer.received(frame.height)
            writer.keep(frame.to_arrow())
    return {kind: shards * count for kind, count in counts.items()}


def shard_texts(number: int, counts: dict[str, int]) -> pl.DataFrame:
    """Return the texts of a shard, `query, positive`, in random order."""
    near, exact, repeated, numbered = (counts[kind] for kind in SHARES)
    fresh = counts["rows"] - near - exact - repeated - numbered
    rng = np.random.default_rng([1, number])
    queries, positives = fresh_pairs(number, fresh)
    # Two shards copy from the same one, so they copy different rows.
    start = (near + exact) * (number % 2)
    copied_queries, copied_positives = (
        side.rows(start, start + near + exact) for side in fresh_pairs(number // 2, fresh)
    )
    copied_queries.change(copied_queries.lengths - 1, near)
    copied_positives.change(rng.integers(0, copied_positives.lengths), near)
    own = random_side(rng, repeated + numbered, QUERY)
    first = number * numbered
    boilerplate = [
        pl.repeat(REPEATED_TEXT, repeated, eager=True),
        pl.select(pl.format(NUMBERED_TEXT, pl.int_range(first, first + numbered))).to_series(),
    ]
    texts = pl.DataFrame(
        {
            "query": pl.concat(side.to_series() for side in (queries, copied_queries, own)),
            "positive": pl.concat([positives.to_series(), copied_positives.to_series(), *boilerplate]),
        }
    )
    return texts[rng.permutation(texts.height)]


def fresh_pairs(number: int, rows: int) -> tuple[Side, Side]:
    """Return the queries and positives of a shard that are not copies; every call returns the same."""
    rng = np.random.default_rng([0, number])
    return random_side(rng, rows, QUERY), random_side(rng, rows, POSITIVE)


def random_side(rng: np.random.Generator, rows: int, characters: tuple[int, int]) -> Side:
    """Generate texts from 3,000 different characters, the first of which are more frequent than the last."""
    lengths = rng.integers(characters[0], characters[1], rows, endpoint=True)
    return Side((0x4E00 + 3_000 * rng.random(lengths.sum(), np.float32) ** 2).astype(np.uint16), lengths)


def as_pairs(texts: pl.DataFrame, start: int) -> pl.DataFrame:
    """Add the other columns of schemas.pairs.PAIR."""
    return texts.select(
        pl.int_range(start, start + texts.height).cast(pl.String).str.zfill(32).alias("pair_id"),
        pl.lit("made_up").alias("source"),
        pl.lit("web_page").alias("category"),
        pl.lit("question_answer").alias("format"),
        pl.lit("pretrain").alias("task"),
        "query",
        "positive",
        pl.lit([], pl.List(pl.String)).alias("negatives"),
        pl.lit(None, pl.Float32).alias("label"),
        pl.lit("{}").alias("meta"),
    )


# The run.


def watch(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Wait for a process to end; return the peak memory of its session in bytes, and the most processes it had."""
    peak = processes = 0
    while process.poll() is None:
        resident = [size for place in Path("/proc").glob("[0-9]*") if (size := _resident(place, process.pid))]
        peak, processes = max(peak, sum(resident)), max(processes, len(resident))
        time.sleep(0.1)
    return peak, processes


def _resident(place: Path, session: int) -> int:
    """Return a process's resident bytes, or 0 if it belongs to another session or has ended."""
    try:
        after_name = (place / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return PAGE * int(after_name[21]) if int(after_name[3]) == session else 0


def print_findings(corpus: Path, made: dict[str, int], rejects: dict[str, int]) -> None:
    """Print how many of the known copies were found."""
    exact, near = (rejects.get(reason, 0) for reason in ("exact_duplicate", "near_duplicate"))
    print(f"exact copies: {exact:,} of {made['exact']:,} found")
    print(f"near copies: {near:,} of {made['near']:,} found, {near / made['near']:.1%}")
    kept = pl.scan_parquet(corpus / "dedup" / "part-*.parquet")
    for kind, text in (("repeated", REPEATED_TEXT), ("numbered", NUMBERED_TEXT)):
        found = kept.filter(pl.col("positive").str.starts_with(text.partition("{")[0]))
        rows, clusters = found.select(pl.len(), pl.col("cluster_id").n_unique()).collect(engine="streaming").row(0)
        print(f"{kind} positive: {rows:,} of {made[kind]:,} kept, in {clusters:,} clusters")


if __name__ == "__main__":
    main()
