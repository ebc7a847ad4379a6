"""One run of docs/results/plan.md: train an arm of the paper's Table 4 with one seed, then evaluate the model.

Run: `python benchmarks/results.py ARM SEED --corpus CORPUS --work FOLDER [--set finetune-key=VALUE …]`. CORPUS was made
from recipes/zh-results.yaml. ARM is one of ARMS, or one of UNTRAINED: the model that all arms start from, the encoder
that this was made from, and BM25. The result is a folder in `docs/results/data`, or wherever `--runs` says:

- metrics.json: the settings, the metrics of both halves, and what the run took
- questions.parquet: the metric of each question, pair or text, in the order of the sets
- log.jsonl: the trainer's log, a line for each update
- scores.parquet: the cosines of each query that was drawn, and the mean cosine of random pairs under the same weights

A run that has its metrics.json is not repeated, and one that was killed continues from its last checkpoint in FOLDER.
`benchmarks/results_tables.py` makes the tables and plots.

All arms start from one model, draw from one sample of queries and encode as many texts in an update. GPUS GPUs are
simulated in one process. Without CBB, each has 4 queries with n negatives each, or a batch of sentence pairs, and
denominators of its own; a task is drawn for each update. With CBB, all share 4 queries, each with GPUS times n
negatives, and one more GPU has a batch of sentence pairs.
"""

import argparse
import json
import os
import shutil
import socket
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import polars as pl
import torch
import yaml
from conan_embedding.pipeline.corpus.folder import shards
from conan_embedding.pipeline.corpus.pools import stored_fingerprint
from conan_embedding.pipeline.corpus.shard_writer import ShardWriter
from conan_embedding.pipeline.encoder import encoder as encoders
from conan_embedding.pipeline.encoder.encoder import dimension, load_encoder
from conan_embedding.schemas.recipe import load
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.schemas.training import RETRIEVAL
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer import train
from conan_embedding.trainer.evaluation.evaluate import Judgement, judge, judge_bm25
from conan_embedding.trainer.evaluation.evaluation_sets import EvaluationSet, find_own_sets, read_sets
from conan_embedding.trainer.job import Job, make_job
from conan_embedding.trainer.loss.cbb import Batch, Losses
from conan_embedding.trainer.loss.losses import cosine_matrix
from conan_embedding.trainer.model.export import DTYPES
from conan_embedding.trainer.stages import Task, build_task
from measures import PRECISION
from simulated_gpus import on_each_gpu
from torch import Tensor

GPUS, NEGATIVES, PAIRS = 4, 4, 12
"""Simulated GPUs; the paper's n, per query and GPU; sentence pairs per GPU."""
QUERIES_OF_A_GPU = 4
"""The paper's batch of retrieval (§3.1)."""
STEPS, QUERIES_OF_A_SOURCE, CHECK_EVERY, LEARNING_RATE = 120, 12, 15, 5e-5
"""Chosen here, see docs/results/plan.md: updates, queries sampled of each source, updates between checks of DHNM."""


class Arm(NamedTuple):
    """The queries, negatives per query and sentence pairs of an update, and how they are compared."""

    queries: int
    negatives: int
    pairs: int
    gpus: int = 1  # those with denominators of their own
    alternate_tasks: bool = False
    mines: bool = False
    rescales: bool = False
    in_batch_positives: bool = False


_VANILLA = Arm(GPUS * QUERIES_OF_A_GPU, NEGATIVES, GPUS * PAIRS, gpus=GPUS, alternate_tasks=True)
_CBB = Arm(QUERIES_OF_A_GPU, GPUS * NEGATIVES, PAIRS)
UNTRAINED = ["start", "zero-shot", "bm25"]
ARMS = {
    "vanilla": _VANILLA,
    "cbb": _CBB,
    "dhnm": _VANILLA._replace(mines=True),
    "both": _CBB._replace(mines=True),
    "dhnm-rescaled": _VANILLA._replace(mines=True, rescales=True),
    "both-rescaled": _CBB._replace(mines=True, rescales=True),
    "in-batch": Arm(32, 1, GPUS * PAIRS, alternate_tasks=True, in_batch_positives=True),
}
"""The paper's four; those with DHNM again, whose rule then sees (s − μ)/(1 − μ) instead of the score s, with μ the mean
cosine of random pairs; and what most people do: in-batch positives and one hard negative. 96 texts in each update."""


