"""Conan's fine-tuning against that of sentence-transformers and FlagEmbedding: same model, pairs, steps and texts.

Run: `python benchmarks/versus.py TOOL SEED --corpus CORPUS --work FOLDER [--learning-rate 2e-5] [--temperature 0.02]
[--peers PYTHON]`. CORPUS was made by `conan run recipes/zh-results.yaml`. TOOL is one of TOOLS; PYTHON is a Python
with sentence-transformers 6.2, FlagEmbedding 1.4 and accelerate. Each run leaves a folder in docs/results/data, as
`benchmarks/results.py` does, and a run that has its metrics.json is not repeated.

Each tool trains on all pairs of the corpus as its documentation says: it mines its own negatives with the model that it
starts from, and what is not named here is its default. All take STEPS steps of about TEXTS texts of at most 96 tokens,
with e5's prompts. Learning rate and temperature are chosen on the validation halves, among the same values for each.

- conan: `conan train` with the recipe's `finetune:`, the defaults: CBB and DHNM
- sentence-transformers: its trainer, MultipleNegativesRankingLoss on triplets of mine_hard_negatives and CoSENTLoss on
  the sentence pairs; -nv: with NV-Retriever's margin of 5 % (relative_margin), which its documentation recommends
- flag-embedding: its finetune, with negatives from ranks 10 to 210, and no sentence pairs, as it has no loss for them
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
from conan_embedding.pipeline.corpus.folder import shards
from conan_embedding.pipeline.corpus.pools import stored_fingerprint
from conan_embedding.pipeline.encoder.model_folder import find_model
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.job import make_job
from conan_embedding.trainer.launch.launcher import run_job
from results import evaluate

STEPS, TEXTS = 120, 96
"""Chosen here: as in an arm of benchmarks/results.py."""
RELATIVE_MARGIN = 0.05
"""NV-Retriever (arXiv 2407.15831), §4: TopK-PercPos at 95 %."""
TOOLS: dict[str, tuple[str, float | None]] = {
    "conan": ("", None),
    "sentence-transformers": ("sentence_transformers", None),
    "sentence-transformers-nv": ("sentence_transformers", RELATIVE_MARGIN),
    "flag-embedding": ("flag_embedding", None),
}
"""The function of peers/finetune.py and the relative margin of a tool's miner."""


def main() -> None:
    """Make one run, unless its metrics are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("seed", type=int)
    parser.add_argument("--corpus", type=Path, required=True, help="made by recipes/zh-results.yaml")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and models")
    parser.add_argument("--runs", type=Path, default=Path("docs/results/data"), help="folder for the results")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--temperature", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--peers", default=sys.executable, help="interpreter with the other libraries")
    options = parser.parse_args()
    changes = [f"learning_rate={options.learning_rate:g}", f"temperature={options.temperature:g}"]
    changes += [f"steps={options.steps}"] if options.steps != STEPS else []
    name = "-".join(["versus", options.tool, str(options.seed), *changes])
    folder, place = options.runs / name, options.work / name
    if (folder / "metrics.json").exists():
        print(f"{folder}: finished before")
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = load(options.corpus / "recipe.yaml").finetune
    assert settings is not None
    chosen = {name: vars(options)[name] for name in ("learning_rate", "temperature", "steps", "seed")}
    if options.tool == "conan":
        took = train_with_conan(options.corpus, place, settings.model_copy(update=chosen))
    else:
        given = chosen | {"max_length": settings.max_length, "texts": TEXTS}
        took = train_with_peer(options.tool, options.peers, options.corpus, place, settings.model, given)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {"arm": options.tool, "seed": options.seed, "changes": changes, **took, "peak_mb": used.ru_maxrss // 1024}
    evaluate(options.corpus, str(place / "model"), settings.max_length, folder, facts)


def train_with_conan(corpus: Path, place: Path, settings: FinetuneSettings) -> dict[str, Any]:
    """Train as `conan train` does, unless it is done, in a corpus of its own, because training writes to the pools."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "pools.duckdb").exists():
        (place / "convert").symlink_to((corpus / "convert").resolve())
        shutil.copy(corpus / "pools.duckdb", place)
    found = {kind: shards(place, f"convert/{kind}") for kind in ("retrieval", "sts")}
    job = make_job(place, "finetune", settings.model, settings, found, stored_fingerprint(place))
    start = time.monotonic()
    run_job(job, 1)
    shutil.copytree(job.model_folder, place / "model", dirs_exist_ok=True)
    return {"training_seconds": time.monotonic() - start}


def train_with_peer(
    tool: str, python: str, corpus: Path, place: Path, model: str, given: dict[str, Any]
) -> dict[str, Any]:
    """Train with another library, in its own process."""
    function, relative_margin = TOOLS[tool]
    shutil.copytree(find_model(model), place / "start", dirs_exist_ok=True)
    records = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, "convert/retrieval"))
    records.select("query", positive=pl.col("positives").list.first()).write_ndjson(place / "pairs.jsonl")
    pairs = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, "convert/sts"))
    pairs.select(sentence1="text_a", sentence2="text_b", score="label").write_ndjson(place / "sentences.jsonl")
    (place / "settings.json").write_text(json.dumps(given | {"relative_margin": relative_margin}))
    script = Path(__file__).parent / "peers" / "finetune.py"
    answer = subprocess.run([python, script, function, place], check=True, stdout=subprocess.PIPE, text=True).stdout
    took: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return took


if __name__ == "__main__":
    main()
