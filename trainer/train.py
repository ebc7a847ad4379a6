"""The training loop: one process of it runs on each device.

`conan train` starts them on its machine; on several, `torchrun … -m conan_embedding.trainer.train JOB` does, with the
job.json that it has written.

Every rank builds the same updates from the same data, encodes its share of the texts and computes the same loss;
DeepSpeed averages the gradients (see loss/collectives.py). What a step does depends on seed, step and the state in the
checkpoint alone, so a run that was killed and one that was not give the same losses: to the bit on a CPU, while on a
GPU the backward pass of attention adds in no fixed order.
"""

from .. import collect_garbage_seldom

if __name__ == "__main__":
    collect_garbage_seldom()  # before the imports that it is for

import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from ..schemas.settings import FinetuneSettings, PretrainSettings
from . import checkpoints
from .dhnm.refresh import vectors_of
from .evaluation.evaluation_sets import EvaluationSet
from .evaluation.validation import best_so_far, keep_best, validate, validation_sets
from .job import STOPPED, Job, check_dimensions
from .launch.hosts import PARENT
from .loss.cbb import Losses, Update, slice_for, texts_apart
from .loss.collectives import gather, most_of_ranks, of_rank_zero, sum_of_ranks
from .loss.gradcache import LEAST_TOKENS, backward, chunks_of
from .model.embedding_model import EmbeddingModel, load, precision_of
from .model.export import export
from .run_log import Log
from .stages import Task, finetuning, pretraining

LOST_STEPS = 3
"""Ours: so many steps in a row whose gradients are no numbers end a run."""

_asked_to_stop = threading.Event()


@dataclass(frozen=True)
class Batch:
    """An update and this rank's share of its texts, tokenised, longest first.

    `dealt` puts their embeddings in the order in which the texts were dealt, and `restore` those of all ranks in the
    order of the update.
    """

    update: Update
    ids: list[list[int]]
    dealt: Tensor
    restore: Tensor