def main() -> None:
    """Make one run, unless its metrics are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=[*UNTRAINED, *ARMS])
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--corpus", type=Path, required=True, help="made from recipes/zh-results.yaml")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and models")
    parser.add_argument("--runs", type=Path, default=Path("docs/results/data"), help="results")
    parser.add_argument("--queries", type=int, default=QUERIES_OF_A_SOURCE, help="queries to draw of each source")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of `finetune:`")
    options = parser.parse_args()
    changes = [f"queries={options.queries}"] if options.queries != QUERIES_OF_A_SOURCE else []
    changes += options.set
    name = "-".join([options.arm, *([str(options.seed)] if options.arm in ARMS else []), *changes])
    folder = options.runs / name
    if not begin_run(folder):
        return
    recipe = load(options.corpus / "recipe.yaml")
    assert recipe.pretrain is not None and recipe.finetune is not None
    facts: dict[str, Any] = {"arm": options.arm, "seed": options.seed, "changes": changes}
    model = {"bm25": None, "zero-shot": recipe.pretrain.model}.get(options.arm, recipe.finetune.model)
    if options.arm in ARMS:
        settings = settings_of(options.arm, options.seed, recipe.finetune, options.set)
        job = prepare(options.corpus, options.work / name, settings, options.queries)
        facts |= train_arm(job, ARMS[options.arm], folder) | {"settings": settings.model_dump(mode="json")}
        model = str(job.model_folder)
    evaluate(options.corpus, model, recipe.finetune.max_length, folder, facts)


def begin_run(folder: Path) -> bool:
    """Make the folder of a run's results; return False, and say so, if the run is finished."""
    if (folder / "metrics.json").exists():
        print(f"{folder}: finished before")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    return True


def evaluate(corpus: Path, model: str | None, max_length: int, folder: Path, facts: dict[str, Any]) -> None:
    """Evaluate a model (None: BM25) on the corpus's sets; write questions.parquet, then metrics.json with `facts`."""
    sets, start = read_sets(find_own_sets(corpus)), time.process_time()
    if model is None:
        judgements = [judge_bm25(one) for one in with_one_haystack(sets) if one.task == "retrieval"]
    else:
        with mock.patch.object(encoders, "best_precision", return_value=DTYPES[PRECISION]):
            encoder = load_encoder(EncoderSettings(model=model, max_length=max_length))
        judgements = [judge(encoder, one, [dimension(encoder)])[0] for one in with_one_haystack(sets)]
    results = by_question(judgements, sets)
    results.drop("query_id").write_parquet(folder / "questions.parquet", compression="zstd")
    facts["evaluation_cpu_seconds"] = round(time.process_time() - start)
    facts["questions"] = zlib.crc32("".join(results["query_id"]).encode())
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{folder}: finished")


def settings_of(arm: str, seed: int, base: FinetuneSettings, changes: list[str]) -> FinetuneSettings:
    """Return the settings of a run: the recipe's, the arm's, and changes such as `learning_rate=1e-4`."""
    how = ARMS[arm]
    settings = base.model_dump() | {
        "steps": STEPS,
        "retrieval_batch": how.queries,
        "negatives": how.negatives,
        "sts_batch": how.pairs,
        "alternate_tasks": how.alternate_tasks,
        "in_batch_positives": how.in_batch_positives,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
        "log_every": 1,
        "checkpoint_every": CHECK_EVERY,
        "keep_checkpoints": 1,
        "precision": PRECISION,
    }
    settings["hard_negative_mining"] |= {"enabled": how.mines, "check_every": CHECK_EVERY}
    for change in changes:
        key, _, value = change.partition("=")
        *outer, inner = key.split(".")
        (settings[outer[0]] if outer else settings)[inner] = yaml.safe_load(value)
    return FinetuneSettings.model_validate(settings)


def prepare(corpus: Path, place: Path, settings: FinetuneSettings, queries: int) -> Job:
    """Make a corpus for a run, because training writes to the pools: all sentence pairs and pools, sampled queries.

    `queries` is their number for each source.
    """
    if not (place / "pools.duckdb").exists():
        records = pl.concat(pl.read_parquet(shard) for shard in shards(corpus, "convert/retrieval"))
        order = pl.col("query").map_elements(lambda text: zlib.crc32(text.encode()), pl.Int64)
        sample = records.sort(order).group_by("source", maintain_order=True).head(queries)
        shard = place / "convert" / "retrieval" / "part-00000.parquet"
        fingerprint = str(queries)
        with ShardWriter(shard, RETRIEVAL, None, stage="convert", version=1, fingerprint=fingerprint) as writer:
            writer.received(sample.height)
            writer.keep(sample.select(RETRIEVAL.names).to_arrow())
        shutil.copytree(corpus / "convert" / "sts", place / "convert" / "sts", dirs_exist_ok=True)
        shutil.copy(corpus / "pools.duckdb", place / "copied")
        (place / "copied").rename(place / "pools.duckdb")
    found = {kind: shards(place, f"convert/{kind}") for kind in ("retrieval", "sts")}
    return make_job(place, "finetune", settings.model, settings, found, stored_fingerprint(place))


