"""Time and memory of `conan ingest` on one large JSONL file; also checks that no row is lost.

Run: `python benchmarks/ingest.py [--megabytes 2000] [--workers 0]`. The file is generated first: records with a title,
a text of about 800 Chinese characters and a URL. Memory is the resident set size of each process, sampled five times a
second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

CONAN = "from conan_embedding.cli import main; main()"
RECIPE = """\
sources:
  - {{name: big, category: web_page, files: {file}, read: jsonl, query: title, positive: text, meta: "{{'url': url}}"}}
"""


def main() -> None:
    """Write the file, ingest it, print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2_000)
    parser.add_argument("--workers", default="0", help="number of processes; 0 is one per core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        file, recipe, corpus = (Path(place, name) for name in ("big.jsonl", "recipe.yaml", "corpus"))
        rows = write(file, options.megabytes * 10**6)
        recipe.write_text(RECIPE.format(file=file))
        command = ["ingest", str(corpus), "--recipe", str(recipe), "--workers", options.workers, "--json"]
        started = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", CONAN, *command], stdout=subprocess.PIPE, text=True)
        largest, together = watch(process)
        seconds = time.monotonic() - started
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
    assert summary["rows_out"] == rows, f"{rows:,} rows written, {summary['rows_out']:,} came out"
    print(
        f"{options.megabytes:,} MB, {rows:,} rows: {seconds:.0f} s, {options.megabytes / seconds:.1f} MB/s; "
        f"{largest:,} MB in the largest process, {together:,} MB in all together"
    )


def write(file: Path, size: int) -> int:
    """Write about `size` bytes of records; return their number."""
    generator = Random(0)
    characters = [chr(point) for point in range(0x4E00, 0x9000)]
    parts = ["".join(generator.choices(characters, k=400)) for _ in range(3_000)]
    written = rows = 0
    with file.open("wb") as out:
        while written < size:
            first, second = parts[rows * 7 % 3_000], parts[(rows * 13 + 5) % 3_000]
            record = {
                "title": f"{first[:20]}{rows}",
                "text": f"{first}。{second}",
                "url": f"https://example.org/{rows}",
            }
            written += out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            rows += 1
    return rows


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
