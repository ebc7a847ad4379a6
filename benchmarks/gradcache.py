"""Peak memory and time of one training step with 64, 512 and 4,096 negatives, with and without GradCache.

Run: `python benchmarks/gradcache.py [--tokens 64] [--chunk-tokens 4096]`. The model is a tiny BERT, trained with AdamW
on 8 queries; all texts have the same length. Each step runs in a fresh process. Its peak is VmHWM in Linux, the largest
resident set size since the process started, so it includes Python, torch and the model; the memory before the step is
therefore also given. So is the size of the embeddings, which GradCache keeps several times, with their gradients and
unit vectors. Freed memory is returned to the system at once (MALLOC_…), else memory that the heap retains would be
measured.

On a GPU the encoder has BERT-large's shape, in bf16, and memory is that of PyTorch's allocator.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch
from conan_embedding.pipeline.encoder.encoder import best_precision
from conan_embedding.trainer.loss.cbb import Losses, build_batch, cbb_loss
from conan_embedding.trainer.loss.gradcache import cached_backward, chunks_of
from conan_embedding.trainer.model.bootstrap import SPECIAL
from conan_embedding.trainer.model.embedding_model import EmbeddingModel
from measures import DEVICE, LARGE, TINY, memory, wait_for_device
from torch import Tensor
from transformers import BertConfig, BertModel

NEGATIVES = (64, 512, 4096)
QUERIES, WORDS = 8, 1000
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Measure each number of negatives both ways, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="length of every text")
    parser.add_argument("--chunk-tokens", type=int, default=4096, help="tokens per chunk of GradCache")
    parser.add_argument("--only", nargs=2, metavar=("NEGATIVES", "CHUNK_TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        negatives, gradcache_tokens = map(int, options.only)
        print(json.dumps(measure(negatives, options.tokens, gradcache_tokens or None)))
        return
    print("negatives  GradCache  peak MB  before MB  embeddings MB  seconds")
    for gradcache_tokens in (0, options.chunk_tokens):
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
        print(f"ratio of largest to smallest peak, without embeddings: {max(peaks) / min(peaks):.3f}")
    print(f"cores: {os.cpu_count()}, threads: {torch.get_num_threads()}")


def measure(negatives: int, tokens: int, gradcache_tokens: int | None) -> dict[str, float]:
    """Run one step; return peak memory, memory before, and size of the embeddings, in MB; and seconds."""
    if DEVICE.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
    torch.manual_seed(0)
    shape = TINY if DEVICE.type == "cpu" else LARGE
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["intermediate"],
    )
    dimension = shape["hidden"] * 7 // 4  # the paper's ratio of 1792 to 1024
    with DEVICE:
        model = EmbeddingModel(BertModel(config), dimension).train().to(best_precision(DEVICE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    names = iter(range(10**9))
    update = build_batch(
        [f"query {next(names)}" for _ in range(QUERIES)],
        [f"positive {next(names)}" for _ in range(QUERIES)],
        [[f"negative {next(names)}" for _ in range(negatives // QUERIES)] for _ in range(QUERIES)],
    )
    ids = torch.randint(len(SPECIAL), WORDS, (len(update.texts), tokens), device=DEVICE)
    mask = torch.ones_like(ids) if DEVICE.type == "cpu" else None
    chunks = chunks_of([tokens] * len(ids), gradcache_tokens)
    inputs = [(ids[chunk], None if mask is None else mask[chunk]) for chunk in chunks]

    def loss(embeddings: Tensor) -> Losses:
        return cbb_loss(embeddings, update, temperature=0.02)

    before = memory("now")
    started = time.monotonic()
    if gradcache_tokens is None:
        loss(torch.cat([model(*chunk) for chunk in inputs])).total.backward()
    else:
        cached_backward(model, inputs, loss, Tensor.backward, model.parameters())
    optimizer.step()
    wait_for_device()
    seconds = time.monotonic() - started
    embeddings = len(ids) * dimension * 4 / 1e6
    return {"peak": memory("peak"), "before": before, "embeddings": embeddings, "seconds": seconds}


if __name__ == "__main__":
    main()