def train_arm(job: Job, arm: Arm, results: Path) -> dict[str, Any]:
    """Train in this process, unless it is done; keep log and scores in `results`. Returns what the training took."""
    took = job.corpus / "took.json"
    if not took.exists():
        scores = job.corpus / "scores.jsonl"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "true"}
        job.folder.mkdir(parents=True, exist_ok=True)
        start, resumed = (time.process_time(), time.monotonic()), len(job.checkpoints)

        def build(*arguments: Any) -> Task:
            return recorded(build_task(*arguments), arm, scores)

        with mock.patch.object(train, "build_task", build):
            assert train.main(job)
        seconds = [round(now - then) for now, then in zip((time.process_time(), time.monotonic()), start, strict=True)]
        figures = {"cpu_seconds": seconds[0], "seconds": seconds[1], "threads": torch.get_num_threads()}
        took.write_text(json.dumps(figures | ({"resumed": True} if resumed else {})))
        shutil.copy(job.folder / "log.jsonl", results)
        # A step that was done again after a crash has two lines, of which the last one counts.
        frame = pl.read_ndjson(scores).unique(["step", "draw"], keep="last").sort("step", "draw")
        frame.write_parquet(results / "scores.parquet", compression="zstd")
    return json.loads(took.read_text())  # type: ignore[no-any-return]


def recorded(task: Task, arm: Arm, file: Path) -> Task:
    """Divide a task's loss among GPUs, and write the scores of each step to a file; rescale what DHNM sees."""
    loss, miner = on_each_gpu(task.loss, arm.gpus) if arm.gpus > 1 else task.loss, task.miner
    assert miner is not None
    observe, random_pairs = miner.observe, float("nan")

    def with_random_pairs(embeddings: Tensor, batch: Batch, temperature: Tensor | None) -> Losses:
        nonlocal random_pairs
        random_pairs = mean_of_random_pairs(embeddings.detach(), batch)
        return loss(embeddings, batch, temperature)

    def recording(step: int, losses: Losses, encode: Any = None) -> Any:
        rows = miner.rows_of(step)
        with file.open("a") as lines:
            for draw, row in enumerate(rows.tolist()):
                entry = {
                    "step": step,
                    "draw": draw,
                    "query_id": int(miner.data.query_ids[row]),
                    "round": int(miner.current.round[row]),  # type: ignore[union-attr]
                    "positive": round(float(losses.positive_scores[draw]), 4),
                    "negatives": [round(score, 4) for score in losses.negative_scores[draw].tolist()],
                    "random_pairs": round(random_pairs, 4),
                }
                lines.write(json.dumps(entry) + "\n")
        if arm.rescales:
            losses = replace(losses, negative_scores=(losses.negative_scores - random_pairs) / (1 - random_pairs))
        return observe(step, losses, encode)

    miner.observe = recording  # type: ignore[method-assign]
    return replace(task, loss=with_random_pairs)


def mean_of_random_pairs(embeddings: Tensor, batch: Batch) -> float:
    """Return the mean cosine of a batch's queries with the passages of its other queries, NaN without any."""
    own = torch.arange(len(batch.query_rows))[:, None].expand(-1, 1 + batch.negative_rows.shape[1])
    rows = torch.cat([batch.positive_rows[:, None], batch.negative_rows], dim=1)
    there = rows >= 0
    scores = cosine_matrix(embeddings[batch.query_rows], embeddings[rows[there]])
    other = batch.groups[rows[there]] != batch.groups[batch.query_rows][:, None]
    other &= own[there] != torch.arange(len(batch.query_rows))[:, None]
    return float(scores[other].mean())


def with_one_haystack(sets: list[EvaluationSet]) -> list[EvaluationSet]:
    """Join the retrieval sets: each question searches the passages of all of them, which are encoded once."""
    joined = [one for one in sets if one.task == "retrieval"]
    columns = ["query_id", "query", "positives", "negatives"]
    frame = pl.concat([one.frame.select(columns) for one in joined])
    whole = EvaluationSet("retrieval", "retrieval", frame, pl.concat([one.passages for one in joined]))
    return [whole, *(one for one in sets if one.task != "retrieval")]


def by_question(judgements: list[Judgement], sets: list[EvaluationSet]) -> pl.DataFrame:
    """Return a row per question, pair or text: `set, query_id, validation, label, value`; labels are of pairs."""
    names = [name for one in sets if one.task == "retrieval" for name in [one.name] * one.frame.height]
    frames = []
    for found in judgements:
        column = next(name for name in ("ndcg_10", "accuracy", "score") if name in found.results.columns)
        label = pl.col("label") if column == "score" else pl.lit(None)
        frames.append(
            found.results.select(
                set=pl.Series(names) if found.set == "retrieval" else pl.lit(found.set),
                query_id="query_id",
                validation=pl.Series([zlib.crc32(text.encode()) % 2 == 1 for text in found.results["query"]]),
                label=label.cast(pl.Float32),
                value=pl.col(column).cast(pl.Float32),
            )
        )
    return pl.concat(frames)


if __name__ == "__main__":
    main()
