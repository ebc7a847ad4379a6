"""Conan's fine-tuning against that of sentence-transformers and FlagEmbedding: same model, pairs, steps and texts.

Run: `python benchmarks/versus.py TOOL SEED --corpus CORPUS --work FOLDER [--learning-rate 2e-5] [--temperature 0.02]
[--peers PYTHON]`. CORPUS was made by `conan run recipes/zh-results.yaml`. TOOL is one of CONAN or PEERS; PYTHON is one
with sentence-transformers 6.2, FlagEmbedding 1.4 and accelerate. Each run leaves a folder in docs/results/peers, as
`benchmarks/results.py` does, and a run that has its metrics.json is not repeated.

Each tool trains on all pairs of the corpus as its documentation says: it mines its own negatives with the model that it
starts from, once for all runs, and what is not named here is its default. All take as many steps of about TEXTS texts,
which are cut to 96 tokens, with e5's prompts. Learning rate and temperature are chosen on the validation halves, among
the same values for each. Seconds are those of one processor, because runs may share the machine.

- conan: `conan train` with the recipe's `finetune:`, the defaults: CBB and DHNM, 4 queries in a step
- conan-init: the same with what `conan init` drafts: in-batch positives, one negative, the full width alone
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
from pathlib import Path
from typing import Any

import polars as pl
from conan_embedding.pipeline.corpus.folder import shards
from conan_embedding.pipeline.corpus.pools import stored_fingerprint
from conan_embedding.pipeline.encoder.model_folder import find_model
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.mine.stage import mine
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.settings import MineSettings
from conan_embedding.schemas.training_settings import FinetuneSettings, HardNegativeMining
from conan_embedding.trainer.job import make_job
from conan_embedding.trainer.launch.launcher import run_job
from measures import processor_time
from results import begin_run, evaluate

TEXTS = 96
"""Chosen here: as in an arm of benchmarks/results.py."""
CHOSEN = ("learning_rate", "temperature", "steps", "seed")
"""The settings that are the same for all tools."""
RELATIVE_MARGIN = 0.05
"""NV-Retriever (arXiv 2407.15831), §4: TopK-PercPos at 95 %."""
CONAN: dict[str, dict[str, Any]] = {
    "conan": {},
    "conan-init": {
        "retrieval_batch": 20,  # with the sentence pairs TEXTS texts, in place of 32
        "sts_batch": 18,
        "in_batch_positives": True,
        "negatives": 1,
        "matryoshka_dims": [],
        "hard_negative_mining": HardNegativeMining(enabled=False),
    },
}
"""Changes in the recipe's `finetune:`."""
PEERS: dict[str, tuple[str, float | None]] = {
    "sentence-transformers": ("sentence_transformers", None),
    "sentence-transformers-nv": ("sentence_transformers", RELATIVE_MARGIN),
    "flag-embedding": ("flag_embedding", None),
}
"""The function of peers/finetune.py and the relative margin of a tool's miner."""


def main() -> None:
    """Make one run, unless its metrics are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=[*CONAN, *PEERS])
    parser.add_argument("seed", type=int)
    parser.add_argument("--corpus", type=Path, required=True, help="made by recipes/zh-results.yaml")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and models")
    parser.add_argument("--runs", type=Path, default=Path("docs/results/peers"), help="folder for the results")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--temperature", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--peers", default=sys.executable, help="interpreter with the other libraries")
    options = parser.parse_args()
    chosen = {name: vars(options)[name] for name in CHOSEN}
    changes = [f"{name}={value:g}" for name, value in chosen.items() if name != "seed"]
    name = "-".join(["versus", options.tool, str(options.seed), *changes])
    folder, place = options.runs / name, options.work / name
    mined = options.work / ("mined-conan" if options.tool in CONAN else f"mined-{options.tool}")
    if not begin_run(folder):
        return
    recipe = load(options.corpus / "recipe.yaml")
    assert recipe.finetune is not None and recipe.mine is not None
    settings = recipe.finetune.model_copy(update=chosen | CONAN.get(options.tool, {}))
    function, relative_margin = PEERS.get(options.tool, ("", None))
    script = Path(__file__).parent / "peers" / "finetune.py"
    took: dict[str, Any] = {}
    if not (mined / "took.json").exists():  # the same for every learning rate and seed
        shutil.rmtree(mined, ignore_errors=True)
        with processor_time(took, "mining_seconds"):
            if options.tool in CONAN:
                mine_with_conan(options.corpus, mined, recipe.mine)
            else:
                mined.mkdir(parents=True)
                write_data(options.corpus, mined, settings, relative_margin)
                subprocess.run([options.peers, script, "mine", function, mined], check=True)
        (mined / "took.json").write_text(json.dumps(took))
    took = json.loads((mined / "took.json").read_text())
    with processor_time(took, "training_seconds"):
        if options.tool in CONAN:
            train_with_conan(mined, place, settings)
        else:
            place.mkdir(parents=True, exist_ok=True)
            write_data(options.corpus, place, settings, relative_margin)
            shutil.copy(mined / "mined.jsonl", place)
            subprocess.run([options.peers, script, "train", function, place], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {"arm": options.tool, "seed": options.seed, "changes": changes, **took, "peak_mb": used.ru_maxrss // 1024}
    evaluate(options.corpus, str(place / "model"), settings.max_length, folder, facts)


def mine_with_conan(corpus: Path, place: Path, settings: MineSettings) -> None:
    """Mine as `conan mine` does, in a corpus of its own."""
    place.mkdir(parents=True)
    (place / "convert").symlink_to((corpus / "convert").resolve())
    mine(place, settings, Engine(1))


def train_with_conan(mined: Path, place: Path, settings: FinetuneSettings) -> None:
    """Train as `conan train` does, unless it is done, in a corpus of its own, because training writes to the pools."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "pools.duckdb").exists():
        (place / "convert").symlink_to((mined / "convert").resolve())
        shutil.copy(mined / "pools.duckdb", place)
    found = {kind: shards(place, f"convert/{kind}") for kind in ("retrieval", "sts")}
    job = make_job(place, "finetune", settings.model, settings, found, stored_fingerprint(place))
    run_job(job, 1)
    shutil.copytree(job.model_folder, place / "model", dirs_exist_ok=True)


def write_data(corpus: Path, place: Path, settings: FinetuneSettings, relative_margin: float | None) -> None:
    """Write what peers/finetune.py reads: the model to start from, pairs, sentence pairs and settings."""
    shutil.copytree(find_model(settings.model), place / "start", dirs_exist_ok=True)
    records = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, "convert/retrieval"))
    records.select("query", positive=pl.col("positives").list.first()).write_ndjson(place / "pairs.jsonl")
    pairs = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, "convert/sts"))
    pairs.select(sentence1="text_a", sentence2="text_b", score="label").write_ndjson(place / "sentences.jsonl")
    given = {name: getattr(settings, name) for name in (*CHOSEN, "max_length")}
    (place / "settings.json").write_text(json.dumps(given | {"texts": TEXTS, "relative_margin": relative_margin}))


if __name__ == "__main__":
    main()
