"""How much time and memory does the part of dedup take that is not divided by shards, at hundreds of millions of pairs?

Run: `python benchmarks/dedup_driver.py --rows 750000000 [--work FOLDER]`. Shards are signed, sorted into buckets and
compared by calls of bounded memory, on any number of machines. What is left to the driver, for each side of the pairs,
are the steps below; they run here as in `conan dedup`, on made-up hashes and edges:

- `equal`: find the rows with equal texts, by their hashes: a share SAME of all rows has the text of another row;
- `join`: join the two rows of each edge that was found similar. There is an edge for a share NEAR of all rows, in
  files of at most EDGES, with rows at random, which is the worst case for caches and for the depth of trees;
- `least`: give each row the smallest hash of its cluster;
- `duplicates`: find the rows with the same duplicate key, once for both sides.

Peak memory is the resident set size of the process; the arrays that every step shares are in it.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from conan_embedding.pipeline.dedup import clusters
from conan_embedding.pipeline.dedup.blocks import save
from conan_embedding.pipeline.dedup.lsh import find_equal

SAME, NEAR = 0.1, 0.2
EDGES = 1 << 22
AT_ONCE = 1 << 24  # rows made up at a time


def main() -> None:
    """Run each step and print its time and the peak memory so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="a folder for 16 bytes per row")
    options = parser.parse_args()
    print(f"{options.rows:,} pairs")
    for rows in (1_000, options.rows):  # the first compiles
        run(rows, options.work, quiet=rows != options.rows)


def run(rows: int, work: Path, quiet: bool) -> None:
    """Run the steps on `rows` made-up rows."""
    generator = np.random.default_rng(0)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        if not quiet:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"  {step:10} {time.monotonic() - started:7.1f} s, peak {peak:5.1f} GB", flush=True)

    with tempfile.TemporaryDirectory(dir=work) as place:
        with timed("(made up)"):
            hashes = np.empty(rows, np.int64)
            for start in range(0, rows, AT_ONCE):
                part = generator.integers(1 << 63, size=min(AT_ONCE, rows - start))
                again = generator.random(len(part)) < SAME if start else np.zeros(len(part), np.bool_)
                part[again] = hashes[generator.integers(max(start, 1), size=int(again.sum()))]
                hashes[start : start + len(part)] = part
            similar = np.ones(rows, np.bool_)
        with timed("equal"):
            forest = clusters._find_equal_texts(hashes, similar)
            save(Path(place, "equals.npy"), forest)
            save(Path(place, "compared.npy"), similar & clusters._is_root(forest))
        del similar
        with timed("join"):
            for start in range(0, int(rows * NEAR), EDGES):
                left, right = generator.integers(rows, size=(2, min(EDGES, int(rows * NEAR) - start)))
                apart = clusters._apart(forest, left, right)
                clusters._join(forest, left[apart], right[apart])
        with timed("least"):
            clusters._take_least(forest, hashes)
            save(Path(place, "ids.npy"), hashes)
        del forest
        with timed("duplicates"):
            has_duplicate = np.zeros(rows, np.bool_)
            for edges in find_equal(hashes.view(np.uint64)):
                for found in edges:
                    has_duplicate[found] = True
        assert rows < 10_000 or SAME < has_duplicate.mean() < 2 * (SAME + NEAR)


if __name__ == "__main__":
    main()
