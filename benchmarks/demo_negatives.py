"""Mined against random negatives on the demo's sample: nDCG@10 and Spearman before and after fine-tuning.

Run: `python benchmarks/demo_negatives.py --folder RESULTS [--seeds 0 1 2] [--set finetune.steps=50 …]`. For each seed,
which is that of the sample, of the bootstrapped model and of fine-tuning, the demo's recipe runs as in `conan demo`,
but without the source that a language model writes. Then the same bootstrapped model is fine-tuned once more, with
random passages in place of the mined ones in the pools; all else, the order of the queries too, is the same. RESULTS
keeps the corpora: what is done there is not done again.
"""

import argparse
import shutil
from pathlib import Path

import duckdb
import numpy as np
from conan_embedding.evaluation import evaluate
from conan_embedding.pipeline.corpus.pools import FILE
from conan_embedding.pipeline.demo.generate import write_sample
from conan_embedding.pipeline.demo.prepare import DEMO_ROWS
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.outcomes import Evaluated
from conan_embedding.schemas.recipe import load
from conan_embedding.workflow import run, train

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
METRICS = {"questions": "ndcg@10", "sts_test": "spearman"}

# A passage of a positive's cluster answers the query, so it is not drawn.
DRAW_POOLS = """
    UPDATE mined_candidates SET passage_ids = drawn.passage_ids[:len(scores)] FROM (
        SELECT query_id, list(passage_id ORDER BY hash(query_id, passage_id)) AS passage_ids
        FROM queries CROSS JOIN passages
        ANTI JOIN (FROM positives JOIN passages USING (passage_id)) AS answers USING (query_id, cluster_id)
        GROUP BY query_id
    ) AS drawn WHERE mined_candidates.query_id = drawn.query_id
"""

Row = dict[tuple[str, str], float]
"""Values by arm and evaluation set."""


def main() -> None:
    """Train both arms with each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the corpora")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], help="changes to the recipe")
    options = parser.parse_args()
    rows = {seed: measure(options.folder / f"seed-{seed}", seed, options.set) for seed in options.seeds}
    for task, metric in METRICS.items():
        arms = [arm for arm, one in next(iter(rows.values())) if one == task]
        print(f"\n{task}, {metric}\n{'seed':6}" + "".join(f"{arm:>12}" for arm in arms))
        for seed, row in rows.items():
            print(f"{seed:<6}" + "".join(f"{row[arm, task]:12.4f}" for arm in arms))
        print(f"{'mean':6}" + "".join(f"{np.mean([row[arm, task] for row in rows.values()]):12.4f}" for arm in arms))


def measure(folder: Path, seed: int, changes: list[str]) -> Row:
    """Run the demo's recipe, fine-tune with random negatives as well, and return the metrics of all models."""
    mined, drawn = folder / "mined", folder / "random"
    write_sample(folder / "sources", DEMO_ROWS, seed)
    seeds = [f"bootstrap.training.seed={seed}", f"finetune.seed={seed}"]
    recipe = load(RECIPE, [f"variables.root={(folder / 'sources').resolve()}", *seeds, *changes])
    recipe = recipe.model_copy(update={"sources": [source for source in recipe.sources if not source.synthesize]})
    found = {}
    for _, outcome in run(mined, recipe, Engine(), 1):
        if isinstance(outcome, Evaluated):
            found = values(outcome, {"bm25": "BM25", "bootstrap": "bootstrap", "finetune": "mined"})
    if not (drawn / FILE).exists():
        shutil.copytree(mined, drawn, ignore=shutil.ignore_patterns("finetune", "checkpoints", FILE))
        shutil.copy(mined / FILE, folder / FILE)
        with duckdb.connect(str(folder / FILE)) as connection:
            connection.execute("DELETE FROM windows; DELETE FROM replacements")
            connection.execute(DRAW_POOLS)
        (folder / FILE).rename(drawn / FILE)
    train("finetune", drawn, recipe, 1)
    return found | values(evaluate(drawn, recipe, ["finetune"], []), {"finetune": "random"})


def values(evaluated: Evaluated, arms: dict[str, str]) -> Row:
    """Return the headline metric of each set for the models in `arms`, under the names there."""
    return {
        (arms[row["model"]], row["set"]): row["value"]
        for row in evaluated.metrics
        if row["model"] in arms and row["metric"] == METRICS[row["set"]]
    }


if __name__ == "__main__":
    main()
