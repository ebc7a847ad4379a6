"""Compare `conan ingest` with other readers on one large JSONL file: time and memory; no row may be lost.

Run: `python benchmarks/ingest.py [--megabytes 2000] [--workers 0] [--peers PYTHON]`. The file is generated first:
records with a title, a text of about 800 Chinese characters and a URL. Each tool then runs once, in a process of its
own with as many threads or processes as Conan has workers, after a run on 1 MB, in which Python compiles the modules.
The others only read the file and write the same columns:

- DuckDB: `COPY (SELECT … FROM read_json(…)) TO … (FORMAT parquet, COMPRESSION zstd)`;
- datasets: `load_dataset("json")` and `map`, both of which write Arrow files;
- datatrove: `JsonlReader` and `ParquetWriter`, in one process, since a task reads whole files.

They are run by PYTHON; `pip install duckdb datasets 'datatrove[io]'` in its environment. Missing tools are reported.

Time is that of the whole command, from start to exit; CPU seconds, which a busy machine affects less, are user and
system. A ratio above 1 says how many times as fast Conan is. Memory is the resident set size of each process, sampled
five times a second.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

CONAN = "from conan_embedding.cli import main; main()"
RECIPE = """\
sources:
  - {{name: big, category: web_page, files: {file}, read: jsonl, query: title, positive: text, meta: "{{'url': url}}"}}
"""
PEERS = {"duckdb": "DuckDB, read_json and COPY", "datasets": "datasets, load_dataset and map", "datatrove": "datatrove"}


class Cost(NamedTuple):
    """The cost of a command. Memory is that of its largest process, and the most of all processes together."""

    seconds: float
    cpu: float
    largest: int
    together: int


def main() -> None:
    """Write the file; ingest it with Conan and with the other tools; print the cost of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=0, help="number of processes; 0 is one per core")
    parser.add_argument("--peers", default=sys.executable, help="a Python interpreter with the other tools installed")
    options = parser.parse_args()
    workers = options.workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        big, small = Path(place, "big.jsonl"), Path(place, "small.jsonl")
        rows = write(big, options.megabytes * 10**6)
        write(small, 10**6)
        print(f"{options.megabytes:,} MB, {rows:,} rows, {workers} processes or threads")
        for file in (small, big):
            recipe = file.with_suffix(".yaml")
            recipe.write_text(RECIPE.format(file=file))
            ingest = ["ingest", str(file.with_suffix("")), "--recipe", str(recipe), "--workers", str(workers), "--json"]
            said, ours = run([sys.executable, "-c", CONAN, *ingest])
        written = json.loads(said)["rows_out"]
        assert written == rows, f"{rows:,} rows written, {written:,} came out"
        print_cost("Conan", options.megabytes, ours, ours)
        script = str(Path(__file__).parent / "peers" / "ingest.py")
        for tool, name in PEERS.items():
            try:
                for file in (small, big):
                    folder = file.with_suffix(f".{tool}")
                    folder.mkdir()
                    said, cost = run([options.peers, script, tool, str(file), str(folder), str(workers)])
            except RuntimeError as error:
                print(f"  {name}: {error}")
                continue
            assert int(said) == rows, f"{name}: {said} of {rows:,} rows"
            print_cost(name, options.megabytes, cost, ours)


def print_cost(name: str, megabytes: int, cost: Cost, ours: Cost) -> None:
    """Print a row of the table."""
    speed = megabytes / cost.seconds
    print(
        f"  {name:32} {cost.seconds:6.1f} s, {speed:6.1f} MB/s ({cost.seconds / ours.seconds:.2f}×); "
        f"CPU {cost.cpu:6.1f} s ({cost.cpu / ours.cpu:.2f}×); "
        f"{cost.largest:,} MB in the largest process, {cost.together:,} MB in all together"
    )


def write(file: Path, size: int) -> int:
    """Write about `size` bytes of records; return their number.

    Texts are pieces of a long one whose characters are as unequal in number as those of Chinese, so that they compress
    like Chinese and none repeats another.
    """
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(10, 5_010)  # Zipf's law, but flatter at the top
    points = generator.choice(0x4E00 + np.arange(5_000), 1 << 23, p=weights / weights.sum())
    long = points.astype("<u4").tobytes().decode("utf-32-le")
    written = rows = 0
    with file.open("wb") as out:
        while written < size:
            first, second = generator.integers(len(long) - 400, size=2).tolist()
            record = {
                "title": f"{long[first : first + 20]}{rows}",
                "text": f"{long[first : first + 400]}。{long[second : second + 400]}",
                "url": f"https://example.org/{rows}",
            }
            written += out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            rows += 1
    return rows


def run(command: list[str]) -> tuple[str, Cost]:
    """Run a command; return its output and its cost. Raises RuntimeError with its last words if it fails."""
    started, before = time.monotonic(), cpu_seconds()
    with tempfile.TemporaryFile("w+") as complaints:
        keeps_bytecode = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as on most machines
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=keeps_bytecode)
        largest, together = watch(process)
        seconds = time.monotonic() - started
        assert process.stdout is not None
        said = process.stdout.read()
        if process.returncode:
            complaints.seek(0)
            raise RuntimeError((complaints.read().strip() or f"exit code {process.returncode}").splitlines()[-1])
    return said, Cost(seconds, cpu_seconds() - before, largest, together)


def cpu_seconds() -> float:
    """Return user and system time of the children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watch(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Wait for a process to end; return the peak memory in MB of its largest process, and of all its processes."""
    largest = together = 0
    while process.poll() is None:
        sizes = [resident(one) for one in family(process.pid)]
        largest, together = max(largest, *sizes), max(together, sum(sizes))
        time.sleep(0.2)
    return largest >> 20, together >> 20


def family(process: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return [process]
    return [process, *(grandchild for child in text.split() for grandchild in family(int(child)))]


def resident(process: int) -> int:
    """Return a process's resident bytes, or 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
