"""DHNM by the policy v2 (Conan-embedding-v2, eq. 6): a step replaces the negatives that its scores show to be easy."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
import torch

from ..data.batches import Integers
from ..loss.cbb import Losses
from ..loss.collectives import broadcast_from_rank0
from .miner import REPLACEMENTS, HardNegativeMiner
from .negatives import Negatives, advance_negatives, easy_negatives, observe_negatives, start_negatives
from .refresh import Encode
from .windows import Flags

COUNTS = ("scored", "flagged", "replaced")


class NegativeMiner(HardNegativeMiner):
    """Judges and replaces each negative on its own; in the tables, it is a window of one rank with a `slot`."""

    columns = REPLACEMENTS | {"slot": pl.Int32}
    current: Negatives

    def start(self, provided: Integers) -> None:
        """Give every query its first negatives."""
        self.current = start_negatives(self.data.pool_sizes, self.n, provided)
        self._provided = provided > 0
        self._replaced: list[dict[str, Any]] = []  # what self.unwritten lacks; a frame for each step takes longer
        self._counts: Counter[str] = Counter()  # since the last line of the log
        self._changed: list[Integers] | None = None  # rows since the table was written; None: not by this process

    def checks(self, step: int) -> bool:
        """Never: every step replaces negatives, and writing after each would take longer than the step."""
        return False

    def changes_data(self, step: int) -> bool:
        """Whether a query of this step is in the next one, too."""
        again = np.isin(self.rows_of(step), self.rows_of(step + 1)).any()
        return self.remines(step) or (self.settings.enabled and bool(again))

    def observe(self, step: int, losses: Losses, encode: Encode | None = None) -> dict[str, int] | None:
        """Record a step's scores, and replace the negatives that they show to be easy.

        Returns None unless the step is logged or rebuilds pools, else numbers of negatives: `scored`, `flagged` and
        `replaced` since the last line of the log, and `exhausted` of the whole run. If pools were rebuilt, no negative
        of this step is flagged, and `remined` is the number of pools.
        """
        scores = torch.where(losses.total.isfinite(), losses.negative_scores.float(), torch.nan)
        # Scores may differ in the last bit between devices, but all ranks must build the same batches.
        scores = broadcast_from_rank0(scores).cpu()
        rows, first = np.unique(self.rows_of(step), return_index=True)
        found = scores.numpy()[first]
        observe_negatives(self.current, rows, found)
        self._counts["scored"] += int((~np.isnan(found)).sum())
        if self._changed is not None:
            self._changed.append(rows)
        remined = {}
        if self.remines(step):
            assert encode is not None
            self.remine(step, encode)
            remined = {"remined": len(self.data.query_ids)}
        elif self.settings.enabled:
            self._replace(step, rows, ~np.isnan(found))
        if not remined and step % self.log_every != 0 and step != self.steps:
            return None
        counted = {name: self._counts[name] for name in COUNTS}
        self._counts.clear()
        return counted | {"exhausted": int(np.count_nonzero(self.current.exhausted))} | remined

    def remine(self, step: int, encode: Encode) -> None:
        """Rebuild all pools and restart every query, but keep what has not been logged yet."""
        self.collect_replacements()
        counts = self._counts
        super().remine(step, encode)
        self._counts = counts

    def _replace(self, step: int, rows: Integers, scored: Flags) -> None:
        state, settings = self.current, self.settings
        easy = easy_negatives(state, rows, settings.factor, settings.ceiling, settings.floor)
        easy[:, : scored.shape[1]] &= scored
        initial, last = state.initial_score[rows], state.last_score[rows]
        replaced = advance_negatives(state, rows, easy, self.data.pool_sizes, self._repeats(rows, easy))
        self._counts.update(flagged=int(easy.sum()), replaced=int(replaced.sum()))
        asked, slots = replaced.nonzero()
        places = rows[asked], slots
        entries = {
            "step": np.full(len(slots), step),
            "query_id": self.data.query_ids[rows[asked]],
            "round": state.replacements[places],
            "old_score": last[replaced],
            "initial_score": initial[replaced],
            "lo": state.rank[places],
            "hi": state.rank[places] + 1,
            "slot": slots,
        }
        self._replaced.append(entries)

    def _repeats(self, rows: Integers, easy: Flags) -> Flags | None:
        """Mark those of each query's next 2n candidates whose text is a negative that came with the data."""
        asked = np.flatnonzero(easy.any(axis=1) & self._provided[rows])
        if not len(asked) or self.pools_step:  # with rebuilt pools, no negative comes from the data
            return None
        queries, n = rows[asked], self.n
        provided = [each[:n] for each in self.data.queries.take(queries)["provided"].to_pylist()]
        pools = self.data.pools.take(queries)["pool"].to_pylist()
        ahead = [
            pool[after : after + 2 * n] for pool, after in zip(pools, self.current.next_rank[queries], strict=True)
        ]
        texts = iter(self.data.passages.take(np.array([*chain.from_iterable(ahead)], np.int64))["text"].to_pylist())
        repeats = np.zeros((len(rows), 2 * n), np.bool_)
        for row, candidates, own in zip(asked, ahead, provided, strict=True):
            repeats[row, : len(candidates)] = [next(texts) in own for _ in candidates]
        return repeats

    def collect_replacements(self) -> None:
        """Put all replacements so far into one table."""
        if self._replaced:
            entries = {name: np.concatenate([each[name] for each in self._replaced]) for name in self.columns}
            self.unwritten = pl.concat([self.unwritten, pl.DataFrame(entries).cast(self.columns)])  # type: ignore[arg-type]
            self._replaced = []

    def table(self, step: int, whole: bool) -> tuple[pl.DataFrame, Integers | None]:
        """Return a row for each negative that has been scored, or replaced."""
        self.collect_replacements()
        rows, changed = np.arange(len(self.data.query_ids)), None
        if self._changed is not None and not whole:
            rows = np.unique(np.concatenate([np.zeros(0, np.int64), *self._changed]))
            changed = self.data.query_ids[rows]
        visited = ~np.isnan(self.current.last_score[rows]) | (self.current.replacements[rows] > 0)
        asked, slots = visited.nonzero()
        places = rows[asked], slots
        rank = self.current.rank[places]
        current = pl.DataFrame(
            {
                "query_id": self.data.query_ids[rows[asked]],
                "slot": slots.astype(np.int32),
                "round": self.current.replacements[places],
                "lo": rank.clip(0),
                "hi": rank + 1,  # 0 if the negative came with the data
                "initial_score": pl.Series(self.current.initial_score[places]).fill_nan(None),
                "last_score": pl.Series(self.current.last_score[places]).fill_nan(None),
                "step": np.full(len(slots), step, np.int64),
            }
        )
        return current, changed

    def mark_written(self) -> None:
        """Collect changes from now on."""
        self._changed = []

    def state(self) -> dict[str, Any]:
        """Return the arrays to save in a checkpoint."""
        self.collect_replacements()
        return super().state() | {"counts": np.array([self._counts[name] for name in COUNTS])}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint's arrays."""
        super().restore(state)
        self._counts = Counter(dict(zip(COUNTS, state["counts"].tolist(), strict=True)))
