"""Train with CBB and DHNM in a plain PyTorch loop, on any number of processes, with the losses of `conan train`.

Run: torchrun --nproc_per_node 2 examples/plain_loop.py CORPUS MODEL [STEPS]

CORPUS is a corpus after `conan mine`; MODEL is the folder of a Hugging Face encoder.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from conan_embedding import Corpus
from conan_embedding.cbb import build_batch, cbb_loss, partition_texts
from conan_embedding.dhnm import advance, no_longer_hard, observe, start
from conan_embedding.losses import all_gather_with_grad
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

NEGATIVES = 4
Draw = Callable[[int], tuple[list[int], list[int]]]
"""Takes the number of a step; returns the rows of its queries and of its sentence pairs."""


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of the paper; those that it does not give are the defaults of `conan train`."""

    steps: int = 100
    learning_rate: float = 1e-5
    warmup: float = 0.05
    weight_decay: float = 0.001
    clipping: float = 1.0
    temperature: float = 0.02
    matryoshka_dims: tuple[int, ...] = ()
    max_length: int = 512
    check_every: int = 100
    factor: float = 1.15
    ceiling: float = 0.8


def train(corpus: Corpus, model: str, draw: Draw, settings: Settings, rank: int, world_size: int) -> list[float]:
    """Train, and return the loss of each step. All ranks pass the same arguments except `rank`."""
    queries = corpus.sql(
        "SELECT query, positives, cluster_ids, negatives AS provided, passage_ids AS pool FROM retrieval "
        "JOIN pools.queries ON text = query JOIN pools.candidates USING (query_id) ORDER BY query_id"
    ).to_dicts()
    passages = corpus.sql("SELECT text, cluster_id FROM pools.passages ORDER BY passage_id").rows()
    sentences = corpus.read("sts").select("text_a", "text_b", "label").rows()

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    encoder.pooler = None  # not used, and would have no gradients
    decayed = [each for each in encoder.parameters() if each.ndim > 1]
    plain = [each for each in encoder.parameters() if each.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
    )
    warm = max(1, round(settings.warmup * settings.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda done: min((done + 1) / warm, max(0.0, (settings.steps - done) / max(1, settings.steps - warm))),
    )

    def embed(texts: list[str]) -> Tensor:
        """Return mean-pooled vectors [n, D]."""
        if not texts:  # a rank without texts still takes part in the gathering
            return encoder.embeddings.word_embeddings.weight[:0]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=settings.max_length, return_tensors="pt")
        mask = inputs["attention_mask"][..., None]
        return (encoder(**inputs).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)

    pool_sizes = [len(query["pool"]) for query in queries]
    windows = start(pool_sizes, NEGATIVES, [len(query["provided"]) for query in queries])
    visits = np.zeros(len(queries), np.int64)
    losses_of_steps = []
    for step in range(1, settings.steps + 1):
        rows, pairs = draw(step)
        asked = [queries[row] for row in rows]
        places = [visits[row] % len(queries[row]["positives"]) for row in rows]  # cycle through the positives
        visits[rows] += 1
        mined = [query["pool"][windows.lo[row] : windows.hi[row]] for row, query in zip(rows, asked, strict=True)]
        negatives = [
            [passages[each] for each in ids] or [(text, -1) for text in query["provided"][:NEGATIVES]]
            for ids, query in zip(mined, asked, strict=True)
        ]
        batch = build_batch(
            [query["query"] for query in asked],
            [query["positives"][place] for query, place in zip(asked, places, strict=True)],
            [[text for text, _ in each] for each in negatives],
            positive_clusters=[query["cluster_ids"][place] for query, place in zip(asked, places, strict=True)],
            negative_clusters=[[cluster for _, cluster in each] for each in negatives],
            left=[sentences[pair][0] for pair in pairs],
            right=[sentences[pair][1] for pair in pairs],
            labels=[sentences[pair][2] for pair in pairs],
        )

        # Each rank encodes its part of the texts; every rank computes the same loss from all embeddings.
        own, restore = partition_texts(rank, world_size, [len(text) for text in batch.texts])
        embeddings = all_gather_with_grad(embed([batch.texts[row] for row in own]))[restore]
        losses = cbb_loss(
            embeddings,
            batch,
            temperature=settings.temperature,
            beta=0.8,
            matryoshka_dims=settings.matryoshka_dims,
        )
        optimizer.zero_grad(set_to_none=False)
        losses.total.backward()
        for parameter in encoder.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if world_size > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), settings.clipping)
        optimizer.step()
        schedule.step()
        losses_of_steps.append(losses.total.item())

        # DHNM: a query whose negatives have become easy moves to its next window.
        windows = observe(windows, rows, losses.negative_scores.nanmean(dim=1).numpy())
        if step % settings.check_every == 0:
            easy = no_longer_hard(windows, settings.factor, settings.ceiling)
            windows = advance(windows, easy, pool_sizes, NEGATIVES)
    return losses_of_steps


def main(folder: str, model: str, steps: int = 20) -> None:
    """Train on a corpus with 4 queries and 32 sentence pairs per step, drawn at random."""
    dist.init_process_group("gloo")
    corpus = Corpus(folder)
    counts = corpus.sql("SELECT (SELECT count(*) FROM retrieval) AS queries, (SELECT count(*) FROM sts) AS pairs")
    queries, pairs = counts.row(0)

    def draw(step: int) -> tuple[list[int], list[int]]:
        random = np.random.default_rng(step)
        return random.choice(queries, 4).tolist(), random.choice(pairs, min(32, pairs), replace=False).tolist()

    rank, world_size = dist.get_rank(), dist.get_world_size()
    losses = train(corpus, model, draw, Settings(steps=steps), rank, world_size)
    if rank == 0:
        print(pl.DataFrame({"step": range(1, steps + 1), "loss": losses}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
