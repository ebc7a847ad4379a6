"""Memory and speed of reading training pairs by number of pairs, on which neither should depend.

Run: `python benchmarks/loader.py [--pairs 10000 100000 1000000] [--updates 200]`. A million pairs take 2 GB of disk in
a temporary folder.

The pairs are generated: a query of 16 Han characters and a positive of 200, in ten sources that double in size from one
to the next. They are written as shards, as by `conan convert`, then exported as for a training run. Another process
reads `--updates` batches of 256 pairs, first from the start of the order, then from a point after 100 epochs, as a
resumed run would.

Memory is the process's own (RssAnon in Linux's /proc/self/status), without pages of mapped files, which the kernel can
drop at any time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import Mixing
from conan_embedding.trainer.data.batches import pretrain_batch
from conan_embedding.trainer.data.sampler import Sampler
from conan_embedding.trainer.data.training_tables import read_pairs, write_pairs

SHARD = 200_000
BATCH = 256
SOURCES = 10
QUERY, POSITIVE = 16, 200


def main() -> None:
    """Print a line for each number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--step", choices=["write", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "write":
        write(arguments.folder)
    elif arguments.step == "read":
        read(arguments.folder, arguments.updates)
    else:
        print(f"{'pairs':>9}  export                    reading {arguments.updates} batches of {BATCH}")
        for count in arguments.pairs:
            with tempfile.TemporaryDirectory() as folder:
                make(Path(folder), count)
                print(f"{count:>9,}  {step('write', folder, 1)}  {step('read', folder, arguments.updates)}", flush=True)


def make(folder: Path, count: int) -> None:
    """Write shards of `count` pairs."""
    random = np.random.default_rng(count)
    odds = 2.0 ** np.arange(SOURCES)
    for number, start in enumerate(range(0, count, SHARD)):
        rows = min(SHARD, count - start)
        table = {
            "query": texts(random, rows, QUERY),
            "positive": texts(random, rows, POSITIVE),
            "cluster_id": pa.array(np.arange(start, start + rows)),
            "source": pa.array([f"source {each}" for each in random.choice(SOURCES, rows, p=odds / odds.sum())]),
            "category": pa.array(["news"] * rows),
        }
        pq.write_table(pa.table(table), folder / f"part-{number:05d}.parquet", row_group_size=64_000)


def texts(random: np.random.Generator, rows: int, characters: int) -> pa.Array:
    """Generate texts of random Han characters, which take three bytes each in UTF-8."""
    points = random.integers(0x4E00, 0x9FA5, rows * characters)
    encoded = np.stack([0xE0 | points >> 12, 0x80 | points >> 6 & 0x3F, 0x80 | points & 0x3F], axis=1).astype(np.uint8)
    offsets = np.arange(rows + 1) * (3 * characters)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(encoded.tobytes())]
    return pa.Array.from_buffers(pa.string(), rows, buffers)


def step(name: str, folder: str, updates: int) -> str:
    """Run one step in a process of its own; return what it prints."""
    command = [sys.executable, __file__, "--step", name, "--folder", folder, "--updates", str(updates)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(folder: Path) -> None:
    """Export the shards as for a training run."""
    shards = sorted(folder.glob("*.parquet"))
    (folder / "data").mkdir()
    begin = time.perf_counter()
    write_pairs(folder / "data", shards)
    taken = time.perf_counter() - begin
    size = sum(file.stat().st_size for file in (folder / "data").iterdir())
    print(f"{taken:5.1f} s, {size / 1e6:7.1f} MB of disk")


def read(folder: Path, updates: int) -> None:
    """Read batches from two positions in the order."""
    before = anonymous()
    begin = time.perf_counter()
    data = read_pairs(folder / "data")
    order = Sampler(data.sources, Mixing(), seed=0)
    pretrain_batch(data, order.draw(0, BATCH)[0], Prompts())
    opened = time.perf_counter() - begin
    speeds, memory = [], [anonymous()]
    for first in (0, 100 * len(data.pairs) // BATCH):
        order.draw(first * BATCH, first * BATCH + 1)  # pay for the jump outside the timed part
        begin = time.perf_counter()
        for number in range(first, first + updates):
            pretrain_batch(data, order.draw(number * BATCH, (number + 1) * BATCH)[0], Prompts())
        speeds.append(updates * BATCH / (time.perf_counter() - begin))
        memory.append(anonymous())
    print(
        f"first batch after {opened * 1e3:4.0f} ms; {speeds[0]:6,.0f} pairs/s, after 100 epochs {speeds[1]:6,.0f}; "
        f"{max(memory):.0f} MB in all, {max(memory) - before:.1f} of them for reading"
    )


def anonymous() -> float:
    """Return this process's own memory in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


if __name__ == "__main__":
    main()
