"""Time and memory of `conan dedup` on many short pairs, and that it finds the copies among them.

Run: `python benchmarks/dedup_scale.py [--pairs 200000] [OUT]`. OUT is the corpus to make, a folder that is not there
yet; without it the corpus is made in a temporary one. Twenty million pairs take 2 GB of disk, and what dedup writes of
them 9 GB, most of it signatures.

The pairs are made up, the same each time: a query of 8 to 20 Han characters and a positive of 20 to 50, drawn with some
more often than others. Of each shard of at most 500,000 rows, in random order,

- 20 % are near copies of pairs of a shard half as far from the first: one character of the positive and the last of the
  query are others, which leaves a similarity of 0.71 at least on either side;
- 5 % are exact copies of such pairs;
- 5 % have one and the same positive under queries of their own;
- 1 % have another with a running number in it.

The last two are no duplicate pairs, since their queries differ, but each positive's pairs should have one cluster.

Memory is what is resident (RSS) of all processes of the command together, looked at ten times a second; pages that two
of them share count twice.
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
"""Characters of the sides, at least and at most."""
REPEATED_TEXT = "感谢您的提问本店所有商品均支持七天无理由退换货如有任何疑问请随时联系在线客服"
NUMBERED_TEXT = "您好您的订单已经由仓库发出请注意查收快递物流信息如需帮助请提供单号{}号"
"""Under 50 characters, so cut into 3-grams, of which a number of 6 digits changes at most 8 of 40."""


class Side(NamedTuple):
    """Texts as characters one after another: uint16 code points, and how many each text has."""

    points: NDArray[np.uint16]
    lengths: NDArray[np.int64]

    def rows(self, start: int, stop: int) -> "Side":
        """A copy of some of the texts."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        return Side(self.points[ends[start] : ends[stop]].copy(), self.lengths[start:stop])

    def change(self, places: NDArray[np.int64], rows: int) -> None:
        """Put another character at a place, counted from 0, of each of the first texts."""
        self.points[(np.cumsum(self.lengths) - self.lengths + places)[:rows]] += 1

    def to_series(self) -> pl.Series:
        """As strings; each of these characters is three bytes of UTF-8."""
        data = np.empty((len(self.points), 3), np.uint8)
        data[:, 0] = 0xE0 | self.points >> 12
        data[:, 1] = 0x80 | self.points >> 6 & 0x3F
        data[:, 2] = 0x80 | self.points & 0x3F
        offsets = np.concatenate([[0], np.cumsum(3 * self.lengths)]).astype(np.int32)
        return pl.Series(pa.StringArray.from_buffers(len(self.lengths), pa.py_buffer(offsets), pa.py_buffer(data)))


def main() -> None:
    """Make the corpus, dedup it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("out", nargs="?", type=Path, help="the corpus to make")
    options = parser.parse_args()
    if options.out is not None and options.out.exists():
        parser.error(f"{options.out} is there already; remove it or name another folder")
    with tempfile.TemporaryDirectory() as place:
        run(options.out or Path(place, "corpus"), options.pairs)


def run(corpus: Path, pairs: int) -> None:
    """The same on a corpus folder that is not there yet."""
    started = time.monotonic()
    made = write_corpus(corpus, pairs)
    size = sum(shard.stat().st_size for shard in corpus.glob("filter/*.parquet"))
    print(
        f"{made['rows']:,} pairs made in {time.monotonic() - started:.0f} s, {size / 1e6:,.0f} MB of Parquet",
        flush=True,
    )
    started = time.monotonic()
    command = [sys.executable, "-c", CONAN, "dedup", str(corpus), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    peak, processes = watch(process)
    seconds = time.monotonic() - started
    if process.returncode:
        sys.exit(f"conan dedup ended with {process.returncode} after {seconds:.0f} s and {peak / 1e6:,.0f} MB")
    print(
        f"conan dedup: {seconds:.0f} s, {made['rows'] / seconds:,.0f} rows/s, at most {peak / 1e6:,.0f} MB resident "
        f"(RSS of up to {processes} processes together)"
    )
    assert process.stdout is not None
    print_findings(corpus, made, json.loads(process.stdout.read())["rejected"])


# Pairs.


def write_corpus(corpus: Path, pairs: int) -> dict[str, int]:
    """Write shards of equal size and a recipe of defaults; returns how many pairs there are of each kind, and rows."""
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
    """The texts of a shard, `query, positive`, in random order."""
    near, exact, repeated, numbered = (counts[kind] for kind in SHARES)
    fresh = counts["rows"] - near - exact - repeated - numbered
    rng = np.random.default_rng([1, number])
    queries, positives = fresh_pairs(number, fresh)
    # Two shards copy from each, so they take different rows of it.
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
    """The queries and positives of a shard that are copies of nothing, the same whenever they are asked for."""
    rng = np.random.default_rng([0, number])
    return random_side(rng, rows, QUERY), random_side(rng, rows, POSITIVE)


def random_side(rng: np.random.Generator, rows: int, characters: tuple[int, int]) -> Side:
    """Texts of 3,000 characters, of which the first are drawn more often than the last."""
    lengths = rng.integers(characters[0], characters[1], rows, endpoint=True)
    return Side((0x4E00 + 3_000 * rng.random(lengths.sum(), np.float32) ** 2).astype(np.uint16), lengths)


def as_pairs(texts: pl.DataFrame, start: int) -> pl.DataFrame:
    """With the other columns of schemas.pairs.PAIR."""
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
    """Until it ends: the most bytes that all processes of its session held together, and the most processes."""
    peak = processes = 0
    while process.poll() is None:
        resident = [size for place in Path("/proc").glob("[0-9]*") if (size := _resident(place, process.pid))]
        peak, processes = max(peak, sum(resident)), max(processes, len(resident))
        time.sleep(0.1)
    return peak, processes


def _resident(place: Path, session: int) -> int:
    """Bytes that a process holds; 0 if it is of another session or has ended."""
    try:
        after_name = (place / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return PAGE * int(after_name[21]) if int(after_name[3]) == session else 0


def print_findings(corpus: Path, made: dict[str, int], rejects: dict[str, int]) -> None:
    """What was found of what is known to be there."""
    exact, near = (rejects.get(reason, 0) for reason in ("exact_duplicate", "near_duplicate"))
    print(f"exact copies: {exact:,} found of {made['exact']:,}")
    print(f"near copies: {near:,} found of {made['near']:,}, {near / made['near']:.1%}")
    kept = pl.scan_parquet(corpus / "dedup" / "part-*.parquet")
    for kind, text in (("repeated", REPEATED_TEXT), ("numbered", NUMBERED_TEXT)):
        found = kept.filter(pl.col("positive").str.starts_with(text.partition("{")[0]))
        rows, clusters = found.select(pl.len(), pl.col("cluster_id").n_unique()).collect(engine="streaming").row(0)
        print(f"{kind} positive: {rows:,} kept of {made[kind]:,}, in {clusters:,} clusters")


if __name__ == "__main__":
    main()
