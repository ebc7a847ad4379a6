"""The start-up cost of `conan train` on a CPU: the time of a whole run with one step of a tiny model.

Run: `python benchmarks/training_start.py`. Prints the median of three runs with one and with two processes, including
the step, its checkpoint and the export of the model.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conan_embedding.pipeline.demo.generate import write_sample
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import load
from conan_embedding.workflow import run_data_stage

RUNS = 3
CONAN = "from conan_embedding.cli import main; main()"


def main() -> None:
    """Prepare a small corpus, then time training runs on it."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, sources = Path(folder) / "corpus", Path(folder) / "sources"
        write_sample(sources, rows=300)
        recipe = load(Path(__file__).parent.parent / "recipes" / "demo.yaml", [f"variables.root={sources}"])
        for stage in ("ingest", "filter", "dedup"):
            run_data_stage(stage, corpus, recipe, Engine(workers=1))
        for processes in (1, 2):
            seconds = [_start(corpus, processes, seed) for seed in range(RUNS)]
            print(f"{processes} processes: median {statistics.median(seconds):.1f} s of {RUNS}")
        print(f"cores: {os.cpu_count()}")


def _start(corpus: Path, processes: int, seed: int) -> float:
    """Time a run of one step; a different `seed` makes it a different run."""
    options = {"steps": 1, "batch_size": 8, "seed": 10 * processes + seed}
    settings = [word for key, value in options.items() for word in ("--set", f"bootstrap.training.{key}={value}")]
    command = [sys.executable, "-c", CONAN, "train", str(corpus), "--stage", "bootstrap", "--nproc", str(processes)]
    started = time.monotonic()
    subprocess.run([*command, *settings], check=True, capture_output=True)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
