"""The log of a training run: log.jsonl, progress on standard error, and the trackers that the recipe names."""

import json
import math
import sys
import time
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..pipeline.corpus.atomic import write_text
from ..pipeline.engine.calls import quiet
from ..pipeline.engine.progress_lines import progress_lines
from .job import Job
from .loss.cbb import Losses
from .tracking import Tracking


class Log:
    """Writes log.jsonl, one JSON object per line, and shows the progress: a bar, or lines if there is no terminal.

    Does nothing unless `writes`. Entries of a killed run that are later than `step`, its last checkpoint, are removed
    first.
    """

    tracking: Tracking | None = None

    def __init__(self, job: Job, step: int, steps: int, writes: bool = True) -> None:
        self.job, self.name, self.steps, self.every, self.writes = job, job.name, steps, job.settings.log_every, writes
        self.resumed_at = step
        self.single_label_batches, self.since = 0, time.monotonic()
        if not writes:
            return
        path = job.folder / "log.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.before = [json.loads(line) for line in lines if _is_whole(line)]
        self.kept = [entry for entry in self.before if entry.get("step", 0) <= step] if step else []
        write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in self.kept))
        self.file = path.open("a", encoding="utf-8")
        self.progress = Progress(
            TextColumn(f"train {job.name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[progress]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self.bar = self.progress.add_task("", completed=step, total=steps, progress="")
        self.progress.start()
        self.lines = ExitStack()
        self.show_line = quiet if sys.stderr.isatty() else self.lines.enter_context(progress_lines())
        self.show_line(f"train {job.name}", step, steps, 0)

    def start(self, **facts: float) -> None:
        """Write the entry `start` with facts about the run, if it is not resumed; start its trackers."""
        if not self.writes:
            return
        if self.resumed_at == 0:
            self.write(event="start", **facts)
        settings = self.job.settings.model_dump(mode="json") | facts
        self.tracking = Tracking(self.job, settings, self.kept, self.before)
        self.kept = self.before = []

    def say(self, line: str) -> None:
        """Print a line on standard error, above the progress bar if there is one."""
        if self.writes:
            self.progress.console.print(f"train {self.name}: {line}", markup=False, highlight=False, soft_wrap=True)

    def write(self, **entry: Any) -> None:
        """Append one entry to log.jsonl, and send its numbers to the trackers."""
        if not self.writes:
            return
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.tracking:
            self.tracking.log(entry)

    def close(self, succeeded: bool) -> None:
        """End the progress and the trackers. A run that was asked to stop has not succeeded."""
        if not self.writes:
            return
        self.progress.stop()
        self.lines.close()
        if self.tracking:
            self.tracking.finish(succeeded)

    def is_due(self, step: int) -> bool:
        """Whether a step is logged: every `log_every` steps, and the last one."""
        return step % self.every == 0 or step == self.steps

    def count(self, step: int, losses: Losses) -> None:
        """Add a step to the progress, and to the counts that the next entry reports for all steps since the last."""
        self.single_label_batches += losses.single_label
        if self.writes:
            self.show_line(f"train {self.name}", step, self.steps, 0)

    def step(
        self,
        step: int,
        losses: Losses,
        *,
        tokens: int,
        learning_rate: float,
        gradient_norm: Any,
        replaced: dict[str, int] | None,
        nonfinite_steps: int = 0,
        temperature: Tensor | None = None,
    ) -> None:
        """Append the entry of a step: the loss and its terms, scores, learning rate, and the result of DHNM's check.

        `tokens` are those of all ranks since the last entry; `tokens_per_second` divides them by the whole time since
        then, validation and checkpoints included. Two counts are logged only if they are not 0: `single_label_batches`,
        the batches since the last entry whose sentence pairs all had the same label, so that CoSENT had nothing to
        compare; and `nonfinite_steps`, the steps of the run skipped because gradients were NaN or infinite. A loss that
        is NaN or infinite is logged as null.
        """
        if not self.writes:
            return
        terms = {name: float(value.detach()) for name, value in losses.terms.items()}
        total, now = float(losses.total.detach()), time.monotonic()
        tokens_per_second = tokens / (now - self.since)
        counts = {"single_label_batches": self.single_label_batches, "nonfinite_steps": nonfinite_steps}
        self.single_label_batches, self.since = 0, now
        false_negatives = losses.mean_false_negatives
        entry = {
            "step": step,
            "loss": _number(total),
            **{name: _number(value) for name, value in terms.items()},
            "negatives": round(float(losses.mean_negatives), 1),
            **({} if false_negatives is None else {"false_negatives": round(float(false_negatives), 1)}),
            "positive_score": _mean(losses.positive_scores),
            "negative_score": _mean(losses.negative_scores),
            "learning_rate": learning_rate,
            **({} if temperature is None else {"temperature": float(temperature.detach())}),
            "gradient_norm": None if gradient_norm is None else _number(gradient_norm),
            "tokens_per_second": round(tokens_per_second),
        }
        counted = {name: count for name, count in counts.items() if count}
        self.write(**entry, **counted, **({"mining": replaced} if replaced else {}))
        shown = (
            f"loss {total:.3f} ({', '.join(f'{name} {value:.3f}' for name, value in terms.items())}), "
            f"{losses.mean_negatives:,.0f} negatives per query, {tokens_per_second:,.0f} tokens/s"
        )
        self.progress.update(self.bar, completed=step, progress=shown)


def _number(value: Any) -> float | None:
    """Return a value as a float, or None if it is NaN or infinite, which JSON can't express."""
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
