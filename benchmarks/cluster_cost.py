"""Compute the cost of 10, 100 and 750 million pairs, stage by stage.

Run: `python benchmarks/cluster_cost.py`. It measures nothing: it multiplies the unit costs below, each with the script
that measured it, and prints the tables of docs/cluster.md. Put in those of your own machines and pairs.
"""

from typing import NamedTuple

PAIRS = (10_000_000, 100_000_000, 750_000_000)

JSON_BYTES = 1_000
"""Assumed: bytes of JSONL per pair, a query of 20 characters and a passage of 300."""
TOKENS = 240
"""Assumed: tokens per pair, of which 20 are the query's."""
STORED = 0.6
"""Measured on a corpus of real pairs: bytes of a Parquet shard per byte of its texts."""
SHARD_BYTES = 64 << 20
"""pipeline/ingest/splits.py: bytes of input per shard."""

PART_BYTES, LISTED = 16 << 20, 1_000
"""pipeline/corpus/object_store.py: bytes of a part of an upload; objects that one request lists."""

LAYERS, WIDTH = 24, 1024
"""The shape of bge-large-zh."""
FLOP_PER_SECOND = 0.4 * 989e12
"""Assumed: an H100 or H200 in bf16 at 40 % of its peak. Nothing has been measured on a GPU."""


class Stage(NamedTuple):
    """Pairs per second and core, passes of a model over each pair, and bytes per pair in the driver."""

    name: str
    pairs_per_second: float = 0
    passes: float = 0
    driver: float = 0
    writes: bool = True


STAGES = (
    Stage("ingest", 49.5e6 / JSON_BYTES),  # ingest.py
    Stage("filter", 80e6 / JSON_BYTES),  # filter.py
    Stage("dedup", 25_500, driver=14),  # dedup_scale.py; the driver: dedup_driver.py
    Stage("score", passes=1),
    Stage("convert", 14_500),  # convert_scale.py
    Stage("pretrain, one epoch", passes=3, writes=False),  # a backward pass is two forward ones
)


def main() -> None:
    """Print the tables."""
    flop = TOKENS * LAYERS * (2 * 12 * WIDTH**2 + 4 * TOKENS * WIDTH)
    print("| stage | " + " | ".join(f"{pairs // 10**6} M pairs" for pairs in PAIRS) + " |")
    print("|---|" + "---|" * len(PAIRS))
    for stage in STAGES:
        print(f"| {stage.name} | " + " | ".join(describe(stage, pairs, flop) for pairs in PAIRS) + " |")
    print(f"| requests to an object store | {' | '.join(map(count_requests, PAIRS))} |")


def describe(stage: Stage, pairs: int, flop: float) -> str:
    """Describe the cost of a stage; `flop` is the floating-point operations of a forward pass over a pair."""
    costs = []
    if stage.pairs_per_second:
        costs.append(f"{pairs / stage.pairs_per_second / 3600:,.1f} core hours")
    if stage.passes:
        costs.append(f"{pairs * flop * stage.passes / FLOP_PER_SECOND / 3600:,.1f} GPU hours")
    if stage.writes:
        size = pairs * JSON_BYTES * STORED
        costs.append(f"{-(-pairs * JSON_BYTES // SHARD_BYTES):,} shards, {size / 1e9:,.0f} GB")
    if stage.driver:
        costs.append(f"driver {pairs * stage.driver / 1e9 + 1:,.1f} GB")
    return "; ".join(costs)


def count_requests(pairs: int) -> str:
    """Count the requests of a stage that reads as many shards, with their rejects, as it writes."""
    shards = -(-pairs * JSON_BYTES // SHARD_BYTES)
    parts = -(-int(SHARD_BYTES * STORED) // PART_BYTES)
    written = shards * (1 + 2 + parts)  # rejects in one request, a shard in parts, which are begun and ended
    listed = len(STAGES) * 2 * shards // LISTED
    return f"{2 * shards:,} reads, {written:,} writes, {1 + listed:,} lists per stage"


if __name__ == "__main__":
    main()
