"""Whether a judge pays: fine-tuning on pools as mined, on relabelled pools, and with the judge's scores to learn from.

Run: `python benchmarks/judged_pools.py ARM SEED --corpus CORPUS --judge FOLDER --work FOLDER [--set KEY=VALUE …]`.
CORPUS was made from recipes/zh-results.yaml and mined; the judge is a cross-encoder, such as
`benchmarks/train_cross_encoder.py` makes. ARM is one of ARMS. All arms draw from one sample of queries, whose positives
and first CANDIDATES candidates are judged once, and take the paper's step: 4 queries, 16 negatives of each in one
denominator, sentence pairs. Each run leaves a folder in docs/results/judged, as `benchmarks/results.py` does, and a run
that has its metrics.json is not repeated: `benchmarks/results_tables.py --runs docs/results/judged --baseline mined`.
"""

import argparse
import resource
import shutil
from pathlib import Path
from typing import Any

from conan_embedding.pipeline.corpus.folder import shards
from conan_embedding.pipeline.corpus.pools import decided_fingerprint, open_pools
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.judge.stage import judge
from conan_embedding.schemas.judge_settings import JudgeSettings, Threshold
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.training_settings import DistillSettings
from conan_embedding.trainer.data.teacher_scores import fingerprint_scores
from conan_embedding.trainer.job import make_job
from conan_embedding.trainer.launch.launcher import run_job
from measures import processor_time
from results import begin_run, evaluate, prepare, settings_of

QUERIES_OF_A_SOURCE, CANDIDATES = 100, 20
"""Chosen here: of five sources, as many as a run of 120 steps draws; the window of 16 and what may move up into it."""
RELABEL, SET_ASIDE = Threshold(score=0.5, margin=0), Threshold(margin=0.1)
"""Chosen here: rules of `benchmarks/false_negatives.py`, for precision and for recall."""
ARMS: dict[str, tuple[Threshold | None, Threshold | None, DistillSettings | None]] = {
    "mined": (None, None, None),
    "relabelled": (RELABEL, SET_ASIDE, None),
    "distilled": (None, None, DistillSettings(temperature=0.1)),
    "both": (RELABEL, SET_ASIDE, DistillSettings(temperature=0.1)),
}
"""The rules `relabel` and `set_aside`, and the term of the loss; 0.1 is the temperature for probabilities."""


def main() -> None:
    """Make one run, unless its metrics are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("seed", type=int)
    parser.add_argument("--corpus", type=Path, required=True, help="made from recipes/zh-results.yaml")
    parser.add_argument("--judge", required=True, help="a cross-encoder: folder or hub name")
    parser.add_argument("--work", type=Path, required=True, help="folder for corpora and models")
    parser.add_argument("--runs", type=Path, default=Path("docs/results/judged"), help="folder for the results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of `finetune:`")
    options = parser.parse_args()
    name = "-".join([options.arm, str(options.seed), *options.set])
    folder, place = options.runs / name, options.work / name
    if not begin_run(folder):
        return
    recipe = load(options.corpus / "recipe.yaml")
    assert recipe.finetune is not None
    relabel, set_aside, distill = ARMS[options.arm]
    settings = settings_of("cbb", options.seed, recipe.finetune, options.set).model_copy(update={"distill": distill})
    judging = JudgeSettings(model=options.judge, max_length=96, candidates=CANDIDATES)
    sample = options.work / "sample"
    if not (sample / "judged").exists():
        shutil.rmtree(sample, ignore_errors=True)
        prepare(options.corpus, sample, settings, QUERIES_OF_A_SOURCE)
        keep_queries(sample)
        judge(sample, judging, Engine(1))
        (sample / "judged").touch()
    if not place.exists():
        shutil.copytree(sample, copied := options.work / f".{name}", dirs_exist_ok=True)
        copied.rename(place)
    facts: dict[str, Any] = {"arm": options.arm, "seed": options.seed, "changes": options.set}
    decided = judge(place, judging.model_copy(update={"relabel": relabel, "set_aside": set_aside}), Engine(1))
    found = {kind: shards(place, f"convert/{kind}") for kind in ("retrieval", "sts")}
    pools = f"{decided_fingerprint(place)}{fingerprint_scores(place, None) if distill else ''}"
    job = make_job(place, "finetune", settings.model, settings, found, pools)
    with processor_time(facts, "training_seconds"):
        run_job(job, 1)
    facts |= {"judged": decided.notes, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024}
    evaluate(options.corpus, str(job.model_folder), settings.max_length, folder, facts)


def keep_queries(corpus: Path) -> None:
    """Leave only the queries of the corpus's training records in its pools, so that no others are judged."""
    files = [str(shard) for shard in shards(corpus, "convert/retrieval")]
    with open_pools(corpus, read_only=False) as pools:
        pools.execute("CREATE TEMP TABLE kept AS SELECT query FROM read_parquet($files)", {"files": files})
        others = "query_id IN (SELECT query_id FROM mined_queries WHERE text NOT IN (FROM kept))"
        for table in ("mined_candidates", "mined_positives", "mined_queries"):
            pools.execute(f"DELETE FROM {table} WHERE {others}")


if __name__ == "__main__":
    main()
