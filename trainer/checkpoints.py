"""Checkpoints and the log of a run: whole or not there, and enough to go on as if nothing had happened."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..pipeline.corpus import commit, write_text
from .cbb import Losses, Update
from .job import Job, TrainingError, check_processes
from .mining import Mining


def save(engine: Any, job: Job, step: int, mining: Mining | None) -> None:
    """Save weights, optimizer and DHNM's state under a temporary name, and give it its own when all ranks are done."""
    folder = job.folder / "checkpoints"
    place, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if dist.get_rank() == 0:
        for leftover in folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=temporary.name, save_latest=False)
    if dist.get_rank() == 0:
        if mining is not None:
            mining.write(step)
            np.savez(temporary / "windows.npz", **mining.state())
        state = {"step": step, "world_size": dist.get_world_size(), "fingerprint": job.fingerprint}
        (temporary / "state.json").write_text(json.dumps(state), "utf-8")
    dist.barrier()
    if dist.get_rank() == 0:
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        commit(temporary, place)
        for old in job.checkpoints[: -job.settings.keep_checkpoints]:
            shutil.rmtree(old)
    dist.barrier()


def resume(engine: Any, job: Job, mining: Mining | None) -> int:
    """Load the last checkpoint, if any; returns its step, 0 for a fresh start.

    Raises:
        TrainingError: it was made by another number of processes.
    """
    check_processes(job, dist.get_world_size())
    step = 0
    if found := job.checkpoints:
        engine.load_checkpoint(str(found[-1].parent), tag=found[-1].name)
        step = int(json.loads((found[-1] / "state.json").read_text("utf-8"))["step"])
        if mining is not None:
            with np.load(found[-1] / "windows.npz") as arrays:
                mining.restore(dict(arrays))
    if mining is not None and dist.get_rank() == 0:
        mining.write(step)
    return step


def finish(job: Job, step: int, mining: Mining | None) -> None:
    """Mark the run as done (rank 0), once pools.duckdb has all of DHNM's log.

    Raises:
        TrainingError: somebody has kept pools.duckdb open for a minute.
    """
    for _ in range(60):
        if mining is None or mining.write(step):
            break
        time.sleep(1)
    else:
        raise TrainingError(f"{job.corpus / 'pools.duckdb'} is open in another process; close it and try again")
    write_text(job.done, job.fingerprint)


class Log:
    """log.jsonl, one object a line, and on a terminal a progress bar. What a killed run wrote too far is cut off."""

    def __init__(self, job: Job, step: int, steps: int) -> None:
        path = job.folder / "log.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _is_whole(line) and json.loads(line).get("step", 0) <= step] if step else []
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")
        self.steps, self.every = steps, job.settings.log_every
        self.tokens, self.unordered, self.since = 0, 0, time.monotonic()
        self.progress = Progress(
            TextColumn(f"train {job.name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self.board = _board(job, step) if job.settings.tensorboard else None
        self.bar = self.progress.add_task("", completed=step, total=steps, figures="")
        self.progress.start()

    def write(self, **entry: Any) -> None:
        """Append one entry; its numbers go to TensorBoard, too, where that is asked for."""
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.board and "step" in entry:
            for name, value in _numbers(entry).items():
                self.board.add_scalar(name, value, entry["step"])
            self.board.flush()
        if entry.get("event") == "end":
            self.progress.stop()

    def step(
        self,
        step: int,
        losses: Losses,
        tokens: int,
        learning_rate: float,
        gradient_norm: Any,
        replaced: dict[str, int] | None,
        skipped: int = 0,
        temperature: Tensor | None = None,
    ) -> None:
        """Append the figures of a step, where it is one of those to log: every so many, DHNM's checks and the last.

        `tokens_per_second` counts from the entry before, whatever took the time. Where they are not 0: `unordered` is
        the number of updates since then whose sentence pairs all had one label, which is no loss; `skipped` that of
        all steps so far that were not taken, as their gradients were no numbers. A loss that is none is null.
        """
        self.tokens += tokens
        self.unordered += losses.unordered
        if step % self.every and step != self.steps and replaced is None:
            return
        total, retrieval, sts = (float(each.detach()) for each in (losses.total, losses.retrieval, losses.sts))
        now = time.monotonic()
        rate = self.tokens / (now - self.since)
        counts = {"unordered": self.unordered, "skipped": skipped}
        self.tokens, self.unordered, self.since = 0, 0, now
        entry = {
            "step": step,
            "loss": _number(total),
            "retrieval": _number(retrieval),
            "sts": _number(sts),
            "negatives": round(losses.negatives, 1),
            "positive_score": _mean(losses.positive_scores),
            "negative_score": _mean(losses.negative_scores),
            "learning_rate": learning_rate,
            **({} if temperature is None else {"temperature": float(temperature.detach())}),
            "gradient_norm": None if gradient_norm is None else _number(gradient_norm),
            "tokens_per_second": round(rate),
        }
        counted = {name: count for name, count in counts.items() if count}
        self.write(**entry, **counted, **({"mining": replaced} if replaced else {}))
        figures = (
            f"loss {total:.3f} (retrieval {retrieval:.3f}, sts {sts:.3f}), {losses.negatives:,.0f} negatives a query, "
            f"{rate:,.0f} tokens/s"
        )
        self.progress.update(self.bar, completed=step, figures=figures)


def give_up(job: Job, step: int, update: Update) -> NoReturn:
    """End a run that has no gradients any more: rank 0 keeps the update, then all raise.

    Raises:
        TrainingError: always; says where the update is.
    """
    file = job.folder / "lost_update.json"
    if dist.get_rank() == 0:
        tensors = {name: value.tolist() for name, value in vars(update).items() if name != "texts"}
        write_text(file, json.dumps({"step": step, "texts": update.texts} | tensors, ensure_ascii=False))
    dist.barrier()  # who raises first ends the others
    raise TrainingError(
        f"at step {step} and before it, the gradients were no numbers; the last update is in {file}; a lower "
        "learning_rate or a higher temperature may help"
    )


def _board(job: Job, step: int) -> Any:
    """What writes for TensorBoard; entries after `step`, of a run that was killed, are hidden.

    Raises:
        TrainingError: the package is not there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError('tensorboard: true needs a package: pip install "conan-embedding[tensorboard]"') from error
    return SummaryWriter(str(job.folder / "tensorboard"), purge_step=step + 1)


def _numbers(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a log entry by name, those of what it holds as `outer/inner`."""
    found: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found[prefix + name] = value
    return found


def _number(value: Any) -> float | None:
    """JSON has no NaN and no infinity."""
    number = float(value)
    return number if math.isfinite(number) else None


def _mean(scores: Any) -> float | None:
    known = scores[~scores.isnan()]
    return round(float(known.mean()), 6) if known.numel() else None


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False  # the last line of a run that was killed while writing it
    return True
