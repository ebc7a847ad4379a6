"""The log of a run: log.jsonl, a progress bar, TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..pipeline.corpus.atomic import write_text
from .job import Job, TrainingError
from .loss.cbb import Losses


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
        *,
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
