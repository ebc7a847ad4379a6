"""Does curation pay? The same training on the pairs of one stage of the pipeline after another.

Run: `python benchmarks/curation.py STAGE SEED --corpus CORPUS --work FOLDER`, for each STAGE of STAGES. CORPUS was made
by ingest, filter, dedup and score of `recipes/zh-results.yaml` with `--set variables.task=pretrain`, because score cuts
no labelled pairs. Each run leaves a folder in docs/results/curation, like those of `benchmarks/results.py`, and a run
that has its metrics.json is not repeated.

Every run takes the same number of steps from the same weights, with in-batch negatives (paper eq. 1), in which pairs of
no use cost the most. Pairs that dedup keeps out for evaluation, and those with a text of a held-out pair, are left out
of the earlier stages, too: else those would be trained on the questions that they are asked.
"""

import argparse
import resource
import shutil
import time
from pathlib import Path

import polars as pl
from conan_embedding.pipeline.corpus.folder import HOLDOUT, shards
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.schemas.pairs import CLUSTERED, PAIR
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.training_settings import PretrainSettings
from conan_embedding.trainer.job import make_job
from conan_embedding.trainer.launch.launcher import run_job
from measures import PRECISION
from results import begin_run, evaluate

STAGES = ["ingest", "filter", "dedup", "score"]
STEPS, PAIRS_OF_A_STEP, LEARNING_RATE = 120, 48, 5e-5
"""Chosen here: 96 texts in an update, and the steps and learning rate of benchmarks/results.py."""
KEPT_OUT = ["holdout", "contaminated"]
"""Dedup's reasons that are about evaluation, not about the pairs."""


def main() -> None:
    """Make one run, unless its metrics are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("seed", type=int)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus after `conan score`")
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and models")
    parser.add_argument("--runs", type=Path, default=Path("docs/results/curation"), help="results")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    name = "-".join(["curation", options.stage, str(options.seed), *([str(options.steps)][: options.steps != STEPS])])
    folder, place = options.runs / name, options.work / name
    if not begin_run(folder):
        return
    recipe = load(options.corpus / "recipe.yaml")
    assert recipe.pretrain is not None
    model, max_length = recipe.pretrain.model, recipe.pretrain.max_length
    settings = PretrainSettings(
        model=model,
        steps=options.steps,
        batch_size=PAIRS_OF_A_STEP,
        learning_rate=LEARNING_RATE,
        max_length=max_length,
        precision=PRECISION,
        seed=options.seed,
    )
    pairs = pairs_of_stage(options.corpus, options.stage)
    shard = place / options.stage / "part-00000.parquet"
    schema = CLUSTERED if "cluster_id" in pairs.columns else PAIR
    if not shard.exists():
        with ShardWriter(shard, schema, None, stage=options.stage, version=1, fingerprint="") as writer:
            writer.received(pairs.height)
            writer.keep(pairs.select(schema.names).to_arrow())
    job = make_job(place, "pretrain", model, settings, {"pairs": [shard]})
    start = time.monotonic()
    run_job(job, 1)
    shutil.copy(job.folder / "log.jsonl", folder)
    facts = {
        "arm": f"pairs of {options.stage}",
        "seed": options.seed,
        "changes": [],
        "pairs": pairs.height,
        "training_seconds": time.monotonic() - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    evaluate(options.corpus, str(job.model_folder), max_length, folder, facts)


def pairs_of_stage(corpus: Path, stage: str) -> pl.DataFrame:
    """Return a stage's pairs for pre-training, without those that dedup keeps out for evaluation."""
    pairs = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, stage))
    pairs = pairs.filter(pl.col("task").cast(pl.String) == "pretrain")
    rejected = pl.concat(pl.read_parquet(file) for file in sorted((corpus / "dedup" / "rejected").glob("*.parquet")))
    kept_out = rejected.filter(pl.col("reason").cast(pl.String).is_in(KEPT_OUT))
    held = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, HOLDOUT))
    asked = held.filter(pl.col("task").cast(pl.String) != "passage")
    texts = pl.concat([asked["query"], asked["positive"]]).unique()
    is_held = pl.col("query").is_in(texts.implode()) | pl.col("positive").is_in(texts.implode())
    return pairs.join(kept_out.select("pair_id"), on="pair_id", how="anti").filter(~is_held)


if __name__ == "__main__":
    main()
