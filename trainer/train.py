"""The training loop, run by one process per device.

`conan train` starts the processes, on this machine or on the hosts of a hostfile. A scheduler can start them instead:
`torchrun … -m conan_embedding.trainer.train JOB`, where JOB is the job.json that `conan train` writes.

Every rank builds the same batches from the same data, encodes its share of the texts and computes the same loss;
DeepSpeed averages the gradients (see loss/collectives.py). A step depends only on the seed, the step number and the
state in the checkpoint, so a run that was killed and resumed has the same losses as an uninterrupted one: bit for bit
on a CPU, but not on a GPU, where the backward pass of attention sums in no fixed order.
"""

from .. import collect_garbage_seldom

if __name__ == "__main__":
    collect_garbage_seldom()  # first, because the imports below create most of the objects

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..pipeline.plugins import load_plugins
from ..schemas.training_settings import PretrainSettings
from . import checkpoints
from .data.loader import RankBatch, empty_chunk, load_batches, pad_chunks
from .dhnm.miner import warn_of_few_draws
from .dhnm.refresh import vectors_of
from .evaluation.validation import validate_and_keep_best, validation_sets
from .job import Job, check_dimensions
from .launch.process import asked_to_stop, join_process_group, run_process
from .launch.shipped_job import folder_rank, put_results
from .loss.cbb import Losses
from .loss.collectives import all_gather_with_grad, all_reduce_max, all_reduce_sum
from .loss.gradcache import backward
from .model.attention import set_attention
from .model.embedding_model import EmbeddingModel, load, warn_of_slow_precision
from .model.export import export
from .model.lora import add_adapters, check_export
from .optimizer import build_engine, full_precision
from .run_log import Log
from .stages import Task, build_task
from .transfer import to_device

