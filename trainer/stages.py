"""What a stage of training is made of: which records each step has, what they cost, and what mines for it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from ..schemas.settings import FinetuneSettings, Layout, PretrainSettings
from .data.batches import (
    finetune_update,
    pretrain_update,
    queries_a_step,
    read_finetune,
    read_pairs,
    steps_of,
    write_finetune,
    write_pairs,
)
from .data.mapped_table import made_once
from .data.mixing import check_mixing
from .data.sampler import Integers, Order, Turns
from .dhnm.miner import Mining
from .dhnm.refresh import write_mined
from .job import Job
from .loss.cbb import Losses, Update, pretrain_loss, update_loss


@dataclass(frozen=True)
class Task:
    """What one stage of training is made of: its number of steps, the update of a step, and its loss."""

    steps: int
    update: Callable[[int], Update]
    loss: Callable[[Tensor, Update, Tensor | None], Losses]
    mining: Mining | None = None
    layout: Layout = "fused"


def pretraining(job: Job, settings: PretrainSettings, world_size: int) -> Task:
    """Pairs with in-batch negatives.

    Raises:
        CorpusError: no pairs.
        RecipeError: `mixing` does not fit the sources.
    """
    folder = job.data
    made_once(folder, partial(write_pairs, shards=job.shards["pairs"]), dist.get_rank())
    data = read_pairs(folder)
    check_mixing(settings.mixing, data.sources)
    batch = settings.batch_size * world_size
    steps = steps_of(settings, len(data.pairs), batch)
    order = Order(data.sources, settings.mixing, settings.seed, run=batch if settings.by_source else 1)

    def update(step: int) -> Update:
        rows, _ = order.stretch((step - 1) * batch, step * batch)
        return pretrain_update(data, rows)

    def loss(embeddings: Tensor, update: Update, temperature: Tensor | None) -> Losses:
        return pretrain_loss(embeddings, update, settings, temperature)

    return Task(steps, update, loss)


def finetuning(job: Job, settings: FinetuneSettings) -> Task:
    """Queries with hard negatives, and sentence pairs, together or in turn.

    Raises:
        CorpusError: no queries, or queries without a pool.
        RecipeError: `mixing` does not fit the sources.
    """
    folder = job.data
    retrieval: dict[str, list[Path]] = {kind: job.shards[kind] for kind in settings.queries}

    def write(temporary: Path) -> None:
        write_finetune(temporary, job.corpus, retrieval, job.shards["sts"])
        if settings.hard_negative_mining.refresh != "static":
            write_mined(temporary, job.corpus)

    made_once(folder, write, dist.get_rank())
    data = read_finetune(folder)
    check_mixing(settings.mixing, data.sources, data.sentence_sources)
    sentences = settings.sts_batch if len(data.sentences) else 0
    steps = steps_of(settings, len(data.queries), queries_a_step(settings, len(data.sentences)))
    queries_order = Order(data.sources, settings.mixing, settings.seed)
    run = sentences if settings.sts_by_source else 1
    sentences_order = Order(data.sentence_sources, settings.mixing, settings.seed + 1, run)
    turns = Turns([1, 1], settings.seed + 2) if settings.in_turn and sentences else None

    def drawn(step: int) -> tuple[tuple[Integers, Integers], tuple[Integers, Integers]]:
        """Of a step, the rows of the queries and those of the sentence pairs, each with their earlier visits."""
        places = [step - 1, step - 1]
        batches = [settings.retrieval_batch, sentences]
        if turns:
            (task,), (place,) = turns.stretch(step - 1, step)
            places[task], batches[1 - task] = int(place), 0  # what this task has used up is what it was drawn for
        queries, pairs = (
            order.stretch(place * batch, (place + 1) * batch)
            for order, place, batch in zip((queries_order, sentences_order), places, batches, strict=True)
        )
        return queries, pairs

    mining = Mining(job, settings, data, rows_of=lambda step: drawn(step)[0][0], steps=steps)

    def update(step: int) -> Update:
        (rows, visits), (pairs, _) = drawn(step)
        return finetune_update(mining.data, mining.windows, rows, pairs, settings.negatives, visits)

    def loss(embeddings: Tensor, update: Update, temperature: Tensor | None) -> Losses:
        return update_loss(embeddings, update, settings, temperature)

    return Task(steps, update, loss, mining, settings.layout)
