"""The cost of dynamic hard negative mining (DHNM) during training by number of queries, measured without a model.

Run: `python benchmarks/dhnm.py [--policy v1|v2] [--queries 10000 100000 1000000] [--candidates 100] [--batch 64]
[--checks 10]`. A million queries take 3 GB of disk in a temporary folder, and 5 GB of memory while they are generated.

Queries of 16 Han characters, the same number of passages of 60, and pools of random passages are written as `conan
mine` and a training run would. Then another process does what training does apart from the model: steps of `--batch`
queries with generated scores; every hundredth step is a check, at which half of the queries seen since the last check
get new negatives. Every query has been seen before, so that `windows` in pools.duckdb has a row for each.

    step      recording the scores of a step
    check     the sum of three parts: deciding which queries get new negatives; writing changed windows and the log to
              pools.duckdb; reading the texts of the next batch with its new negatives. A step with a check takes this
              much longer.
    all       writing every window, as at the end of a run

With `--policy v2` a query has 7 negatives. Every step has about half of its negatives replaced, and at a checkpoint,
every 500 steps, the state is saved. A training step of the same batches is timed for comparison: BERT with 4 layers of
width 312, forward, backward and AdamW, without the sentence pairs that a real step has as well.

    step        recording the scores of a step and replacing negatives
    checkpoint  writing what has changed to pools.duckdb, and saving the state
    policy      a step with its share of a checkpoint
    training    the training step, and what share of it the policy is

Memory is the peak of the process's own memory (RssAnon in Linux's /proc/self/status), without pages of mapped files.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conan_embedding.pipeline.corpus.pools import as_lists, write_pools
from conan_embedding.pipeline.mine.methods import ceiling_sql
from conan_embedding.schemas.dhnm_settings import HardNegativeMining
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.data.batches import finetune_batch
from conan_embedding.trainer.data.training_tables import read_finetune, write_finetune
from conan_embedding.trainer.dhnm.negative_miner import NegativeMiner
from conan_embedding.trainer.dhnm.window_miner import WindowMiner
from conan_embedding.trainer.dhnm.windows import observe
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.loss.cbb import Batch, Losses, cbb_loss
from measures import SMALL
from transformers import BertConfig, BertModel

QUERY, PASSAGE = 16, 60
NEGATIVES = {"v1": 4, "v2": 7}  # of the defaults; of Conan-embedding-v2

HEADS = {
    "v1": "  queries      step     check =   decide +    write +     read       all    memory",
    "v2": "  queries      step checkpoint   policy          training        all    memory",
}


def main() -> None:
    """Print a line for each number of queries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--checks", type=int, default=10)
    parser.add_argument("--policy", choices=["v1", "v2"], default="v1")
    parser.add_argument("--step", choices=["make", "v1", "v2"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "make":
        make(arguments.folder, arguments.queries[0], arguments.candidates)
    elif arguments.step:
        measure = {"v1": check, "v2": replace_at_every_step}[arguments.step]
        measure(arguments.folder, arguments.batch, arguments.checks)
    else:
        print(HEADS[arguments.policy])
        for count in arguments.queries:
            with tempfile.TemporaryDirectory() as folder:
                shared = ["--folder", folder, "--candidates", arguments.candidates, "--queries", count]
                shared += ["--batch", arguments.batch, "--checks", arguments.checks]
                run("make", *shared)
                print(f"{count:>9,}  {run(arguments.policy, *shared)}", flush=True)


def run(step: str, *options: object) -> str:
    """Run one step in a process of its own; return what it prints."""
    command = [sys.executable, __file__, "--step", step, *map(str, options)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make(folder: Path, count: int, candidates: int) -> None:
    """Write pools.duckdb, a shard of convert/retrieval, and the exported data of a training run."""
    random = np.random.default_rng(count)
    ids = np.arange(count)
    queries, passages = texts(random, count, QUERY), texts(random, count, PASSAGE)
    each = np.full(count, candidates)
    run = {"run_id": "r", "model_fingerprint": "m", "method": "topk", "margin": 1.0, "top_k": candidates}
    created = np.datetime64("2024-08-30", "us").item()
    write_pools(
        folder,
        {
            "runs": pa.Table.from_pylist([run | {"fingerprint": "f", "created_at": created}]),
            "passages": pa.table({"passage_id": ids, "text": passages, "cluster_id": ids}),
            "queries": pa.table({"query_id": ids, "text": queries}),
            "positives": pa.table({"query_id": ids, "passage_id": ids, "score": np.ones(count, np.float32)}),
            "candidates": pa.table(
                {
                    "query_id": ids,
                    "run_id": pa.repeat("r", count),
                    "passage_ids": as_lists(random.integers(0, count, each.sum()), each),
                    "scores": as_lists(np.full(each.sum(), 0.5, np.float32), each),
                }
            ),
        },
        ceiling_sql(),
    )
    records = {
        "pair_ids": as_lists(pa.repeat("p", count).to_numpy(zero_copy_only=False), np.ones(count)),
        "source": pa.repeat("s", count),
        "category": pa.repeat("news", count),
        "query": queries,
        "positives": pa.LargeListArray.from_arrays(np.arange(count + 1), passages),
        "cluster_ids": as_lists(ids, np.ones(count)),
        "negatives": pa.LargeListArray.from_arrays(np.zeros(count + 1, np.int64), passages[:0]),
    }
    pq.write_table(pa.table(records), folder / "part.parquet", row_group_size=64_000)
    (folder / "data").mkdir()
    write_finetune(folder / "data", folder, {"retrieval": [folder / "part.parquet"]}, [])


def texts(random: np.random.Generator, rows: int, characters: int) -> pa.Array:
    """Generate texts of random Han characters, which take three bytes each in UTF-8."""
    points = random.integers(0x4E00, 0x9FA5, rows * characters)
    encoded = np.stack([0xE0 | points >> 12, 0x80 | points >> 6 & 0x3F, 0x80 | points & 0x3F], axis=1).astype(np.uint8)
    offsets = np.arange(rows + 1) * (3 * characters)
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(encoded.tobytes())]
    return pa.Array.from_buffers(pa.large_string(), rows, buffers)


def check(folder: Path, batch: int, checks: int) -> None:
    """Run steps and checks without a model, and print the medians."""
    random = np.random.default_rng(0)
    before = anonymous()
    most = [before]
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    settings = FinetuneSettings(negatives=NEGATIVES["v1"])
    every = settings.hard_negative_mining.check_every
    data = read_finetune(folder / "data")
    drawn = random.integers(0, len(data.queries), (checks * every + 1, batch))
    job = Job(corpus=folder, name="", model="", settings=settings, shards={}, fingerprint="")
    mining = WindowMiner(job, settings, data, rows_of=lambda step: drawn[step - 1])
    mining.current = observe(mining.current, np.arange(len(data.queries)), np.full(len(data.queries), 0.9))

    taken: dict[str, list[float]] = {"step": [], "decide": [], "write": [], "read": [], "all": []}
    timed(taken["all"], lambda: mining.write(0))
    nothing = torch.zeros(())
    for step in range(1, checks * every + 1):
        scores = np.repeat(random.choice([0.9, 0.5], batch), settings.negatives).reshape(batch, -1)
        losses = Losses(nothing, {}, torch.zeros(batch), torch.from_numpy(scores))
        checking = mining.checks(step)
        timed(taken["decide" if checking else "step"], lambda: mining.observe(step, losses))  # noqa: B023
        if checking:
            timed(taken["write"], lambda: mining.write(step, whole=False))  # noqa: B023
            rows, visits, none = drawn[step], np.zeros(batch, np.int64), np.zeros(0, np.int64)
            asked = (rows, none, settings.negatives, visits, Prompts())
            timed(taken["read"], lambda: finetune_batch(data, mining.current, *asked))  # noqa: B023
    timed(taken["all"], lambda: mining.write(step))
    ms = {name: 1000 * float(np.median(seconds)) for name, seconds in taken.items()}
    whole = ms["decide"] + ms["write"] + ms["read"]
    figures = [f"{each:5.1f} ms" for each in (ms["step"], whole, ms["decide"], ms["write"], ms["read"], ms["all"])]
    print(
        "{}  {} = {} + {} + {}  {}".format(*figures), f"  {max(most):.0f} MB, {max(most) - before:.0f} of them for DHNM"
    )


def replace_at_every_step(folder: Path, batch: int, checkpoints: int) -> None:
    """Run steps of policy v2 without a model, and print the medians and their share of a training step."""
    random = np.random.default_rng(0)
    before = anonymous()
    most = [before]
    threading.Thread(target=watch, args=(most,), daemon=True).start()
    settings = FinetuneSettings(negatives=NEGATIVES["v2"], hard_negative_mining=HardNegativeMining(policy="v2"))
    every, negatives = settings.checkpoint_every, settings.negatives
    data = read_finetune(folder / "data")
    drawn = random.integers(0, len(data.queries), (checkpoints * every + 1, batch))
    job = Job(corpus=folder, name="", model="", settings=settings, shards={}, fingerprint="")
    mining = NegativeMiner(job, settings, data, rows_of=lambda step: drawn[step - 1])
    for scores in (mining.current.initial_score, mining.current.last_score):
        scores[:] = 0.9

    taken: dict[str, list[float]] = {"step": [], "checkpoint": [], "training": [], "all": []}
    timed(taken["all"], lambda: mining.write(0))
    for step in range(1, checkpoints * every + 1):
        found = torch.from_numpy(random.choice([0.9, 0.5], (batch, negatives)))
        losses = Losses(torch.zeros(()), {}, torch.zeros(batch), found)
        timed(taken["step"], lambda: (mining.changes_data(step), mining.observe(step, losses)))  # noqa: B023
        if step % every == 0:
            save = lambda: (mining.write(step, whole=False), np.savez(folder / "state.npz", **mining.state()))  # noqa: B023, E731
            timed(taken["checkpoint"], save)
    timed(taken["all"], lambda: mining.write(step))
    memory = max(most)
    nobody, visits = np.zeros(0, np.int64), np.zeros(batch, np.int64)
    batches = [finetune_batch(data, mining.current, rows, nobody, negatives, visits, Prompts()) for rows in drawn[:4]]
    taken["training"] = training_steps(batches)[1:]
    ms = {name: 1000 * float(np.median(seconds)) for name, seconds in taken.items()}
    policy = ms["step"] + ms["checkpoint"] / every
    times = [f"{ms['step']:6.2f} ms", f"{ms['checkpoint']:7.0f} ms", f"{policy:5.2f} ms", f"{ms['training']:6.0f} ms,"]
    share = f"{100 * policy / ms['training']:4.2f} %"
    print(*times, share, f"{ms['all']:7.0f} ms", f"  {memory:.0f} MB, {memory - before:.0f} of them for DHNM")


def training_steps(batches: list[Batch]) -> list[float]:
    """Train a small model on the batches, a token for each character, and return the seconds that each step takes."""
    names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads"}
    model = BertModel(BertConfig(**{names.get(key, f"{key}_size"): value for key, value in SMALL.items()}))
    optimizer = torch.optim.AdamW(model.parameters())

    def train(batch: Batch) -> None:
        lengths = torch.tensor([len(text) for text in batch.texts])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        hidden = model(torch.randint(100, 20_000, mask.shape), mask).last_hidden_state
        embeddings = (hidden * mask[..., None]).sum(dim=1) / lengths[:, None]
        cbb_loss(embeddings, batch, temperature=0.02).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds: list[float] = []
    for batch in batches:
        timed(seconds, lambda: train(batch))  # noqa: B023
    return seconds


def timed(seconds: list[float], work: Callable[[], object]) -> None:
    """Run `work` and append its duration to `seconds`."""
    begin = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - begin)


def watch(most: list[float]) -> None:
    """Append this process's memory to `most` every few milliseconds."""
    while True:
        most.append(anonymous())
        time.sleep(0.005)


def anonymous() -> float:
    """Return this process's own memory in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


if __name__ == "__main__":
    main()
