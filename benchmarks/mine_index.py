"""Recall and time of mining's default index, which is used above a million passages.

Run: `python benchmarks/mine_index.py [--passages 1200000] [--width 256] [--queries 1000]`. The vectors are generated:
each passage is one of 20,000 centres plus noise of the same length, and each query is near a passage. Recall@100 is the
share of a query's 100 best passages (found by comparing all) that the search returns. Passages are mapped from a file.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from conan_embedding.pipeline.mine.search import Rules, default_index, search

TOP, CENTRES, BLOCK = 100, 20_000, 100_000


def main() -> None:
    """Generate the vectors, search both ways, print recall and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_200_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "passages.npy")
        write(file, options.passages, options.width)
        passages = np.load(file, mmap_mode="r")
        rng = np.random.default_rng(1)
        queries = noisy(np.asarray(passages[rng.choice(len(passages), options.queries, replace=False)]), rng)
        started = time.perf_counter()
        expected = brute_force(queries, passages)
        compared = time.perf_counter() - started
        nothing = np.zeros(0, np.int64)
        rules = Rules(
            np.full(len(queries), np.inf, np.float32),
            np.zeros(len(queries) + 1, np.int64),
            nothing,
            np.zeros(len(passages) + 1, np.int64),
            nothing,
        )
        started = time.perf_counter()
        best = search(lambda rows: queries[rows], lambda rows: np.asarray(passages[rows]), rules, TOP)
        found = np.concatenate([block.ids for block in best])
        searched = time.perf_counter() - started
    shared = [len(np.intersect1d(one, other)) for one, other in zip(found, expected, strict=True)]
    print(f"{options.passages:,} passages of width {options.width}, {default_index(options.passages)} per shard")
    print(f"recall@{TOP}: {np.mean(shared) / TOP:.4f}, worst query {min(shared) / TOP:.2f}")
    print(f"index and search: {searched:.1f} s; brute force for {len(queries):,} queries: {compared:.1f} s")


def noisy(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return unit vectors near the given ones, float32."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True) / vectors.shape[1] ** 0.5
    moved = vectors + length * rng.standard_normal(vectors.shape, np.float32)
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), np.float32)


def write(file: Path, count: int, width: int) -> None:
    """Generate the passages and write them, one block at a time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, width), np.float32)
    mapped = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, width))
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        mapped[rows] = noisy(centres[rng.integers(0, CENTRES, rows.stop - start)], rng)
    mapped.flush()


def brute_force(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Return the best passages of each query, int64 [queries, TOP], in no particular order."""
    scores, places = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(passages), BLOCK):
        here = queries @ np.asarray(passages[start : start + BLOCK]).T
        numbers = np.broadcast_to(np.arange(start, start + here.shape[1]), here.shape)
        scores, places = np.hstack([scores, here]), np.hstack([places, numbers])
        best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        scores, places = np.take_along_axis(scores, best, 1), np.take_along_axis(places, best, 1)
    return places


if __name__ == "__main__":
    main()
