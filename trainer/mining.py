"""DHNM while training: scores come from the step's own logits, checks every so often, DuckDB only at the edge."""

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import polars as pl

from ..pipeline.pools import write_windows
from ..schemas.settings import FinetuneSettings
from .batches import FinetuneData, Integers, given_counts
from .cbb import Losses
from .distributed import of_rank_zero
from .job import Job
from .negatives import Windows, advance, no_longer_hard, observe, start

FIELDS = ("round", "lo", "hi", "initial_score", "last_score", "exhausted")
REPLACEMENTS = {
    "step": pl.Int64,
    "query_id": pl.Int64,
    "round": pl.Int32,
    "old_score": pl.Float32,
    "initial_score": pl.Float32,
    "lo": pl.Int32,
    "hi": pl.Int32,
}


class Mining:
    """The state of DHNM in one run. Every rank holds the same and decides the same; rank 0 alone writes it down."""

    def __init__(
        self, job: Job, settings: FinetuneSettings, data: FinetuneData, rows_of: Callable[[int], Integers]
    ) -> None:
        self.corpus, self.settings = job.corpus, settings.hard_negative_mining
        self.n, self.rows_of = settings.negatives, rows_of
        self.query_ids, self.pool_sizes = data.query_ids, data.pool_sizes
        self.windows = start(data.pool_sizes, settings.negatives, given_counts(data))
        self.written = 0  # the step up to which pools.duckdb has the log of replacements
        self.unwritten = pl.DataFrame(schema=REPLACEMENTS)  # the log after that step

    def checks(self, step: int) -> bool:
        """Whether negatives may be replaced after this step."""
        return self.settings.enabled and step % self.settings.check_every == 0

    def observe(self, step: int, losses: Losses) -> dict[str, int] | None:
        """Record a step's scores; at a check, move the queries whose negatives have become easy.

        Returns what the check found, None between checks.
        """
        scores = losses.negative_scores.float().cpu().numpy()
        known = ~np.isnan(scores)
        means = np.where(known.any(axis=1), np.where(known, scores, 0).sum(axis=1) / known.sum(axis=1).clip(1), np.nan)
        self.windows = observe(self.windows, self.rows_of(step), means)
        if not self.checks(step):
            return None
        before = self.windows
        # Scores may differ in the last bit from device to device, and all ranks must build the same updates.
        flagged = of_rank_zero(no_longer_hard(before, self.settings.factor, self.settings.ceiling))
        self.windows = advance(before, flagged, self.pool_sizes, self.n, self.settings.offset)
        moved = np.flatnonzero(self.windows.round > before.round)
        replaced = {
            "step": np.full(len(moved), step),
            "query_id": self.query_ids[moved],
            "round": self.windows.round[moved],
            "old_score": before.last_score[moved],
            "initial_score": before.initial_score[moved],
            "lo": self.windows.lo[moved],
            "hi": self.windows.hi[moved],
        }
        self.unwritten = pl.concat([self.unwritten, pl.DataFrame(replaced).cast(REPLACEMENTS)])  # type: ignore[arg-type]
        return {
            "visited": int((~np.isnan(before.last_score) | (before.round > 0)).sum()),
            "flagged": int(flagged.sum()),
            "replaced": len(moved),
            "exhausted": int(self.windows.exhausted.sum()),
        }

    def write(self, step: int) -> bool:
        """Bring pools.duckdb up to date (rank 0): what another run, or this one before it was killed, wrote goes.

        Returns False where somebody has the file open right now; the next call then writes what this one could not.
        """
        windows = pl.DataFrame(
            {
                "query_id": self.query_ids,
                "round": self.windows.round.astype(np.int32),
                "lo": self.windows.lo.astype(np.int32),
                "hi": self.windows.hi.astype(np.int32),
                "initial_score": pl.Series(self.windows.initial_score.astype(np.float32)).fill_nan(None),
                "last_score": pl.Series(self.windows.last_score.astype(np.float32)).fill_nan(None),
                "step": np.full(len(self.query_ids), step, np.int64),
            }
        ).filter((pl.col("round") > 0) | pl.col("last_score").is_not_null())
        try:
            write_windows(self.corpus, windows, self.unwritten, self.written + 1)
        except duckdb.IOException:
            return False
        self.written, self.unwritten = step, self.unwritten.clear()
        return True

    def state(self) -> dict[str, Any]:
        """Arrays for the checkpoint."""
        unwritten = {f"unwritten_{name}": self.unwritten[name].to_numpy() for name in REPLACEMENTS}
        return {name: getattr(self.windows, name) for name in FIELDS} | unwritten | {"written": np.array(self.written)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's arrays."""
        self.windows = Windows(**{name: state[name] for name in FIELDS})
        self.written = int(state["written"])
        self.unwritten = pl.DataFrame({name: state[f"unwritten_{name}"] for name in REPLACEMENTS}, schema=REPLACEMENTS)
