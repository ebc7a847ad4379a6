"""The paper's Figure 4 at a small scale: the losses of both tasks, with one random task per step and with CBB.

Run: `python benchmarks/balance.py --corpus CORPUS --folder RESULTS [--updates 300] [--seeds 0 1 2]`. CORPUS was made by
`conan run`; its converted data, pools and pre-trained model are used. RESULTS keeps the runs, so a second call
continues where the first ended. The plot is written there as figure4.svg (requires matplotlib).

Both arms start from the same model and train on the same batches with the same loss: `--updates` retrieval batches and
as many batches of sentence pairs. With CBB, a step has a batch of each. In the arm "in turn", a step has one batch, of
a task drawn at random, so there are twice as many steps. Negatives are fixed (no DHNM). Losses are smoothed by a moving
average over 20 batches of the task. The oscillation is the standard deviation of the differences between successive
smoothed values after the warm-up; the end is the mean loss over the last tenth. Both are given as mean and standard
deviation over seeds.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ARMS = {"in turn": True, "CBB": False}
TASKS = {"retrieval": "InfoNCE", "sts": "CoSENT"}
SMOOTHED, WARMUP, END = 20, 0.05, 0.1
"""Batches in the moving average; the share of batches left out as warm-up; the share averaged as the end."""

Floats = npt.NDArray[np.float64]


def main() -> None:
    """Train the arms that are not trained yet, print the results and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus made by `conan run`")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the runs and the plot")
    parser.add_argument("--updates", type=int, default=300, help="batches of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    prepare(options.corpus, options.folder)
    losses = {
        (arm, seed): train(options.corpus, options.folder, arm, seed, options.updates)
        for seed in options.seeds
        for arm in ARMS
    }
    print(f"{options.updates} batches of each task, {len(options.seeds)} seeds")
    for task, name in TASKS.items():
        for arm in ARMS:
            curves = [losses[arm, seed][task] for seed in options.seeds]
            print(
                f"{name:8} {arm:8} oscillation {spread([oscillation(curve) for curve in curves])}   "
                f"end {spread([curve[-round(END * len(curve)) :].mean() for curve in curves])}"
            )
    draw(losses, options.seeds[0], options.folder / "figure4.svg")


def prepare(corpus: Path, folder: Path) -> None:
    """Make a corpus to train in: a link to the data, and a copy of the pools, because training writes to them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "convert").exists():
        (folder / "convert").symlink_to((corpus / "convert").resolve())
        shutil.copy(corpus / "pools.duckdb", folder)


def train(corpus: Path, folder: Path, arm: str, seed: int, updates: int) -> dict[str, Floats]:
    """Train an arm unless it has been trained; return the losses of each task by batch."""
    from conan_embedding.pipeline.corpus.folder import shards
    from conan_embedding.pipeline.corpus.pools import stored_fingerprint
    from conan_embedding.schemas.recipe import load
    from conan_embedding.trainer.job import make_job
    from conan_embedding.trainer.launch.launcher import run_job

    recipe = load(corpus / "recipe.yaml").finetune
    assert recipe is not None
    settings = recipe.model_copy(
        update={
            "alternate_tasks": ARMS[arm],
            "seed": seed,
            "steps": updates * (2 if ARMS[arm] else 1),
            "log_every": 1,
            "hard_negative_mining": recipe.hard_negative_mining.model_copy(update={"enabled": False}),
        }
    )
    found = {kind: shards(folder, f"convert/{kind}") for kind in [*settings.queries, "sts"]}
    model = str(corpus / "train" / recipe.model / "model")
    job = make_job(folder, f"{arm.replace(' ', '-')}-{seed}", model, settings, found, stored_fingerprint(folder))
    run_job(job, 1)
    entries: list[dict[str, Any]] = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    # A step without a batch of a task logs a loss of 0 for it.
    return {task: np.array([step[task] for step in steps if step[task]]) for task in TASKS}


def smoothed(losses: Floats) -> Floats:
    """Return the moving average over SMOOTHED values."""
    return np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")


def oscillation(losses: Floats) -> float:
    """Return the oscillation of one task's losses."""
    return float(np.diff(smoothed(losses[round(WARMUP * len(losses)) :])).std())


def spread(values: list[float]) -> str:
    """Format mean and standard deviation."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}"


def draw(losses: dict[tuple[str, int], dict[str, Floats]], seed: int, file: Path) -> None:
    """Plot both arms' smoothed losses for one seed, one panel per task."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "balance"
    import matplotlib.pyplot as plt

    figure, pictures = plt.subplots(1, len(TASKS), figsize=(10, 3.4), constrained_layout=True)
    for picture, (task, name) in zip(pictures, TASKS.items(), strict=True):
        for arm, colour in zip(ARMS, ("#b8860b", "#1f5fa8"), strict=True):
            curve = smoothed(losses[arm, seed][task])
            picture.plot(np.arange(len(curve)) + SMOOTHED, curve, color=colour, label=arm)
        picture.set(title=f"{name} loss", xlabel="batches of this task")
        picture.grid(alpha=0.3)
        picture.legend()
    figure.savefig(file, metadata={"Date": None})  # without a date, the same data gives the same file
    print(f"plot written to {file}")


if __name__ == "__main__":
    main()
