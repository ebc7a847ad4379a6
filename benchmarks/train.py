"""Conan's training step against sentence-transformers' and FlagEmbedding's: the same model, texts and losses.

Run: `python benchmarks/train.py --pairs CORPUS [--tasks mixed|retrieval] [--shape small|large] [--precision bf16]
[--turns 3] [--peers PYTHON]`, with CORPUS a corpus after `conan mine`, and PYTHON an interpreter that has the peers:
sentence-transformers 6.2, FlagEmbedding 1.4 and accelerate, best with the same torch. What it has not is left out.

A mixed step has 4 queries with a positive and 4 hard negatives each, and 32 sentence pairs: 36 examples. Its loss is
InfoNCE + 0.8 · CoSENT, each the mean over seven Matryoshka widths; `retrieval` leaves the sentence pairs out. All get
the same updates, weights, precision, dropout (0.1), AdamW and clipping. Conan is what `conan train` starts, in one
process, from the texts to the new weights. Sentence-transformers is a plain loop over its losses, as its trainer takes
one data set a step; that trainer stands beside it where there is retrieval alone. FlagEmbedding has no linear layer
after the pooling, so it trains less: its Matryoshka widths are the same parts of the encoder's own.

Conan's loss has the other queries' positives among the negatives here (`in_batch_positives`), as theirs do: so losses
can be compared, and must agree on the first update without dropout. Each turn is a process of its own; of its steps the
first half warms up and the other is timed. Given is the median of the turns.

`small` is a BERT of 4 layers, 312 wide, at 128 tokens; `large` has BERT-large's shape, at 512; `tiny` is for trying. On
a GPU, printed too is the share of the card's matrix rate, measured first, that the model's own products reach; padding
is none of them.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import torch
from conan_embedding.pipeline.corpus.pools import read_candidates
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.launch.launcher import run_job
from conan_embedding.trainer.launch.process import join_process_group
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.model.export import export
from conan_embedding.trainer.stages import build_task
from measures import DEVICE, LARGE, SMALL, TINY, forward_operations, matrix_rate

SHAPES = {"tiny": TINY, "small": SMALL, "large": LARGE}
LENGTHS = {"tiny": 32, "small": 128, "large": 512}  # tokens
VOCABULARY, DIMENSION = 21_128, 1792  # BERT's for Chinese; the paper's
STEPS = 6  # to warm up, and as many that are timed
AGREEMENT = 1e-4
PEERS = {
    "sentence-transformers": ("sentence_transformers", "sentence_transformers"),
    "sentence-transformers, trainer": ("accelerate", "trainer"),
    "FlagEmbedding": ("FlagEmbedding", "flag_embedding"),
}
"""The package that each needs, and its function in peers/train.py."""


def main() -> None:
    """Prepare the updates, let all train in turn, print seconds, examples a second, ratios and the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, metavar="CORPUS")
    parser.add_argument("--tasks", choices=["mixed", "retrieval"], default="mixed")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="an interpreter that has the peers")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if DEVICE.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if options.job:
        write_updates(Job.model_validate_json(options.job.read_text("utf-8")))
        return
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(Path(folder), options)
        updates = json.loads((job.corpus / "updates.json").read_text("utf-8"))
        tokens = sum(map(sum, updates["lengths"][STEPS:]))
        print(
            f"{options.tasks}, {options.shape}, {options.precision}, {torch.get_num_threads()} threads: "
            f"{sum(map(len, updates['lengths'][STEPS:])) / STEPS:.0f} texts a step of {tokens / STEPS:,.0f} tokens"
        )
        took, theirs = in_turn(job, tokens, options)
        medians = {tool: statistics.median(turns) for tool, turns in took.items()}
        examples = job.settings.retrieval_batch + job.settings.sts_batch
        for tool, seconds in medians.items():
            turns = ", ".join(f"{turn:.3f}" for turn in sorted(took[tool]))
            print(f"{tool:30}{seconds:8.3f} s a step {examples / seconds:8.1f} examples/s   turns {turns}")
        for tool in medians.keys() - {"Conan"}:
            print(f"{tool} / Conan: {medians[tool] / medians['Conan']:.2f}")
        if DEVICE.type != "cpu":
            print_share(updates["lengths"][STEPS:], options, medians)
    apart = abs(theirs - updates["loss"]) / updates["loss"]
    print(f"loss of the first update without dropout: {updates['loss']:.6f}, apart by {apart:.1e}")
    if not apart <= AGREEMENT:
        sys.exit(f"the losses differ by more than {AGREEMENT}: these are different tasks")