def main(job: Job) -> bool:
    """Train as the job says: resume from its last checkpoint, log, save, and export the model at the end.

    Returns False where it was asked to stop before that: the step it was in is saved.
    """
    rank, world_size = _start()
    settings = job.settings
    torch.manual_seed(settings.seed)
    model, tokenizer = load(
        job.model,
        settings.dimension if isinstance(settings, PretrainSettings) else None,
        settings.pooling if isinstance(settings, PretrainSettings) else None,
        settings.max_length,
    )
    check_dimensions(job, model.dimension)
    if settings.gradient_checkpointing:
        model.encoder.activation_checkpointing_enable()
    if settings.compile:
        model.packable = False  # attention of each text in a row has a shape of its own
        model.encoder.compile(dynamic=True)
    if settings.learn_temperature:
        model.learn_temperature(settings.temperature)
    sets = validation_sets(job)
    task = (
        pretraining(job, settings, world_size) if isinstance(settings, PretrainSettings) else finetuning(job, settings)
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    engine = _engine(model, settings, task.steps)  # under ZeRO 3 what is left of a parameter has no size
    done = checkpoints.resume(engine, job, task.mining)
    log = Log(job, done, task.steps) if rank == 0 else None
    if log and done == 0:
        log.write(event="start", steps=task.steps, parameters=trained, world_size=world_size)

    present = partial(vectors_of, model, tokenizer)
    lost = 0
    for step, batch in _batches(task, tokenizer, done, rank, world_size):
        torch.manual_seed(settings.seed * 1_000_003 + step * 1009 + rank)  # dropout: of this step and rank alone
        losses = backward(
            engine,
            _inputs(tokenizer, batch.ids, settings.chunk_tokens, engine.device, alike=settings.zero_stage == 3),
            partial(_loss, task, batch, model.temperature),
            cached=settings.chunk_tokens is not None,
            of_loss=[model.log_temperature] if model.log_temperature is not None else [],
        )
        rate = engine.get_lr()[0]
        engine.step()  # which leaves the weights as they are where a gradient is no number
        only_scale = engine.fp16_enabled() and _finite(losses)  # one that is too large: DeepSpeed lowers it
        lost = lost + 1 if engine.optimizer.overflow and not only_scale else 0
        if lost == LOST_STEPS:
            checkpoints.give_up(job, step, batch.update)
        replaced = task.mining.observe(step, losses, present) if task.mining and _finite(losses) else None
        if log and task.mining and replaced:
            task.mining.write(step, whole=False)
        asked, tokens = sum_of_ranks([_asked_to_stop.is_set(), sum(len(each) for each in batch.ids)], engine.device)
        if log:
            log.step(
                step,
                losses,
                tokens=tokens,
                learning_rate=rate,
                gradient_norm=engine.get_global_grad_norm(),
                replaced=replaced,
                skipped=engine.skipped_steps,
                temperature=model.temperature,
            )
        if sets and settings.validation.every and step % settings.validation.every == 0:
            _validate(job, step, model, tokenizer, sets, log)
        stopping = step < task.steps and asked > 0
        if step % settings.checkpoint_every == 0 or step == task.steps or stopping:
            checkpoints.save(engine, job, step, task.mining)
        if stopping:
            return False
    with _full_precision(model):
        if log:
            export(model, tokenizer, job.model_folder)
    if log:
        checkpoints.finish(job, task.steps, task.mining)
        log.write(event="end", step=task.steps)
    dist.barrier()
    if log:
        shutil.rmtree(job.data, ignore_errors=True)  # over NFS, files that other ranks still map keep a name in it
    dist.destroy_process_group()
    return True


def _finite(losses: Losses) -> bool:
    """Whether the loss, which is the same on every rank, is a number."""
    return bool(losses.total.isfinite())


def _start() -> tuple[int, int]:
    """Join the process group; returns rank and world size."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's to heed
    # Compiling DeepSpeed's shared-memory op takes 40 s and a compiler; gloo does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return dist.get_rank(), dist.get_world_size()


def _engine(model: EmbeddingModel, settings: PretrainSettings | FinetuneSettings, steps: int) -> Any:
    """DeepSpeed around the model: AdamW, linear warm-up and decay, ZeRO."""
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    shared = settings.zero_stage > 0
    optimizer = (torch.optim.AdamW if shared else partial(WatchfulAdamW, clipping=settings.gradient_clipping))(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        fused=get_accelerator().device_name() in ("cpu", "cuda"),
    )
    warm = max(1, round(settings.warmup * steps))
    precision = precision_of(settings)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda built: torch.optim.lr_scheduler.LambdaLR(
            built, lambda done: min((done + 1) / warm, max(0.0, (steps - done) / max(1, steps - warm)))
        ),
        config={
            "train_micro_batch_size_per_gpu": 1,  # batches are made here; DeepSpeed only wants a number
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": shared,  # else each backward pass would reduce, and GradCache has many
            "gradient_clipping": settings.gradient_clipping if shared else 0.0,
            # Memory of its own on a GPU: DeepSpeed's 500 million are 1 GB.
            "zero_optimization": {"stage": settings.zero_stage, "reduce_bucket_size": 50_000_000},
            "bf16": {"enabled": precision == "bf16"},
            "fp16": {"enabled": precision == "fp16"},
            "steps_per_print": sys.maxsize,
        },
    )
    return engine


class WatchfulAdamW(torch.optim.AdamW):
    """AdamW for ZeRO 0, where DeepSpeed leaves to the optimizer what it does itself in the other stages.

    Gradients are clipped to a norm of `clipping`, 0 is off; with those that are no numbers no step is made.
    `_global_grad_norm` and `overflow` are what the engine asks for.
    """

    def __init__(self, *arguments: Any, clipping: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clipping = clipping

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step, or none and say so in `overflow`."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clipping or float("inf"))
        self._global_grad_norm, self.overflow = float(norm), not norm.isfinite()
        if not self.overflow:
            super().step(closure)


def _batches(task: Task, tokenizer: Any, done: int, rank: int, world_size: int) -> Iterator[tuple[int, Batch]]:
    """The steps after `done` with their batches; the next is made while one is trained on.

    Except where negatives may be replaced between the two: then it is made after.
    """

    def make(step: int) -> Batch:
        update = task.update(step)
        # Texts are dealt by their characters, so that each rank tokenises no more than its own.
        characters = [min(len(text), tokenizer.model_max_length) for text in update.texts]
        own, restore = slice_for(rank, world_size, characters, texts_apart(update, task.layout))
        texts = [update.texts[row] for row in own]
        ids: list[list[int]] = []
        if texts:  # with none, a tokenizer does not know what it is given
            tokens = tokenizer(
                texts, truncation=True, max_length=tokenizer.model_max_length, return_attention_mask=False
            )
            ids = tokens["input_ids"]
        longest_first = np.argsort([-len(each) for each in ids], kind="stable")
        dealt = torch.from_numpy(np.argsort(longest_first))
        return Batch(update, [ids[place] for place in longest_first], dealt, torch.from_numpy(restore))

    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead = None
        for step in range(done + 1, task.steps + 1):
            batch = ahead.result() if ahead else make(step)
            checks = task.mining is not None and task.mining.checks(step)
            ahead = thread.submit(make, step + 1) if step < task.steps and not checks else None
            yield step, batch


def _inputs(
    tokenizer: Any, ids: list[list[int]], chunk_tokens: int | None, device: torch.device, alike: bool
) -> list[tuple[Tensor, Tensor]]:
    """This rank's texts, longest first, as token ids and attention masks [n, L] of those encoded together.

    With `alike`, all ranks have as many of them, some empty: under ZeRO 3 they gather the weights whenever they encode.
    """
    inputs = []
    nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
    for chunk in chunks_of([len(each) for each in ids], chunk_tokens, LEAST_TOKENS):
        if ids[chunk]:
            padded = tokenizer.pad({"input_ids": ids[chunk]}, return_tensors="pt").to(device)
            inputs.append((padded["input_ids"], padded["attention_mask"]))
        else:  # a rank without texts still takes part
            inputs.append((nothing, nothing))
    wanted = most_of_ranks(len(inputs), device) if alike else len(inputs)
    return inputs + [(nothing, nothing)] * (wanted - len(inputs))


def _loss(task: Task, batch: Batch, temperature: Tensor | None, own: Tensor) -> Losses:
    """What the update costs, of this rank's embeddings [own texts, D] and those of the others."""
    dealt, restore = batch.dealt.to(own.device), batch.restore.to(own.device)
    return task.loss(gather(own[dealt])[restore], batch.update, temperature)


@contextmanager
def _full_precision(model: EmbeddingModel) -> Iterator[None]:
    """The model with float32 weights: under mixed precision the optimizer's own, not their rounded copies.

    The optimizer's are spread over the ranks, so all of them do this together.
    """
    trained = {parameter: parameter.data for parameter in model.parameters()}
    frozen = [parameter for parameter in trained if not parameter.requires_grad]
    with deepspeed.zero.GatheredParameters(frozen):  # spread over the ranks as well, by ZeRO 3
        full = {parameter: parameter.data.float().clone() for parameter in frozen}
    for parameter, data in trained.items():  # in an order that all ranks share
        if parameter not in full:
            found = safe_get_full_fp32_param(parameter)
            full[parameter] = (data if found is None else found).float()
    for parameter, data in full.items():
        parameter.data = data
    yield
    for parameter, data in trained.items():
        parameter.data = data


def _validate(
    job: Job,
    step: int,
    model: EmbeddingModel,
    tokenizer: Any,
    sets: list[EvaluationSet],
    log: Log | None,
) -> None:
    """Log the model's figures on the sets; where it does better than any before, keep it. All ranks do the same."""
    with deepspeed.zero.GatheredParameters([] if model.head is None else list(model.head.parameters())):  # ZeRO 3
        figures, mean = validate(model, tokenizer, sets)
    best = of_rank_zero(mean > best_so_far(job, step))
    if best:
        with _full_precision(model):
            if log:
                keep_best(job, step, mean, model, tokenizer)
    if log:
        log.write(event="validation", step=step, mean=mean, best=best, figures=figures)


def _end_with(parent: int) -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run(file: Path) -> int:
    """Train; an error is one line, and its traceback too where CONAN_DEBUG is set. Returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if parent := os.environ.get(PARENT):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends its processes
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: _asked_to_stop.set())
    try:
        if not main(Job.model_validate_json(file.read_text("utf-8"))):
            return STOPPED
    except Exception as error:
        if os.environ.get("CONAN_DEBUG"):
            traceback.print_exc()
        print(f"error in training process {os.environ.get('RANK')}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = _run(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tearing down the interpreter takes seconds, and libraries report leaks that are none
