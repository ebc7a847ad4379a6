"""Runs the first steps of a training job and prints a line of JSON: losses, seconds per step, peak memory.

Run: `python benchmarks/training_run.py --job JOB [--steps 20] [--timed 7 12]`, with the environment variables that
torchrun sets for a rank (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), and a job with more steps than
`--steps`. `--timed` are the first and the last step that are timed, from the texts to the updated weights.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import Losses
from conan_embedding.trainer.run_log import Log
from measures import memory, wait_for_device
from torch import Tensor
from train_steps import train_steps


def main() -> None:
    """Train and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--timed", type=int, nargs=2, default=[7, 12], metavar=("FIRST", "LAST"))
    options = parser.parse_args()
    job = Job.model_validate_json(options.job.read_text("utf-8"))
    print(json.dumps(measure(job, options.steps, *options.timed)))
    sys.stdout.flush()
    os._exit(0)  # as a training process does, because libraries report leaks that aren't real


def measure(job: Job, steps: int, first: int, last: int) -> dict[str, Any]:
    """Return the loss of each step, seconds per step from `first` to `last`, and peak memory in MB."""
    losses: list[Tensor] = []
    moments: list[float] = []
    count = Log.count

    def counted(log: Log, found: Losses) -> None:
        losses.append(found.total.detach())  # read at the end, because reading makes the host wait
        count(log, found)

    def note() -> None:
        wait_for_device()
        moments.append(time.perf_counter())

    with mock.patch.object(Log, "count", counted):
        train_steps(
            job, steps, lambda step: note() if step == first else None, lambda step: note() if step == last else None
        )
    seconds = (moments[1] - moments[0]) / (last - first + 1)
    return {"losses": [float(loss) for loss in losses], "seconds": seconds, "peak": memory("peak")}


if __name__ == "__main__":
    main()
