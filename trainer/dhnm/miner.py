"""DHNM while training: scores come from the step's own logits, checks every so often, DuckDB only at the edge."""

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
    """The state of DHNM in one run. Every rank holds the same and decides the same; rank 0 alone writes it down.

    Where the next negatives come from is `refresh`:

    - static (the paper): the next window of the pool as it was mined.
    - rerank: the hardest of the query's candidates by the current weights, see refresh.rerank. They are ranks [0, n) of
      an order made for this replacement, and the next one makes its own. The paper's formula would not do: it walks
      down one order that stays, and so would skip the hardest. What its first ten ranks are skipped for, as we read it,
      false negatives, the positive-aware filter sees to by the current scores.
    - remine: windows move as in static, and every `remine_every` steps the pools are rebuilt with the current weights.
      Windows then start anew from rank 0, also where negatives came with the data, as those were trained on before.
      pools.duckdb keeps the pools as mined; its `windows` and `replacements` go on and refer to the new ones.
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
        self.data = data  # with the pools and picked passages that are in use
        self.windows = start(data.pool_sizes, settings.negatives, provided_counts(data))
        self.pools_step = 0  # when the pools in use were made, 0 for those of mine
        self.saved_pools_step = 0  # the same of the last checkpoint
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # step, scores [n, k] and whether its loss is finite
        self.recorded: Windows | None = None  # the windows as pools.duckdb has them, once it has this run's
        self.written = 0  # the step up to which pools.duckdb has the log of replacements
        self.unwritten = pl.DataFrame(schema=REPLACEMENTS)  # the log after that step

    def checks(self, step: int) -> bool:
        """Whether negatives may be replaced after this step."""
        return self.settings.enabled and (step % self.settings.check_every == 0 or self.remines(step))

    def remines(self, step: int) -> bool:
        """Whether pools are rebuilt after this step: not after the last one."""
        settings = self.settings
        due = settings.enabled and settings.refresh == "remine" and step % settings.remine_every == 0
        return due and step != self.steps

    def observe(self, step: int, losses: Losses, encode: Encode | None = None) -> dict[str, int] | None:
        """Record a step's scores; at a check, move the queries whose negatives have become easy.

        Scores of a step whose loss is not finite are passed over, and such a step is no check. Between checks the
        scores stay on the device: reading them would make the host wait for it. `encode` makes vectors with the current
        weights, for other refreshes than static. Returns what the check found, None between checks: how many queries
        were `visited`, in this or an earlier round, and how many `eligible`, visited often enough to be flagged; how
        many were `flagged` and how many of these `replaced`; how many are `exhausted`. Where pools were rebuilt, none
        is flagged, and `remined` says how many pools there are.
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
        # Scores may differ in the last bit from device to device, and all ranks must build the same updates.
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
        """Bring the windows up to date with the scores that are still on the device, by one copy of them all."""
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
        rows = np.flatnonzero(flagged & ~self.windows.exhausted)  # or they would be scored at every check from now on
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
        """Bring pools.duckdb up to date (rank 0): what another run, or this one before it was killed, wrote goes.

        All windows, or only those that have changed since the last time: the `step` of the others is then that of
        their last change. Returns False where somebody has the file open right now; the next call then writes what
        this one could not.
        """
        self.read_scores()
        windows = self.windows
        rows = np.arange(len(self.data.query_ids))
        changed = None
        if self.recorded is not None and not whole:
            # In a round visits only grow, and another window is another round.
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
        """Arrays for the checkpoint."""
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
        """Go on from a checkpoint's arrays, and the pools that it names.

        Raises:
            CorpusError: they are gone.
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
                    f"{file}: pools of the last checkpoint, gone; remove {self.folder.parent} to start again"
                )
            self.data = with_pools(self.data, file)
            self.pools_step = self.saved_pools_step = step
