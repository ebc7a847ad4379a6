"""The two training stages, pre-training and fine-tuning: how each builds the batch of a step and computes its loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor

from ..schemas.loss_settings import DistillSettings
from ..schemas.prompts import Prompts
from ..schemas.training_settings import CBBPartition, FinetuneSettings, PretrainSettings
from .data.batches import count_steps, draws_per_step, finetune_batch, pretrain_batch
from .data.mapped_table import build_once
from .data.mixing import check_mixing
from .data.sampler import Integers, Sampler, SourceSchedule
from .data.teacher_scores import count_scored, write_scores
from .data.training_tables import read_finetune, read_pairs, write_finetune, write_pairs
from .dhnm.miner import HardNegativeMiner
from .dhnm.negative_miner import NegativeMiner
from .dhnm.refresh import write_mined
from .dhnm.window_miner import WindowMiner
from .job import Job
from .launch.shipped_job import folder_rank
from .loss.cbb import Batch, Losses, cbb_loss, pretrain_loss
from .loss.distillation import DISTILLATION_LOSSES, distillation_loss
from .loss.terms import LossTerm, find_terms


@dataclass(frozen=True)
class Task:
    """The parts of a stage that the training loop uses: the number of steps, the batch of a step, its loss."""

    steps: int
    draws_per_record: float  # how often a pair or query is drawn, on average
    build_batch: Callable[[int], Batch]
    loss: Callable[[Tensor, Batch, Tensor | None], Losses]  # embeddings of all ranks, batch, learnt temperature or None
    miner: HardNegativeMiner | None = None
    partition: CBBPartition = "mixed"
    facts: Mapping[str, int] = field(default_factory=dict)  # about the data, for the log

    def changes_data(self, step: int) -> bool:
        """Whether the negatives of the next batch may change after this step."""
        return self.miner is not None and self.miner.changes_data(step)


def build_task(job: Job, world_size: int, prompts: Prompts) -> Task:
    """Build the task of a job: pre-training or fine-tuning. `prompts` are put before the texts of each batch.

    Raises:
        CorpusError: there is nothing to train on, or queries have no pool.
        RecipeError: `mixing` does not fit the sources, or `loss_terms` names an unknown term.
    """
    if isinstance(job.settings, PretrainSettings):
        return _pretraining(job, job.settings, world_size, prompts)
    return _finetuning(job, job.settings, world_size, prompts)


def _pretraining(job: Job, settings: PretrainSettings, world_size: int, prompts: Prompts) -> Task:
    """Build the task of pre-training: pairs with in-batch negatives."""
    folder = job.data
    build_once(folder, partial(write_pairs, shards=job.shards["pairs"]), folder_rank())
    data = read_pairs(folder)
    check_mixing(settings.mixing, data.sources)
    size = settings.batch_size * world_size
    sampler = Sampler(data.sources, settings.mixing, settings.seed, run=size if settings.homogeneous_batches else 1)
    terms = find_terms(settings.loss_terms, f"{job.name}.loss_terms")
    ceiling = settings.mask_false_negatives.ceiling if settings.mask_false_negatives else None

    def build_batch(step: int) -> Batch:
        rows, _ = sampler.draw((step - 1) * size, step * size)
        return pretrain_batch(data, rows, prompts)

    def loss(embeddings: Tensor, batch: Batch, temperature: Tensor | None) -> Losses:
        return pretrain_loss(
            embeddings,
            batch,
            temperature=settings.temperature if temperature is None else temperature,
            matryoshka_dims=settings.matryoshka_dims,
            symmetric=settings.symmetric,
            ceiling=ceiling,
            terms=terms,
        )

    steps = count_steps(settings, len(data.pairs), 0, world_size)
    return Task(steps, steps * size / len(data.pairs), build_batch, loss)


def _finetuning(job: Job, settings: FinetuneSettings, world_size: int, prompts: Prompts) -> Task:
    """Build the task of fine-tuning: queries with hard negatives and sentence pairs, together or alternating."""
    folder = job.data
    retrieval: dict[str, list[Path]] = {kind: job.shards[kind] for kind in settings.queries}

    def write(temporary: Path) -> None:
        write_finetune(temporary, job.corpus, retrieval, job.shards["sts"], job.query_only_sources)
        if settings.distill:
            write_scores(temporary, job.corpus, settings.distill.judge)
        if settings.hard_negative_mining.refresh != "static":
            write_mined(temporary, job.corpus)

    build_once(folder, write, folder_rank())
    data = read_finetune(folder)
    check_mixing(settings.mixing, data.sources, data.sentence_sources)
    sentences = settings.sts_batch if len(data.sentences) else 0
    steps = count_steps(settings, len(data.queries), len(data.sentences), world_size)
    query_sampler = Sampler(data.sources, settings.mixing, settings.seed)
    run = sentences if settings.homogeneous_batches else 1
    sentence_sampler = Sampler(data.sentence_sources, settings.mixing, settings.seed + 1, run)
    schedule = SourceSchedule([1, 1], settings.seed + 2) if settings.alternate_tasks and sentences else None

    terms = find_terms(settings.loss_terms, f"{job.name}.loss_terms")
    ceiling = settings.mask_false_negatives.ceiling if settings.mask_false_negatives else None

    @lru_cache(maxsize=4)  # DHNM asks for a step's queries again
    def draw(step: int) -> tuple[tuple[Integers, Integers], tuple[Integers, Integers]]:
        """Draw a step's queries and its sentence pairs: for each, the rows and how often each was drawn before."""
        places = [step - 1, step - 1]
        sizes = [settings.retrieval_batch, sentences]
        if schedule:
            (task,), (place,) = schedule.draw(step - 1, step)
            places[task], sizes[1 - task] = int(place), 0  # each task continues where its own last step ended
        queries, pairs = (
            sampler.draw(place * size, (place + 1) * size)
            for sampler, place, size in zip((query_sampler, sentence_sampler), places, sizes, strict=True)
        )
        return queries, pairs

    policy = WindowMiner if settings.hard_negative_mining.policy == "v1" else NegativeMiner
    miner = policy(job, settings, data, rows_of=lambda step: draw(step)[0][0], steps=steps)

    def build_batch(step: int) -> Batch:
        (rows, visits), (pairs, _) = draw(step)
        return finetune_batch(miner.data, miner.current, rows, pairs, settings.negatives, visits, prompts)

    def loss(embeddings: Tensor, batch: Batch, temperature: Tensor | None) -> Losses:
        current = settings.temperature if temperature is None else temperature
        return cbb_loss(
            embeddings,
            batch,
            temperature=current,
            beta=settings.beta,
            sts_temperature=settings.sts_temperature,
            matryoshka_dims=settings.matryoshka_dims,
            in_batch_positives=settings.in_batch_positives,
            query_only_negatives=settings.query_only_negatives,
            ceiling=ceiling,
            terms=terms | _distillation(job.name, settings.distill, current),
        )

    facts = {"queries_with_scores": count_scored(data.scores)} if data.scores else {}
    draws = steps * draws_per_step(settings, len(data.sentences), world_size) / len(data.queries)
    return Task(steps, draws, build_batch, loss, miner, settings.cbb_partition, facts)


def _distillation(
    stage: str, settings: DistillSettings | None, temperature: float | Tensor
) -> dict[str, tuple[float, LossTerm]]:
    """Return the term `distill` with its weight, for the present `temperature` of InfoNCE; empty without settings."""
    if settings is None:
        return {}
    loss = DISTILLATION_LOSSES.find(settings.loss, f"{stage}.distill.loss")
    term = partial(distillation_loss, loss=loss, temperature=temperature, teacher_temperature=settings.temperature)
    return {"distill": (settings.weight, term)}