MOST_NONFINITE_STEPS = 3
"""Chosen here: a run stops after this many consecutive steps with NaN or infinite gradients."""


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout, which differs between steps and, up to 1,009 of them, between ranks."""
    return seed * 1_000_003 + step * 1009 + rank


def main(job: Job) -> bool:
    """Train a job from its last checkpoint, if any, to the end, and export the model.

    Returns False if the run was asked to stop before the end; the step it was in is then saved as a checkpoint.
    """
    rank, world_size = join_process_group()
    is_main = rank == 0
    settings = job.settings
    torch.manual_seed(settings.seed)
    model, tokenizer = _load_model(job)
    sets = validation_sets(job)
    task = build_task(job, world_size, model.prompts)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    engine = build_engine(model, settings, task.steps)  # count before this: ZeRO 3 leaves parameters without elements
    done = checkpoints.resume(engine, job, task.miner)
    log = Log(job, done, task.steps, is_main)
    log.start(
        steps=task.steps,
        draws_per_record=round(task.draws_per_record, 2),
        parameters=trained,
        world_size=world_size,
        **task.facts,
    )
    log.say(f"{task.steps:,} steps, which draw each record {task.draws_per_record:.2g} times on average")
    for warning in warn_of_few_draws(settings, task.draws_per_record) + warn_of_slow_precision(settings):
        log.say(f"warning: {warning}")

    tokens = nonfinite_steps = 0
    for step, batch in load_batches(
        task.build_batch,
        range(done + 1, task.steps + 1),
        task.partition,
        tokenizer,
        rank,
        world_size,
        task.changes_data,
    ):
        torch.manual_seed(dropout_seed(settings.seed, step, rank))  # on nothing else, so a resumed run draws the same
        if model.soft_alpha is not None:
            model.soft_alpha = step / task.steps  # Conan-embedding-v2, eq. 3
        chunks = pad_chunks(tokenizer, batch.ids, settings.gradcache_tokens, engine.device, model.packable)
        if settings.zero_stage == 3:  # a forward pass gathers weights from all ranks, so all run the same number
            (most,) = all_reduce_max([len(chunks)], engine.device)
            chunks += [empty_chunk(engine.device)] * (most - len(chunks))
        losses = backward(
            engine,
            chunks,
            partial(_loss, task, batch, model.temperature),
            cached=settings.gradcache_tokens is not None,
            loss_parameters=[model.log_temperature] if model.log_temperature is not None else [],
        )
        learning_rate = engine.get_lr()[0]
        engine.step()  # skips the update if a gradient is NaN or infinite
        nonfinite_steps = nonfinite_steps + 1 if _has_failed(engine, losses) else 0
        if nonfinite_steps == MOST_NONFINITE_STEPS:
            checkpoints.give_up(job, step, batch.batch)
        replaced = task.miner.observe(step, losses, partial(vectors_of, model, tokenizer)) if task.miner else None
        if is_main and task.miner and replaced and task.miner.checks(step):
            task.miner.write(step, whole=False)
        tokens += batch.tokens
        log.count(step, losses)
        if log.is_due(step) or replaced is not None:
            (all_tokens,) = all_reduce_sum([tokens], engine.device)
            log.step(
                step,
                losses,
                tokens=all_tokens,
                learning_rate=learning_rate,
                gradient_norm=engine.get_global_grad_norm(),
                replaced=replaced,
                nonfinite_steps=engine.skipped_steps,
                temperature=model.temperature,
            )
            tokens = 0
        if sets and settings.validation.every and step % settings.validation.every == 0:
            validate_and_keep_best(job, step, model, tokenizer, sets, log)
        stopping = _all_agree_to_stop(engine.device) and step < task.steps
        if step % settings.checkpoint_every == 0 or step == task.steps or stopping:
            checkpoints.save(engine, job, step, task.miner)
        if stopping:
            log.close(succeeded=False)
            return False

    with full_precision(model):
        if is_main:
            export(model, tokenizer, job.model_folder)
            if settings.lora is not None:
                check_export(job.model_folder, model, _load_model(job)[0], tokenizer, task.build_batch(1).texts[:8])
    if is_main:
        checkpoints.finish(job, task.steps, task.miner)
    log.write(event="end", step=task.steps)
    log.close(succeeded=True)
    if is_main:
        put_results(job)
    dist.barrier()
    if folder_rank() == 0:
        shutil.rmtree(job.data, ignore_errors=True)  # NFS keeps a placeholder for each file that other ranks still map
    dist.destroy_process_group()
    return True


def _load_model(job: Job) -> tuple[EmbeddingModel, Any]:
    settings = job.settings
    projection_dim, pooling, attention = None, None, None  # fine-tuning keeps those of the model
    if isinstance(settings, PretrainSettings):
        projection_dim, pooling, attention = settings.projection_dim, settings.pooling, settings.attention
    model, tokenizer = load(
        job.model, projection_dim, pooling, settings.max_length, settings.prompts, job.source_prompts
    )
    check_dimensions(job.name, job.model, job.settings.matryoshka_dims, model.dimension)
    set_attention(model.encoder, attention)
    model.soft_alpha = 0.0 if attention == "soft" else None
    if settings.lora is not None:
        add_adapters(model.encoder, settings.lora, f"{job.name}.lora.targets")
    if settings.gradient_checkpointing:
        model.encoder.activation_checkpointing_enable()
    if settings.compile:
        model.packable = False  # a packed row attends text by text, in shapes that change with every batch
        model.encoder.compile(dynamic=True)
    if settings.learn_temperature:
        model.learn_temperature(settings.temperature)
    return model, tokenizer


def _loss(task: Task, rank_batch: RankBatch, temperature: Tensor | None, own: Tensor) -> Losses:
    """Gather the embeddings of all ranks and return the loss of the batch; `own` [own texts, D] are this rank's."""
    places, restore = to_device(rank_batch.places, own.device), to_device(rank_batch.restore, own.device)
    gathered = all_gather_with_grad(own[places], rank_batch.counts)
    return task.loss(gathered[restore], rank_batch.batch, temperature)


def _has_failed(engine: Any, losses: Losses) -> bool:
    """Whether a step's gradients were NaN or infinite and not just overflowing fp16's loss scale, which adapts."""
    return bool(engine.optimizer.overflow) and not (engine.fp16_enabled() and bool(losses.total.isfinite()))


def _all_agree_to_stop(device: torch.device) -> bool:
    """Whether any rank was asked to stop. This is the only synchronisation that every step waits for."""
    (asked,) = all_reduce_max([asked_to_stop.is_set()], device)
    return asked > 0


def run(file: Path) -> int:
    """Train the job in `file` in this process; return the exit code."""

    def train() -> bool:
        job = Job.model_validate_json(file.read_text("utf-8"))
        load_plugins(job.plugins)
        return main(job)

    return run_process(train)


if __name__ == "__main__":
    code = run(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tearing down the interpreter takes seconds, and libraries report leaks that aren't real
