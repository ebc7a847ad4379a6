"""Checkpoints and the log of a run: whole or not there, and enough to go on as if nothing had happened."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..pipeline.corpus import commit, write_text
from .cbb import Losses
from .job import Job, TrainingError
from .mining import Mining


def saved(job: Job) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((job.folder / "checkpoints").glob("step-*"))


def save(engine: Any, job: Job, step: int, mining: Mining | None) -> None:
    """Save weights, optimizer and DHNM's state under a temporary name, and give it its own when all ranks are done."""
    folder = job.folder / "checkpoints"
    place, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if place.exists():
        return
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=temporary.name, save_latest=False)
    if dist.get_rank() == 0:
        if mining is not None:
            np.savez(temporary / "windows.npz", **mining.state())
            mining.write(step)
        state = {"step": step, "world_size": dist.get_world_size(), "fingerprint": job.fingerprint}
        (temporary / "state.json").write_text(json.dumps(state), "utf-8")
    dist.barrier()
    if dist.get_rank() == 0:
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        commit(temporary, place)
        for old in saved(job)[: -job.settings.keep_checkpoints]:
            shutil.rmtree(old)
    dist.barrier()


def resume(engine: Any, job: Job, mining: Mining | None) -> int:
    """Load the last checkpoint, if any; returns its step, 0 for a fresh start.

    Raises:
        TrainingError: it was made by another number of processes.
    """
    step = 0
    if found := saved(job):
        state = json.loads((found[-1] / "state.json").read_text("utf-8"))
        if state["world_size"] != dist.get_world_size():
            raise TrainingError(
                f"{found[-1]} was saved by {state['world_size']} processes and this run has {dist.get_world_size()}; "
                f"run with --nproc {state['world_size']}, or remove {job.folder} to start anew"
            )
        engine.load_checkpoint(str(found[-1].parent), tag=found[-1].name)
        step = int(state["step"])
        if mining is not None:
            with np.load(found[-1] / "windows.npz") as arrays:
                mining.restore(dict(arrays))
    if mining is not None and dist.get_rank() == 0:
        mining.forget(step)
    return step


def finish(engine: Any, job: Job, export: Callable[[], Any]) -> None:
    """Export the trained model and mark the run as done."""
    if dist.get_rank() == 0:
        export()
        write_text(job.done, job.fingerprint)
    dist.barrier()


class Log:
    """log.jsonl, one object a line, and on a terminal a progress bar. What a killed run wrote too far is cut off."""

    def __init__(self, job: Job, step: int) -> None:
        path = job.folder / "log.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _is_whole(line) and json.loads(line).get("step", 0) <= step] if step else []
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8")
        self.progress = Progress(
            TextColumn(f"train {job.name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self.bar = self.progress.add_task("", figures="")
        self.progress.start()

    def write(self, **entry: Any) -> None:
        """Append one entry."""
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if entry.get("event") == "end":
            self.progress.stop()

    def step(
        self,
        step: int,
        steps: int,
        losses: Losses,
        engine: Any,
        tokens_per_second: float,
        replaced: dict[str, int] | None,
    ) -> None:
        """Append the figures of a step."""
        norm = engine.get_global_grad_norm()
        entry = {
            "step": step,
            "loss": float(losses.total.detach()),
            "retrieval": float(losses.retrieval.detach()),
            "sts": float(losses.sts.detach()),
            "positive_score": _mean(losses.positive_scores),
            "negative_score": _mean(losses.negative_scores),
            "learning_rate": engine.get_lr()[0],
            "gradient_norm": None if norm is None else float(norm),
            "tokens_per_second": round(tokens_per_second),
        }
        self.write(**entry, **({"mining": replaced} if replaced else {}))
        self.progress.update(
            self.bar,
            completed=step,
            total=steps,
            figures=f"loss {entry['loss']:.3f}, {tokens_per_second:,.0f} tokens/s",
        )


def _mean(scores: Any) -> float | None:
    known = scores[~scores.isnan()]
    return round(float(known.mean()), 6) if known.numel() else None


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False  # the last line of a run that was killed while writing it
    return True
