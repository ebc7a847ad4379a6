"""The tables and plots of docs/results from the runs that are there: Table 4 of the paper, and its Figures 2 and 4.

Run: `python benchmarks/results_tables.py [--half validation] > docs/results/tables.md`. The runs are those that
`benchmarks/results.py` left in docs/results/data; those of other scripts are in folders of their own, such as
`--runs docs/results/curation --baseline "pairs of ingest"`. Plots are written to the folder of the
page; they need matplotlib and are left out without it.

A metric is that of the questions of one half, each question's value being the mean over the seeds of an arm. Whether an
arm differs from a baseline is tested by the paired bootstrap over questions (trainer/evaluation/paired_bootstrap.py).
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from conan_embedding.trainer.evaluation.paired_bootstrap import Bounds, bound, resample, resample_mean
from scipy.stats import spearmanr

UNTRAINED = ["bm25", "zero-shot", "start"]
BASELINES = ["start", "vanilla queries=10000"]
PRIMARY = ["toyhom", "egret", "stsb_triples", "csl", "ruozhiba"]
SECONDARY = ["cmrc2018_trial", "t2rank_100", "xwlb_december"]
SENTENCES, CLASSES = "stsb_test", "thucnews_test"
FIGURES = {"figure2": ("scores of positives and negatives", 2), "figure4": ("losses", 4)}
SMOOTHED = 10
"""Updates in the moving average of a plot's curves."""
ENCODER = (
    "Encoder: the first 6 layers of intfloat/multilingual-e5-small, from a copy with 4 bits a weight and a cut"
    " vocabulary; 96 tokens."
)
LEGEND = (
    "`zero-shot` are these layers as they are, `start` the pre-trained model from which all arms start. A run with"
    " `queries=10000` draws from all 10,894 queries, each once at most; the others from 60, each 8 to 16 times."
)

Floats = npt.NDArray[np.float64]


class Run(NamedTuple):
    """A finished run: its metrics.json, the questions of one half, and its folder."""

    facts: dict[str, Any]
    questions: pl.DataFrame
    folder: Path


def main() -> None:
    """Print the page and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("docs/results/data"))
    parser.add_argument("--half", choices=["test", "validation"], default="test")
    parser.add_argument("--baseline", action="append", default=[], help="an arm that the others are compared with")
    parser.add_argument("--plots", type=Path, default=Path("docs/results"), help="folder for the plots")
    options = parser.parse_args()
    arms = by_arm(read_runs(options.runs, options.half))
    print("# Tables of the experiments\n")
    print("Made by `python benchmarks/results_tables.py`; what was asked, and why so: [the plan](plan.md).\n")
    print(f"{ENCODER} The {options.half} halves of the sets. {LEGEND}\n")
    differences = [difference_table(arms, baseline) for baseline in options.baseline or BASELINES if baseline in arms]
    tables = [metrics_table(arms), *differences, cost_table(arms), tool_table(arms)]
    print("\n\n".join("\n".join(table) for table in tables if table))
    for name, (what, number) in draw(arms, options.plots).items():
        print(f"\n## The paper's Figure {number}\n\n{ENCODER}\n\n![{what}]({name}.svg)")


def read_runs(folder: Path, half: str) -> list[Run]:
    """Read all finished runs, with the questions of one half.

    Raises SystemExit if runs were not evaluated on the same questions.
    """
    runs = []
    for file in sorted(folder.glob("*/metrics.json")):
        questions = pl.read_parquet(file.parent / "questions.parquet")
        kept = questions.filter(pl.col("validation") == (half == "validation"))
        runs.append(Run(json.loads(file.read_text("utf-8")), kept, file.parent))
    asked = {run.facts["questions"] for run in runs if run.facts["arm"] != "bm25"}
    if len(asked) > 1:
        raise SystemExit(f"{folder}: the runs were evaluated on different questions; compare only runs of one corpus")
    return runs


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs that differ in their seed only; untrained models come first."""
    arms: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        arms[" ".join([run.facts["arm"], *run.facts["changes"]])].append(run)
    first = [name for name in UNTRAINED if name in arms]
    return {name: arms[name] for name in [*first, *(name for name in arms if name not in first)]}


