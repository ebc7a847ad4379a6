"""Compare Conan's training step with sentence-transformers' and FlagEmbedding's: same model, texts and losses.

Run: `python benchmarks/train.py --pairs CORPUS [--tasks mixed|retrieval] [--shape small|large] [--precision bf16]
[--turns 3] [--peers PYTHON]`. CORPUS is a corpus after `conan mine`. PYTHON is an interpreter with the other libraries:
sentence-transformers 6.2, FlagEmbedding 1.4 and accelerate, preferably with the same torch. Missing ones are left out.

A mixed step has 36 examples: 4 queries, each with a positive and 4 hard negatives, and 32 sentence pairs. Its loss is
InfoNCE + 0.8 · CoSENT, each the mean over seven Matryoshka widths; `retrieval` leaves the sentence pairs out. All
libraries get the same batches, initial weights, precision, dropout (0.1), AdamW settings and clipping. For Conan, what
`conan train` runs in one process is timed, from the texts to the updated weights. Sentence-transformers is timed in a
plain loop over its losses, because its trainer takes one data set per step; with retrieval only, the trainer is timed
too. FlagEmbedding has no linear layer after the pooling, so it trains fewer parameters; its Matryoshka widths are the
same fractions of the encoder's width.

Here Conan's loss includes the other queries' positives as negatives (`in_batch_positives`), as the other libraries do.
The losses are therefore comparable, and must agree on the first batch without dropout. Each turn is a process of its
own; the first half of its steps is a warm-up, the second half is timed. The median of the turns is given.

`small` is a BERT with 4 layers of width 312, with up to 128 tokens; `large` has BERT-large's shape, with up to 512;
`tiny` is for trying the script out. On a GPU, the share of the GPU's measured matrix rate that the model's matrix
products reach is also printed; padding does not count.
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
VOCABULARY, DIMENSION = 21_128, 1792  # of Chinese BERT; of the paper
STEPS = 6  # for warm-up, then the same number timed
AGREEMENT = 1e-4
PEERS = {
    "sentence-transformers": ("sentence_transformers", "sentence_transformers"),
    "sentence-transformers, trainer": ("accelerate", "trainer"),
    "FlagEmbedding": ("FlagEmbedding", "flag_embedding"),
}
"""For each: the package that it needs, and its function in peers/train.py."""


def main() -> None:
    """Prepare the batches, time all libraries in turn, print seconds, examples per second, ratios and losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, metavar="CORPUS")
    parser.add_argument("--tasks", choices=["mixed", "retrieval"], default="mixed")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--peers", default=sys.executable, metavar="PYTHON", help="interpreter with the other libraries"
    )
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
            f"{sum(map(len, updates['lengths'][STEPS:])) / STEPS:.0f} texts, {tokens / STEPS:,.0f} tokens per step"
        )
        took, theirs = in_turn(job, tokens, options)
        medians = {tool: statistics.median(turns) for tool, turns in took.items()}
        examples = job.settings.retrieval_batch + job.settings.sts_batch
        for tool, seconds in medians.items():
            turns = ", ".join(f"{turn:.3f}" for turn in sorted(took[tool]))
            print(f"{tool:30}{seconds:8.3f} s/step {examples / seconds:8.1f} examples/s   turns {turns}")
        for tool in medians.keys() - {"Conan"}:
            print(f"{tool} / Conan: {medians[tool] / medians['Conan']:.2f}")
        if DEVICE.type != "cpu":
            print_share(updates["lengths"][STEPS:], options, medians)
    apart = abs(theirs - updates["loss"]) / updates["loss"]
    print(f"loss of the first batch without dropout: {updates['loss']:.6f}, relative difference {apart:.1e}")
    if not apart <= AGREEMENT:
        sys.exit(f"the losses differ by more than {AGREEMENT}, so the libraries don't train the same task")


def prepare(place: Path, options: argparse.Namespace) -> Job:
    """Write the model, the records, the job, and its batches as texts for the other libraries."""
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
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # in a process of its own: it joins a process group
    return job


def with_negatives(corpus: Path, number: int) -> pl.DataFrame:
    """Return the retrieval records with `number` negatives, provided or mined: the other libraries need that many."""
    records = pl.read_parquet(corpus / "convert" / "retrieval" / "*.parquet")
    records = records.unique("query", keep="first", maintain_order=True)
    pools = read_candidates(corpus).select("query", mined=pl.col("passage_ids").list.len())
    given, mined = pl.col("negatives").list.n_unique(), pl.col("mined")
    enough = (given >= number) | ((given == 0) & (mined >= number))
    return records.join(pools, "query", maintain_order="left").filter(enough).drop("mined")


def write_updates(job: Job) -> None:
    """Write the texts of each step in columns, as other libraries take them; their lengths; and Conan's first loss."""
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
    model, tokenizer = load(job.model, max_length=job.settings.max_length)
    task = build_task(job, world_size=1, prompts=model.prompts)
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
    os._exit(0)  # as a training process does, because libraries report leaks that aren't real


def in_turn(job: Job, tokens: int, options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """Time all libraries; return seconds per step by turn, and sentence-transformers' loss of the first batch."""
    commands = {}
    for name, (package, function) in PEERS.items():
        if options.tasks == "mixed" and function != "sentence_transformers":
            print(f"{name} is left out: it can't train both tasks in one step; see --tasks retrieval")
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
    """Train with Conan; return seconds per step from the last log entry, which counts from the entry before."""
    run_job(job, 1)
    entries = [json.loads(line) for line in (job.folder / "log.jsonl").read_text("utf-8").splitlines()]
    rate = next(entry["tokens_per_second"] for entry in entries if "loss" in entry and entry["step"] == 2 * STEPS)
    return float(tokens / rate / STEPS)


def print_share(lengths: list[list[int]], options: argparse.Namespace, medians: dict[str, float]) -> None:
    """Print the share of the measured matrix rate that the model's products reach (one forward, two backward)."""
    products = step_operations(options.shape, lengths)
    rate = matrix_rate(DEVICE, torch.bfloat16 if options.precision == "bf16" else torch.float32)
    for tool, seconds in medians.items():
        share = products / seconds / rate
        print(f"{tool:30}{products / seconds / 1e12:6.0f} TFLOP/s, {share:.0%} of the {rate / 1e12:.0f} measured")


def step_operations(shape: str, lengths: list[list[int]]) -> float:
    """Count the operations of a step's matrix products, averaged over steps whose texts have these lengths."""
    texts = sum(map(len, lengths))
    forward = (
        forward_operations(SHAPES[shape], chain.from_iterable(lengths))
        + 2 * SHAPES[shape]["hidden"] * DIMENSION * texts
    )
    return 3 * forward / len(lengths)


if __name__ == "__main__":
    main()
