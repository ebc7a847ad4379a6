"""Peak memory and time of one update with 64, 512 and 4,096 negatives, with GradCache and without.

Run: `python benchmarks/gradcache.py [--tokens 64] [--chunk-tokens 4096]`. A tiny BERT on the CPU, 8 queries, every text
of the same length, AdamW. Each update has a fresh process, and its peak is what Linux calls VmHWM: the largest resident
memory since it began, so Python, torch and the model are in it: what there was before the update stands beside it.
So do the embeddings, which GradCache keeps too, several times over: also their gradients and unit vectors. Freed
memory is given back to the system at once (MALLOC_…), as what the heap holds back would be measured otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.loss.cbb import Losses, build_batch, cbb_loss
from conan_embedding.trainer.loss.gradcache import cached_backward, chunks_of
from conan_embedding.trainer.model.bootstrap import SPECIAL
from conan_embedding.trainer.model.embedding_model import EmbeddingModel
from torch import Tensor
from transformers import BertConfig, BertModel

NEGATIVES = (64, 512, 4096)
QUERIES, WORDS, HIDDEN = 8, 1000, 64
DIMENSION = 112  # to 64 as the paper's 1792 to 1024
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Measure each number of negatives both ways, one process after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="of every text")
    parser.add_argument("--chunk-tokens", type=int, default=4096, help="encoded at a time by GradCache")
    parser.add_argument("--only", nargs=2, metavar=("NEGATIVES", "CHUNK_TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        negatives, gradcache_tokens = map(int, options.only)
        print(json.dumps(_measure(negatives, options.tokens, gradcache_tokens or None)))
        return
    print("negatives  GradCache  peak MB  before MB  embeddings MB  seconds")
    for gradcache_tokens in (0, options.gradcache_tokens):
        peaks = []
        for negatives in NEGATIVES:
            command = [sys.executable, __file__, "--tokens", str(options.tokens)]
            command += ["--only", str(negatives), str(gradcache_tokens)]
            environment = {**os.environ, **GIVE_BACK}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            peaks.append(found["peak"] - found["embeddings"])
            figures = (
                f"{found['peak']:7.0f}  {found['before']:9.0f}  {found['embeddings']:13.1f}  {found['seconds']:7.1f}"
            )
            print(f"{negatives:9,}  {'yes' if gradcache_tokens else 'no':>9}  {figures}", flush=True)
        print(f"largest peak over smallest, without embeddings: {max(peaks) / min(peaks):.3f}")
    print(f"cores: {os.cpu_count()}, threads: {torch.get_num_threads()}")


def _measure(negatives: int, tokens: int, gradcache_tokens: int | None) -> dict[str, float]:
    """One update: resident memory at its peak and before, and the embeddings, in MB; and seconds."""
    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    encoder = BertModel(BertConfig(vocab_size=WORDS, **shape))
    model = EmbeddingModel(encoder, DIMENSION).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    names = iter(range(10**9))
    update = build_batch(
        [f"query {next(names)}" for _ in range(QUERIES)],
        [f"positive {next(names)}" for _ in range(QUERIES)],
        [[f"negative {next(names)}" for _ in range(negatives // QUERIES)] for _ in range(QUERIES)],
    )
    settings = FinetuneSettings(matryoshka_dims=[])
    ids = torch.randint(len(SPECIAL), WORDS, (len(update.texts), tokens))
    inputs = [(ids[chunk], torch.ones_like(ids[chunk])) for chunk in chunks_of([tokens] * len(ids), gradcache_tokens)]

    def loss(embeddings: Tensor) -> Losses:
        return cbb_loss(embeddings, update, settings)

    before = _resident("VmRSS")
    started = time.monotonic()
    if gradcache_tokens is None:
        loss(torch.cat([model(*chunk) for chunk in inputs])).total.backward()
    else:
        cached_backward(model, inputs, loss, Tensor.backward)
    optimizer.step()
    seconds = time.monotonic() - started
    embeddings = len(ids) * DIMENSION * 4 / 1e6
    return {"peak": _resident("VmHWM"), "before": before, "embeddings": embeddings, "seconds": seconds}


def _resident(name: str) -> float:
    """One of the sizes in /proc/self/status, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