def values(runs: Sequence[Run], name: str) -> Floats:
    """Return the value of each question of a set, averaged over runs: [questions]."""
    return np.mean([run.questions.filter(set=name)["value"].to_numpy() for run in runs], axis=0, dtype=np.float64)


def metric(runs: Sequence[Run], name: str) -> float:
    """Return a set's metric: Spearman of sentence pairs, else the mean over questions; NaN if it was not evaluated."""
    found = values(runs, name)
    if not len(found):
        return float("nan")
    if name == SENTENCES:
        return float(spearmanr(found, runs[0].questions.filter(set=name)["label"]).statistic)
    return float(found.mean())


def mean_over_sets(runs: Sequence[Run], names: Sequence[str]) -> float:
    """Return the mean of several sets' metrics."""
    return float(np.mean([metric(runs, name) for name in names]))


def difference(runs: Sequence[Run], others: Sequence[Run], names: Sequence[str]) -> Bounds:
    """Bound the difference of two arms in the mean over sets whose metrics are means over questions.

    All questions are resampled together, each with its weight in that mean.
    """
    changes = [values(runs, name) - values(others, name) for name in names]
    total = sum(map(len, changes))
    return bound(resample_mean(np.concatenate([each * total / len(each) / len(names) for each in changes])), 0)


def spearman_difference(runs: Sequence[Run], others: Sequence[Run]) -> Bounds:
    """Bound the difference of two arms in the Spearman correlation of the sentence pairs."""
    scores, theirs = values(runs, SENTENCES), values(others, SENTENCES)
    labels = runs[0].questions.filter(set=SENTENCES)["label"].to_numpy()

    def on(rows: npt.NDArray[np.int64]) -> float:
        found, other = (spearmanr(each[rows], labels[rows]).statistic for each in (scores, theirs))
        return float(found - other)

    return bound(resample(on, len(labels)), 0)


def metrics_table(arms: dict[str, list[Run]]) -> list[str]:
    """List each arm's metrics, one column for each set."""
    names = [*PRIMARY, *SECONDARY, SENTENCES, CLASSES]
    sizes = {
        name: max(run.questions.filter(set=name).height for runs in arms.values() for run in runs) for name in names
    }
    lines = [
        "nDCG@10, Spearman for stsb_test, accuracy for thucnews_test; mean ± standard deviation over seeds for the mean"
        " of the five held-out sets.",
        "",
        "| arm | seeds | **held-out** | " + " | ".join(f"{name} ({sizes[name]})" for name in names) + " |",
        "|---|---" + "|---:" * (1 + len(names)) + "|",
    ]
    for arm, runs in arms.items():
        each = [mean_over_sets([run], PRIMARY) for run in runs]
        spread = f" ± {np.std(each, ddof=1):.4f}" if len(each) > 1 else ""
        found = [metric(runs, name) for name in names]
        cells = " | ".join("" if np.isnan(value) else f"{value:.4f}" for value in found)
        seeds = "" if arm in UNTRAINED else ", ".join(str(run.facts["seed"]) for run in runs)
        lines.append(f"| {arm} | {seeds} | {np.mean(each):.4f}{spread} | {cells} |")
    return lines


