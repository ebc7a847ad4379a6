"""DHNM by the policy v1 (paper §2.2): collects scores from each step, and moves windows of easy negatives at checks."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ..data.batches import Integers
from ..loss.cbb import Losses
from ..loss.collectives import broadcast_from_rank0
from .miner import HardNegativeMiner
from .refresh import Encode, read_mined, rerank
from .windows import Flags, Windows, advance, eligible, move, no_longer_hard, observe, start, visited


class WindowMiner(HardNegativeMiner):
    """Judges all negatives of a query together, and replaces them by the next window of its pool.

    With `refresh: rerank`, a replacement takes the query's n hardest candidates under the current weights (see
    refresh.rerank): ranks [0, n) of an order that each replacement computes for itself. The paper's offsets don't apply
    there, because they walk down one fixed order and would skip the hardest candidates. The paper presumably skips the
    first ten ranks to avoid false negatives; here the positive-aware filter removes those, using current scores.
    """

    current: Windows

    def start(self, provided: Integers) -> None:
        """Give every query the window of round 0."""
        self.current = start(self.data.pool_sizes, self.n, provided)
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # step, scores [n, k], whether the loss is finite
        self._recorded: Windows | None = None  # the windows last written to pools.duckdb by this process

    def checks(self, step: int) -> bool:
        """Whether negatives may be replaced after this step."""
        return self.settings.enabled and (step % self.settings.check_every == 0 or self.remines(step))

    def changes_data(self, step: int) -> bool:
        """Whether the step ends with a check."""
        return self.checks(step)

    def observe(self, step: int, losses: Losses, encode: Encode | None = None) -> dict[str, int] | None:
        """Record a step's scores; at a check, replace the negatives that have become easy.

        If the loss is NaN or infinite, it is not a check either. Between checks the scores stay on the device, because
        reading them would make the host wait.

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
        before = self.current
        counts = {"visited": int(visited(before).sum()), "eligible": int(eligible(before).sum())}
        if self.remines(step):
            assert encode is not None
            self.remine(step, encode)
            return counts | {"flagged": 0, "replaced": 0, "exhausted": 0, "remined": len(self.data.query_ids)}
        # Scores may differ in the last bit between devices, but all ranks must build the same batches.
        flagged = broadcast_from_rank0(no_longer_hard(before, self.settings.factor, self.settings.ceiling))
        if self.settings.refresh == "rerank":
            assert encode is not None
            self._rerank(flagged, encode, losses.negative_scores.device)
        else:
            self.current = advance(before, flagged, self.data.pool_sizes, self.n, self.settings.offset)
        moved = np.flatnonzero(self.current.round > before.round)
        replaced = {
            "step": np.full(len(moved), step),
            "query_id": self.data.query_ids[moved],
            "round": self.current.round[moved],
            "old_score": before.last_score[moved],
            "initial_score": before.initial_score[moved],
            "lo": self.current.lo[moved],
            "hi": self.current.hi[moved],
        }
        self.unwritten = pl.concat([self.unwritten, pl.DataFrame(replaced).cast(self.columns)])  # type: ignore[arg-type]
        return counts | {
            "flagged": int(flagged.sum()),
            "replaced": len(moved),
            "exhausted": int(self.current.exhausted.sum()),
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
                self.current = observe(self.current, self.rows_of(step), means)

    def _rerank(self, flagged: Flags, encode: Encode, device: torch.device) -> None:
        rows = np.flatnonzero(flagged & ~self.current.exhausted)  # exhausted ones would be rescored at every check
        picked = np.full((len(flagged), self.n), -1) if self.data.picked is None else self.data.picked.copy()
        there = np.zeros(len(flagged), np.bool_)
        if len(rows):
            found = rerank(self.data, self.current, rows, self.n, read_mined(self.folder), encode, device)
            whole = found[:, 0] >= 0
            there[rows], picked[rows[whole]] = whole, found[whole]
        self.data = replace(self.data, picked=picked)
        self.current = move(self.current, flagged, there, 0, self.n)

    def table(self, step: int, whole: bool) -> tuple[pl.DataFrame, Integers | None]:
        """Return a row for each query that has been visited."""
        self.read_scores()
        windows, changed = self.current, None
        rows = np.arange(len(self.data.query_ids))
        if self._recorded is not None and not whole:
            # Within a round visits only grow, and a new window means a new round.
            rows = np.flatnonzero((windows.round != self._recorded.round) | (windows.visits != self._recorded.visits))
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
        )
        return current.filter(visited(windows)[rows]), changed

    def mark_written(self) -> None:
        """Compare with these windows from now on."""
        self._recorded = self.current

    def state(self) -> dict[str, Any]:
        """Return the arrays to save in a checkpoint."""
        self.read_scores()
        picked = {}
        if self.data.picked is not None:
            rows = np.flatnonzero(self.data.picked[:, 0] >= 0)
            picked = {"picked_rows": rows, "picked": self.data.picked[rows]}
        return super().state() | picked

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint's arrays."""
        super().restore(state)
        if "picked" in state:
            picked = np.full((len(self.data.query_ids), self.n), -1)
            picked[state["picked_rows"]] = state["picked"]
            self.data = replace(self.data, picked=picked)
