"""The training loop: one process of it runs on each device.

`conan train` starts them on its machine; on several, `torchrun … -m conan_embedding.trainer.train JOB` does, with the
job.json that it has written.

Every rank builds the same batches from the same data, encodes its part of the texts and computes the same loss;
DeepSpeed averages the gradients (see loss/collectives.py). What a step does depends on seed, step and the state in the
checkpoint alone, so a killed and resumed run has the losses of one that was not killed: to the bit on a CPU, while on a
GPU the backward pass of attention adds in no fixed order.
"""

from .. import collect_garbage_seldom

if __name__ == "__main__":
    collect_garbage_seldom()  # before the imports that it is for

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
from .dhnm.refresh import vectors_of
from .evaluation.validation import validate_and_keep_best, validation_sets
from .job import Job, check_dimensions
from .launch.process import asked_to_stop, join_process_group, run_process
from .loss.cbb import Losses
from .loss.collectives import all_gather_with_grad, all_reduce_max, all_reduce_sum
from .loss.gradcache import backward
from .model.embedding_model import EmbeddingModel, load
from .model.export import export
from .optimizer import build_engine, full_precision
from .run_log import Log
from .stages import Task, build_task
from .transfer import to_device

MOST_NONFINITE_STEPS = 3
"""Chosen here: successive steps with NaN or infinite gradients that end a run."""


def main(job: Job) -> bool:
    """Train as the job says: resume from its last checkpoint, log, save, and export the model at the end.

    Returns False if it was asked to stop before that: the step it was in is saved.
    """
    rank, world_size = join_process_group()
    is_main = rank == 0
    settings = job.settings
    torch.manual_seed(settings.seed)
    model, tokenizer = _load_model(job)
    sets = validation_sets(job)
    task = build_task(job, world_size)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    engine = build_engine(model, settings, task.steps)  # under ZeRO 3 what is left of a parameter has no size
    done = checkpoints.resume(engine, job, task.miner)
    log = Log(job, done, task.steps, is_main)
    if done == 0:
        log.write(event="start", steps=task.steps, parameters=trained, world_size=world_size)

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
        torch.manual_seed(settings.seed * 1_000_003 + step * 1009 + rank)  # dropout: of this step and rank alone
        chunks = pad_chunks(tokenizer, batch.ids, settings.gradcache_tokens, engine.device)
        if settings.zero_stage == 3:  # ranks gather the weights whenever they encode, so all do equally often
            (most,) = all_reduce_max([len(chunks)], engine.device)
            chunks += [empty_chunk(engine.device)] * (most - len(chunks))
        losses = backward(
            engine,
            chunks,
            partial(_loss, task, batch, model.temperature),
            cached=settings.gradcache_tokens is not None,
            of_loss=[model.log_temperature] if model.log_temperature is not None else [],
        )
        learning_rate = engine.get_lr()[0]
        engine.step()  # skips the update if a gradient is NaN or infinite
        nonfinite_steps = nonfinite_steps + 1 if _has_failed(engine, losses) else 0
        if nonfinite_steps == MOST_NONFINITE_STEPS:
            checkpoints.give_up(job, step, batch.batch)
        replaced = task.miner.observe(step, losses, partial(vectors_of, model, tokenizer)) if task.miner else None
        if is_main and task.miner and replaced:
            task.miner.write(step, whole=False)
        tokens += batch.tokens
        log.count(losses)
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
            return False

    with full_precision(model):
        if is_main:
            export(model, tokenizer, job.model_folder)
    if is_main:
        checkpoints.finish(job, task.steps, task.miner)
    log.write(event="end", step=task.steps)
    dist.barrier()
    if is_main:
        shutil.rmtree(job.data, ignore_errors=True)  # over NFS, files that other ranks still map keep a name in it
    dist.destroy_process_group()
    return True


def _load_model(job: Job) -> tuple[EmbeddingModel, Any]:
    settings = job.settings
    projection_dim, pooling = None, None  # fine-tuning takes those that are there
    if isinstance(settings, PretrainSettings):
        projection_dim, pooling = settings.projection_dim, settings.pooling
    model, tokenizer = load(job.model, projection_dim, pooling, settings.max_length)
    check_dimensions(job, model.dimension)
    if settings.gradient_checkpointing:
        model.encoder.activation_checkpointing_enable()
    if settings.compile:
        model.packable = False  # attention of each text in a row has a shape of its own
        model.encoder.compile(dynamic=True)
    if settings.learn_temperature:
        model.learn_temperature(settings.temperature)
    return model, tokenizer


def _loss(task: Task, rank_batch: RankBatch, temperature: Tensor | None, own: Tensor) -> Losses:
    """The loss of the batch, from this rank's embeddings [own texts, D] and those of the others."""
    places, restore = to_device(rank_batch.places, own.device), to_device(rank_batch.restore, own.device)
    gathered = all_gather_with_grad(own[places], rank_batch.counts)
    return task.loss(gathered[restore], rank_batch.batch, temperature)


def _has_failed(engine: Any, losses: Losses) -> bool:
    """Whether a step's gradients were NaN or infinite, for another reason than fp16's scale, which DeepSpeed lowers."""
    return bool(engine.optimizer.overflow) and not (engine.fp16_enabled() and bool(losses.total.isfinite()))


def _all_agree_to_stop(device: torch.device) -> bool:
    """Whether any rank was asked to stop: the one thing that every step waits for."""
    (asked,) = all_reduce_max([asked_to_stop.is_set()], device)
    return asked > 0


def run(file: Path) -> int:
    """Train the job of a file in this process; returns the exit code."""

    def train() -> bool:
        job = Job.model_validate_json(file.read_text("utf-8"))
        load_plugins(job.plugins)
        return main(job)

    return run_process(train)


if __name__ == "__main__":
    code = run(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tearing down the interpreter takes seconds, and libraries report leaks that are none