def difference_table(arms: dict[str, list[Run]], baseline: str) -> list[str]:
    """List what each trained arm gains over the baseline, with 90 % intervals."""
    lines = [
        f"Difference from {baseline}, with the interval that 90 % of the resamples are in. Bold: above 0 with 95 %"
        " confidence.",
        "",
        "| arm | held-out sets | three other retrieval sets | stsb_test | thucnews_test |",
        "|---|---:|---:|---:|---:|",
    ]
    for arm, runs in arms.items():
        if arm in ("bm25", "zero-shot", baseline):
            continue
        cells = []
        for names in (PRIMARY, SECONDARY, [SENTENCES], [CLASSES]):
            gained = mean_over_sets(runs, names) - mean_over_sets(arms[baseline], names)
            of_sentences = names == [SENTENCES]
            bounds = (
                spearman_difference(runs, arms[baseline]) if of_sentences else difference(runs, arms[baseline], names)
            )
            mark = "**" if bounds.low > 0 else ""
            cells.append(f"{mark}{gained:+.4f}{mark} ({bounds.low:+.4f} to {bounds.high:+.4f})")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def cost_table(arms: dict[str, list[Run]]) -> list[str]:
    """List what a run took and what DHNM did in it."""
    trained = {arm: runs for arm, runs in arms.items() if "settings" in runs[0].facts}
    if not trained:
        return []
    lines = [
        "What a run took: minutes of one processor's time for training. What DHNM did: windows replaced, and queries at"
        " the end of their pool.",
        "",
        "| arm | updates | minutes | negatives in a denominator | replaced | exhausted |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, runs in trained.items():
        logs = [read_log(run) for run in runs]
        minutes = np.mean([run.facts["cpu_seconds"] for run in runs if "resumed" not in run.facts] or [np.nan]) / 60
        negatives = np.mean([line["negatives"] for line in logs[0] if line["negatives"]])
        counts = [[line["mining"] for line in log if "mining" in line] for log in logs]
        replaced = ", ".join(str(sum(each["replaced"] for each in of_run)) for of_run in counts if of_run)
        exhausted = ", ".join(str(of_run[-1]["exhausted"]) for of_run in counts if of_run)
        lines.append(f"| {arm} | {len(logs[0])} | {minutes:.1f} | {negatives:.0f} | {replaced} | {exhausted} |")
    return lines


def tool_table(arms: dict[str, list[Run]]) -> list[str]:
    """List what the trainers took that benchmarks/versus.py and benchmarks/curation.py compare."""
    took = {arm: [run.facts for run in runs] for arm, runs in arms.items() if "training_seconds" in runs[0].facts}
    if not took:
        return []
    lines = ["| run | minutes of mining | minutes of training | peak memory, MB |", "|---|---:|---:|---:|"]
    for arm, facts in took.items():
        mining, training, peak = (
            np.mean([each.get(name, np.nan) for each in facts])
            for name in ("mining_seconds", "training_seconds", "peak_mb")
        )
        mined = "" if np.isnan(mining) else f"{mining / 60:.1f}"
        lines.append(f"| {arm} | {mined} | {training / 60:.1f} | {peak:,.0f} |")
    return lines


def read_log(run: Run) -> list[dict[str, Any]]:
    """Return the lines of a run's updates."""
    lines = (run.folder / "log.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def smoothed(log: list[dict[str, Any]], key: str) -> tuple[Floats, Floats]:
    """Return the updates that have a value of this key, and its moving average; a loss of 0 is that of another task."""
    points = [(line["step"], line[key]) for line in log if line[key]]
    steps, found = np.array(points, np.float64).T
    size = min(SMOOTHED, len(found))
    return steps[size - 1 :], np.convolve(found, np.full(size, 1 / size), mode="valid")


def draw(arms: dict[str, list[Run]], folder: Path) -> dict[str, tuple[str, int]]:
    """Draw the figures whose arms are there, from the first seed; return what was drawn."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "results"
    import matplotlib.pyplot as plt

    alternating, joined = "vanilla queries=10000", "cbb queries=10000"
    panels = {
        "figure2": [
            (
                f"{one} and {other}",
                [(one, "#b8860b"), (other, "#1f5fa8")],
                {"positive_score": "--", "negative_score": "-"},
            )
            for one, other in (("vanilla", "dhnm-rescaled"), ("both", "both-rescaled"))
        ],
        "figure4": [
            (title, [(alternating, "#b8860b"), (joined, "#1f5fa8")], {key: "-"})
            for title, key in (("InfoNCE", "retrieval"), ("CoSENT", "sts"))
        ],
    }
    drawn = {}
    for name, pictures in panels.items():
        if not all(arm in arms for _, shown, _ in pictures for arm, _ in shown):
            continue
        figure, axes = plt.subplots(1, len(pictures), figsize=(10, 3.6), constrained_layout=True)
        for axis, (title, shown, keys) in zip(axes, pictures, strict=True):
            for arm, colour in shown:
                log = read_log(arms[arm][0])
                for key, style in keys.items():
                    label = f"{arm}, {key.removesuffix('_score')}" if len(keys) > 1 else arm
                    axis.plot(*smoothed(log, key), style, color=colour, label=label)
            axis.set(title=title, xlabel="update")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})  # the same runs give the same file
        drawn[name] = FIGURES[name]
    return drawn


if __name__ == "__main__":
    main()
