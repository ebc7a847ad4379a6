"""How much of what DHNM takes for easy negatives is the drift of all cosines, from the scores that a run recorded.

Run: `python benchmarks/drift.py RUN … [--every 15]`. RUN is a folder that `benchmarks/results.py` left in
docs/results/data. In a run without DHNM each query keeps its negatives, so a rule's verdicts can be read off the scores
of the whole run; in a run with DHNM they end at a replacement.

Training moves all cosines, those of random pairs too, and DHNM compares a score with one that other weights gave. For
each check, the table has the cosine of random pairs (queries with the passages of the batch's other queries), the mean
cosines of negatives and positives, the share of queries whose negatives have a mean below the ceiling of 0.8, and how
many queries these rules take for easy, among those that were scored twice:

- paper: 1.15 · s < s0 and |s| < 0.8 (§2.2)
- drift: those of them that would be taken if their negatives had just moved as random pairs did, by μ - μ0
- rescaled: the paper's rule on (s - μ) / (1 - μ), with the μ of the same weights

The last column is the share of single negatives that Conan-embedding-v2 takes for easy (eq. 6).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from conan_embedding.trainer.dhnm.negatives import easy_negatives, observe_negatives, start_negatives
from conan_embedding.trainer.dhnm.windows import no_longer_hard, observe, start

CEILING = 0.8
"""Paper §2.2."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Check(NamedTuple):
    """The columns of the table after `step`: means and shares, and numbers of queries."""

    step: int
    random_pairs: float
    negatives: float
    positives: float
    below_ceiling: float
    eligible: int
    paper: int
    drift: int
    rescaled: int
    v2: float


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a folder with scores.parquet")
    parser.add_argument("--every", type=int, default=15, help="updates between two checks")
    options = parser.parse_args()
    names = [name.replace("_", " ") for name in Check._fields]
    for run in options.runs:
        print(f"{run.name}\n\n| {' | '.join(names)} |\n|{'---:|' * len(names)}")
        for check in checks(pl.read_parquet(run / "scores.parquet"), options.every):
            cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in check]
            print(f"| {' | '.join(cells)} |")
        print()


def checks(scores: pl.DataFrame, every: int) -> Iterator[Check]:
    """Yield a check every `every` steps; a query's negatives are compared with themselves only, within one round."""
    scores = scores.sort("step").with_columns(mean=pl.col("negatives").list.mean())
    last = scores["step"].max()
    assert isinstance(last, int)
    for step in range(every, last + 1, every):
        recent = scores.filter(pl.col("step").is_between(step - every + 1, step))
        followed = scores.filter(pl.col("step") <= step).group_by("query_id", "round", maintain_order=True)
        first, latest = followed.first(), followed.last()
        twice = (latest["step"] > first["step"]) & latest.select(
            pl.col("round") == pl.col("round").max().over("query_id")
        )["round"]
        first, latest = first.filter(twice), latest.filter(twice)
        (s0, s), (mu0, mu) = (
            tuple(each[name].to_numpy() for each in (first, latest)) for name in ("mean", "random_pairs")
        )
        paper = easy(s0, s)
        yield Check(
            step,
            random_pairs=recent["random_pairs"].mean(),
            negatives=recent["mean"].mean(),
            positives=recent["positive"].mean(),
            below_ceiling=(recent["mean"].abs() < CEILING).mean(),
            eligible=len(s),
            paper=int(paper.sum()),
            drift=int((paper & easy(s0, s0 + mu - mu0)).sum()),
            rescaled=int(easy((s0 - mu0) / (1 - mu0), (s - mu) / (1 - mu)).sum()),
            v2=easy_by_v2(first["negatives"], latest["negatives"]),
        )


def easy(first: Floats, last: Floats) -> Flags:
    """Mark queries whose negatives are easy by the trainer's rule, from their first and last mean score: [queries]."""
    rows, nothing = np.arange(len(first)), np.zeros(len(first), np.int64)
    return no_longer_hard(observe(observe(start(nothing, 1, nothing), rows, first), rows, last))


def easy_by_v2(first: pl.Series, last: pl.Series) -> float:
    """Return the share of single negatives that are easy by the trainer's rule v2, from their first and last score."""
    if not len(first):
        return float("nan")
    rows, before, after = np.arange(len(first)), np.stack(first.to_list()), np.stack(last.to_list())
    state = start_negatives(np.full(len(first), before.shape[1]), before.shape[1], np.zeros(len(first)))
    observe_negatives(state, rows, before)
    observe_negatives(state, rows, after)
    return float(easy_negatives(state, rows).mean())


if __name__ == "__main__":
    main()
