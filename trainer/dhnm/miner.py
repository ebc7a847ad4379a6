"""DHNM during training: collects scores from each step, replaces easy negatives at checks, logs to pools.duckdb."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ...pipeline.corpus.pools import PoolsInUseError, write_windows
from ...schemas.errors import CorpusError
from ...schemas.training_settings import FinetuneSettings
from ..data.batches import Integers
from ..data.training_tables import FinetuneData, pools_file, provided_counts, with_pools
from ..job import Job
from ..loss.cbb import Losses
from ..loss.collectives import broadcast_from_rank0
from .refresh import Encode, read_mined, remine, rerank
from .windows import Flags, Windows, advance, eligible, move, no_longer_hard, observe, start, visited

FIELDS = tuple(field.name for field in fields(Windows))
REPLACEMENTS = {
    "step": pl.Int64,
    "query_id": pl.Int64,
    "round": pl.Int32,
    "old_score": pl.Float32,
    "initial_score": pl.Float32,
    "lo": pl.Int32,
    "hi": pl.Int32,
}


class HardNegativeMiner:
    """The state of DHNM in a run. Every rank holds the same state and makes the same decisions; only rank 0 writes it.

    The setting `refresh` decides where new negatives come from:

    - static (the paper): the next window of the pool as it was mined.
    - rerank: the query's hardest candidates under the current weights (see refresh.rerank): ranks [0, n) of an order
      that each replacement computes for itself. The paper's offsets don't apply, because they walk down one fixed order
      and would skip the hardest candidates. The paper presumably skips the first ten ranks to avoid false negatives;
      here the positive-aware filter removes those, using current scores.
    - remine: windows move as in static, and every `remine_every` steps all pools are rebuilt with the current weights.
      All windows then restart at rank 0, also for queries whose data came with negatives, as those have been trained
      on. pools.duckdb keeps the pools as mined, but its `windows` and `replacements` then refer to the rebuilt pools.
    """

    def __init__(
        self,
        job: Job,
        settings: FinetuneSettings,
        data: FinetuneData,
        rows_of: Callable[[int], Integers],
        steps: int | None = None,
    ) -> None:
        self.corpus, self.folder, self.settings = job.corpus, job.data, settings.hard_negative_mining
        self.n, self.rows_of, self.steps = settings.negatives, rows_of, steps
        self.data = data  # with the current pools and picked passages
        self.windows = start(data.pool_sizes, settings.negatives, provided_counts(data))
        self.pools_step = 0  # the step after which the current pools were built; 0 for those of `conan mine`
        self.saved_pools_step = 0  # the same for the last checkpoint
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # step, scores [n, k], whether the loss is finite
        self.recorded: Windows | None = None  # the windows last written to pools.duckdb by this process
        self.written = 0  # pools.duckdb has the replacements up to this step
        self.unwritten = pl.DataFrame(schema=REPLACEMENTS)  # the replacements after that step

    def checks(self, step: int) -> bool:
        """Whether negatives may be replaced after this step."""
        return self.settings.enabled and (step % self.settings.check_every == 0 or self.remines(step))

    def remines(self, step: int) -> bool:
        """Whether pools are rebuilt after this step; never after the last one."""
        settings = self.settings
        due = settings.enabled and settings.refresh == "remine" and step % settings.remine_every == 0
        return due and step != self.steps

    def observe(self, step: int, losses: Losses, encode: Encode | None = None) -> dict[str, int] | None:
        """Record a step's scores; at a check, replace the negatives that have become easy.

        If the loss is NaN or infinite, the step's scores are ignored and it is not a check. Between checks the scores
        stay on the device, because reading them would make the host wait. `encode` encodes texts with the current
        weights; rerank and remine need it.

        Returns None between checks. A check returns numbers of queries: `visited` (scored in this or an earlier round),
        `eligible` (scored often enough in this round to be flagged), `flagged`, `replaced` (flagged, with new
        negatives) and `exhausted`. If pools were rebuilt, no query is flagged, and `remined` is the number of pools.
        """
        self._unread.append((step, losses.negative_scores, losses.total.detach().isfinite()))
        if not self.checks(step):
            return None
        self.read_scores()
        if not losses.total.isfinite():
            return None
        before = self.windows
        counts = {"visited": int(visited(before).sum()), "eligible": int(eligible(before).sum())}
        if self.remines(step):
            assert encode is not None
            self._remine(step, encode)
            return counts | {"flagged": 0, "replaced": 0, "exhausted": 0, "remined": len(self.data.query_ids)}
        # Scores may differ in the last bit between devices, but all ranks must build the same batches.
        flagged = broadcast_from_rank0(no_longer_hard(before, self.settings.factor, self.settings.ceiling))
        if self.settings.refresh == "rerank":
            assert encode is not None
            self._rerank(flagged, encode, losses.negative_scores.device)
        else:
            self.windows = advance(before, flagged, self.data.pool_sizes, self.n, self.settings.offset)
        moved = np.flatnonzero(self.windows.round > before.round)
        replaced = {
            "step": np.full(len(moved), step),
            "query_id": self.data.query_ids[moved],
            "round": self.windows.round[moved],
            "old_score": before.last_score[moved],
            "initial_score": before.initial_score[moved],
            "lo": self.windows.lo[moved],
            "hi": self.windows.hi[moved],
        }
        self.unwritten = pl.concat([self.unwritten, pl.DataFrame(replaced).cast(REPLACEMENTS)])  # type: ignore[arg-type]
        return counts | {
            "flagged": int(flagged.sum()),
            "replaced": len(moved),
            "exhausted": int(self.windows.exhausted.sum()),
        }

    def read_scores(self) -> None:
        """Update the windows with the scores that are still on the device, in a single copy."""
        if not self._unread:
            return
        steps, scores, finite = zip(*self._unread, strict=True)
        self._unread = []
        flat = torch.cat([each.float().flatten() for each in scores] + [torch.stack(finite).float()]).cpu().numpy()
        ends = np.cumsum([each.numel() for each in scores])
        *parts, known_steps = np.split(flat, ends)
        for step, part, shape, is_finite in zip(
            steps, parts, [each.shape for each in scores], known_steps, strict=True
        ):
            if is_finite:
                own = part.reshape(shape)
                known = ~np.isnan(own)
                sums, counts = np.where(known, own, 0).sum(axis=1), known.sum(axis=1)
                means = np.where(known.any(axis=1), sums / counts.clip(1), np.nan)
                self.windows = observe(self.windows, self.rows_of(step), means)

    def _rerank(self, flagged: Flags, encode: Encode, device: torch.device) -> None:
        rows = np.flatnonzero(flagged & ~self.windows.exhausted)  # exhausted ones would be rescored at every check
        picked = np.full((len(flagged), self.n), -1) if self.data.picked is None else self.data.picked.copy()
        there = np.zeros(len(flagged), np.bool_)
        if len(rows):
            found = rerank(self.data, self.windows, rows, self.n, read_mined(self.folder), encode, device)
            whole = found[:, 0] >= 0
            there[rows], picked[rows[whole]] = whole, found[whole]
        self.data = replace(self.data, picked=picked)
        self.windows = move(self.windows, flagged, there, 0, self.n)

    def _remine(self, step: int, encode: Encode) -> None:
        mined = read_mined(self.folder)
        self.data = remine(self.folder, self.data, step, mined, encode, keep=self.saved_pools_step)
        self.windows = start(self.data.pool_sizes, self.n, np.zeros(len(self.data.query_ids)))
        self.pools_step, self.recorded = step, None

    def write(self, step: int, whole: bool = True) -> bool:
        """Write windows and new replacements to pools.duckdb (rank 0), in place of what other or killed runs left.

        With `whole`, all windows are written, else only those changed since the last call; the others keep the `step`
        of their last change. Returns False if another process has the file open; the next call then writes the rest.
        """
        self.read_scores()
        windows = self.windows
        rows = np.arange(len(self.data.query_ids))
        changed = None
        if self.recorded is not None and not whole:
            # Within a round visits only grow, and a new window means a new round.
            rows = np.flatnonzero((windows.round != self.recorded.round) | (windows.visits != self.recorded.visits))
            changed = self.data.query_ids[rows]
        current = pl.DataFrame(
            {
                "query_id": self.data.query_ids[rows],
                "round": windows.round[rows].astype(np.int32),
                "lo": windows.lo[rows].astype(np.int32),
                "hi": windows.hi[rows].astype(np.int32),
                "initial_score": pl.Series(windows.initial_score[rows].astype(np.float32)).fill_nan(None),
                "last_score": pl.Series(windows.last_score[rows].astype(np.float32)).fill_nan(None),
                "step": np.full(len(rows), step, np.int64),
            }
        ).filter(visited(windows)[rows])
        try:
            write_windows(self.corpus, current, self.unwritten, self.written + 1, changed)
        except PoolsInUseError:
            return False
        self.recorded, self.written, self.unwritten = windows, step, self.unwritten.clear()
        return True

    def state(self) -> dict[str, Any]:
        """Return the arrays to save in a checkpoint."""
        self.read_scores()
        self.saved_pools_step = self.pools_step
        unwritten = {f"unwritten_{name}": self.unwritten[name].to_numpy() for name in REPLACEMENTS}
        numbers = {"written": np.array(self.written), "pools_step": np.array(self.pools_step)}
        picked = {}
        if self.data.picked is not None:
            rows = np.flatnonzero(self.data.picked[:, 0] >= 0)
            picked = {"picked_rows": rows, "picked": self.data.picked[rows]}
        return {name: getattr(self.windows, name) for name in FIELDS} | unwritten | numbers | picked

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint's arrays, and open the pools that were in use.

        Raises:
            CorpusError: those pools no longer exist.
        """
        self.windows = Windows(**{name: state[name] for name in FIELDS})
        self.written = int(state["written"])
        self.unwritten = pl.DataFrame({name: state[f"unwritten_{name}"] for name in REPLACEMENTS}, schema=REPLACEMENTS)
        if "picked" in state:
            picked = np.full((len(self.data.query_ids), self.n), -1)
            picked[state["picked_rows"]] = state["picked"]
            self.data = replace(self.data, picked=picked)
        if step := int(state["pools_step"]):
            file = pools_file(self.folder, step)
            if not file.exists():
                raise CorpusError(
                    f"{file}: the pools of the last checkpoint are gone; remove {self.folder.parent} to start over"
                )
            self.data = with_pools(self.data, file)
            self.pools_step = self.saved_pools_step = step
