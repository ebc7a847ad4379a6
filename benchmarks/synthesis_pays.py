"""Does synthesis pay? The same training without the pairs that a language model wrote, and with them.

Run: `python benchmarks/synthesis_pays.py ARM SEED --corpus CORPUS --work FOLDER`, for each ARM of ARMS. CORPUS was made
by ingest, filter, dedup and synthesize of `recipes/zh-synthesis.yaml`. Each run leaves a folder in
docs/results/synthesis, like those of `benchmarks/results.py`, and a run that has its metrics.json is not repeated.
Without ARM, the runs are compared: nDCG@10 as the mean over seeds, and the paired bootstrap over questions.

All runs take the same number of steps from the same weights, with in-batch negatives. The pairs of other kinds are the
same in all, so that what differs is what the written ones add: those that are kept, or, to see what the round trip is
worth, those that it rejected. The evaluation set's own questions are in none.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import polars as pl
from conan_embedding.pipeline.corpus.folder import rejects, shards
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.corpus.synthesis import ANSWERS
from conan_embedding.schemas.pairs import PAIR
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.training_settings import PretrainSettings
from conan_embedding.trainer.evaluation.paired_bootstrap import bound, resample_mean
from conan_embedding.trainer.job import make_job
from conan_embedding.trainer.launch.launcher import run_job
from measures import PRECISION
from results import begin_run, evaluate

ARMS = ["untrained", "without", "kept", "rejected"]
STEPS, PAIRS_OF_A_STEP, LEARNING_RATE = 30, 32, 2e-5
"""Chosen here: a draw or two of each pair."""


def main() -> None:
    """Make one run, unless its metrics are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=ARMS, nargs="?")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--corpus", type=Path, help="a corpus after `conan synthesize`")
    parser.add_argument("--work", type=Path, help="folder for data, checkpoints and models")
    parser.add_argument("--runs", type=Path, default=Path("docs/results/synthesis"), help="results")
    options = parser.parse_args()
    if options.arm is None:
        compare(options.runs)
        return
    folder, place = (root / f"{options.arm}-{options.seed}" for root in (options.runs, options.work))
    if not begin_run(folder):
        return
    recipe = load(options.corpus / "recipe.yaml")
    assert recipe.pretrain is not None
    settings = PretrainSettings(
        model=recipe.pretrain.model,
        steps=STEPS,
        batch_size=PAIRS_OF_A_STEP,
        learning_rate=LEARNING_RATE,
        max_length=recipe.pretrain.max_length,
        precision=PRECISION,
        seed=options.seed,
    )
    facts = {"arm": options.arm, "seed": options.seed, "changes": []}
    model = settings.model
    if options.arm != "untrained":
        pairs = pairs_of(options.corpus, options.arm)
        shard = place / "pairs" / "part-00000.parquet"
        if not shard.exists():
            with ShardWriter(shard, PAIR, None, stage="dedup", version=1, fingerprint="") as writer:
                writer.received(pairs.height)
                writer.keep(pairs.to_arrow())
        job = make_job(place, "pretrain", settings.model, settings, {"pairs": [shard]})
        start = time.monotonic()
        run_job(job, 1)
        model = str(job.model_folder)
        facts |= {
            "pairs": pairs.height,
            "training_seconds": time.monotonic() - start,
            "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        }
    evaluate(options.corpus, model, settings.max_length, folder, facts)


def pairs_of(corpus: Path, arm: str) -> pl.DataFrame:
    """Return the pairs of other sources, and those that were written and kept, or that the round trip rejected."""
    pairs = pl.concat(pl.read_parquet(shard, columns=PAIR.names) for shard in shards(corpus, "dedup"))
    is_written = pl.col("category").cast(pl.String) == "llm_generated"
    others = pairs.filter(pl.col("task").cast(pl.String) == "retrieval", ~is_written)
    if arm == "without":
        return others
    answers = shards(corpus, ANSWERS)
    written = pl.concat(pl.read_parquet(shard if arm == "kept" else rejects(shard)) for shard in answers)
    if arm == "rejected":
        written = written.filter(pl.col("reason") == "round_trip")
    same = {"category": "llm_generated", "format": "question_answer", "task": "retrieval", "meta": "{}"}
    written = written.with_columns(
        pl.col("request").alias("pair_id"),
        pl.lit([], pl.List(pl.String)).alias("negatives"),
        pl.lit(None, pl.Float32).alias("label"),
        **{name: pl.lit(value) for name, value in same.items()},
    )
    names = pl.col("source", "category", "format", "task")
    both = [each.select(PAIR.names).with_columns(names.cast(pl.String)) for each in (others, written)]
    return pl.concat(both).with_columns(names.cast(pl.Categorical))


def compare(runs: Path) -> None:
    """Print a line for each arm."""
    values = {}
    for arm in ARMS:
        files = sorted(runs.glob(f"{arm}-*/questions.parquet"))
        if files:
            values[arm] = np.mean(
                [pl.read_parquet(file)["value"].to_numpy() for file in files], axis=0, dtype=np.float64
            )
            line = f"{arm:10} {len(files)} seeds, nDCG@10 {values[arm].mean():.4f}"
            if "without" in values and arm != "without":
                changes = values[arm] - values["without"]
                found = bound(resample_mean(changes), 0)
                line += f", {changes.mean():+.4f} (90 %: {found.low:+.4f} to {found.high:+.4f})"
            print(line)


if __name__ == "__main__":
    main()