def prepare(place: Path, options: argparse.Namespace) -> Job:
    """Write the model, the records, and of the job that trains on them what the others need."""
    settings = FinetuneSettings(
        max_length=LENGTHS[options.shape],
        steps=2 * STEPS,
        log_every=STEPS,
        precision=options.precision,
        in_batch_positives=True,
        **({"sts_batch": 0} if options.tasks == "retrieval" else {}),
    )
    corpus = options.pairs.resolve()
    records = with_negatives(corpus, settings.negatives)
    records.write_parquet(place / "retrieval.parquet")
    shutil.copy(corpus / "pools.duckdb", place)
    texts = pl.concat([records["query"], records["positives"].explode()])
    bert = tiny_bert(place / "bert", texts=texts.to_arrow(), vocabulary_size=VOCABULARY, **SHAPES[options.shape])
    config = json.loads((bert / "config.json").read_text("utf-8"))
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # BERT's own
    (bert / "config.json").write_text(json.dumps(config | dropout), "utf-8")
    torch.manual_seed(0)
    export(*load(bert, DIMENSION, "mean", settings.max_length), place / "model")
    sentences = sorted((corpus / "convert" / "sts").glob("*.parquet"))
    job = Job(
        corpus=place,
        name="finetune",
        model=str(place / "model"),
        settings=settings,
        shards={"retrieval": [place / "retrieval.parquet"], "sts": sentences if settings.sts_batch else []},
        fingerprint="",
    )
    (place / "job.json").write_text(job.model_dump_json(), "utf-8")
    command = [sys.executable, __file__, "--pairs", corpus, "--job", place / "job.json"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # an own process, as it joins a process group
    return job


def with_negatives(corpus: Path, number: int) -> pl.DataFrame:
    """The retrieval records with that many negatives, of their own or in their pools: theirs can't do with fewer."""
    records = pl.read_parquet(corpus / "convert" / "retrieval" / "*.parquet")
    records = records.unique("query", keep="first", maintain_order=True)
    pools = read_candidates(corpus).select("query", mined=pl.col("passage_ids").list.len())
    given, mined = pl.col("negatives").list.n_unique(), pl.col("mined")
    enough = (given >= number) | ((given == 0) & (mined >= number))
    return records.join(pools, "query", maintain_order="left").filter(enough).drop("mined")


def write_updates(job: Job) -> None:
    """The texts of each step, column by column as other libraries take them; their lengths; Conan's first loss."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    join_process_group()
    job.folder.mkdir(parents=True)
    task = build_task(job, world_size=1)
    model, tokenizer = load(job.model, max_length=job.settings.max_length)
    updates: list[dict[str, Any]] = []
    lengths = []
    for step in range(1, task.steps + 1):
        update = task.build_batch(step)
        columns = {
            name: [update.texts[row] for row in getattr(update, f"{name}_rows")]
            for name in ("query", "positive", "left", "right")
        }
        negatives = [[update.texts[row] for row in own] for own in update.negative_rows.T]
        updates.append(columns | {"negatives": negatives, "labels": update.labels.tolist()})
        ids = tokenizer(update.texts, truncation=True, max_length=job.settings.max_length)["input_ids"]
        lengths.append([len(each) for each in ids])
    first = task.build_batch(1)
    padded = tokenizer(
        first.texts, truncation=True, max_length=job.settings.max_length, padding=True, return_tensors="pt"
    ).to(DEVICE)
    with torch.no_grad():
        vectors = model.eval().to(DEVICE)(padded["input_ids"], padded["attention_mask"])
    loss = float(task.loss(vectors, first, None).total)
    content = {"settings": job.settings.model_dump(mode="json"), "warm_up": STEPS, "loss": loss, "lengths": lengths}
    (job.corpus / "updates.json").write_text(json.dumps(content | {"updates": updates}, ensure_ascii=False), "utf-8")
    sys.stdout.flush()
    os._exit(0)  # as a training process ends: libraries report leaks that are none


def in_turn(job: Job, tokens: int, options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Seconds a step of each tool in each turn, and sentence-transformers' loss of the first update."""
    commands = {}
    for name, (package, function) in PEERS.items():
        if options.tasks == "mixed" and function != "sentence_transformers":
            print(f"{name} is left out: it has no step of both tasks; see --tasks retrieval")
        elif subprocess.run([options.peers, "-c", f"import {package}"], capture_output=True).returncode:
            print(f"{name} is left out: {options.peers} can't import {package}; see --peers")
        else:
            commands[name] = [options.peers, Path(__file__).parent / "peers" / "train.py", function, job.corpus]
    took: dict[str, list[float]] = {tool: [] for tool in ("Conan", *commands)}
    loss = float("nan")
    for turn in range(options.turns):
        took["Conan"].append(ours(job.model_copy(update={"fingerprint": f"turn {turn}"}), tokens))
        for tool, command in commands.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            took[tool].append(found["seconds"])
            loss = found.get("loss", loss)
    return took, loss


def ours(job: Job, tokens: int) -> float:
    """Seconds a step by the log's last entry, which counts from the one before."""
    run_job(job, 1)
    entries = [json.loads(line) for line in (job.folder / "log.jsonl").read_text("utf-8").splitlines()]
    rate = next(entry["tokens_per_second"] for entry in entries if "loss" in entry and entry["step"] == 2 * STEPS)
    return float(tokens / rate / STEPS)


def print_share(lengths: list[list[int]], options: argparse.Namespace, medians: dict[str, float]) -> None:
    """The part of the measured matrix rate that the model's own products reach: once forward, twice backward."""
    products = step_operations(options.shape, lengths)
    rate = matrix_rate(DEVICE, torch.bfloat16 if options.precision == "bf16" else torch.float32)
    for tool, seconds in medians.items():
        share = products / seconds / rate
        print(f"{tool:30}{products / seconds / 1e12:6.0f} TFLOP/s, {share:.0%} of the {rate / 1e12:.0f} measured")


def step_operations(shape: str, lengths: list[list[int]]) -> float:
    """Operations of the products of a step, on average of steps whose texts have these lengths."""
    texts = sum(map(len, lengths))
    forward = (
        forward_operations(SHAPES[shape], chain.from_iterable(lengths))
        + 2 * SHAPES[shape]["hidden"] * DIMENSION * texts
    )
    return 3 * forward / len(lengths)


if __name__ == "__main__":
    main()
