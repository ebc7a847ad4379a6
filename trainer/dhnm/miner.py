"""DHNM during training, what both policies share: rebuilding pools, checkpoints, and the tables in pools.duckdb."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import polars as pl

from ...pipeline.corpus.pools import PoolsInUseError, write_windows
from ...schemas.errors import CorpusError
from ...schemas.training_settings import FinetuneSettings, PretrainSettings
from ..data.batches import Integers
from ..data.training_tables import FinetuneData, pools_file, provided_counts, with_pools
from ..job import Job
from ..loss.cbb import Losses
from .negatives import Negatives
from .refresh import Encode, read_mined, remine
from .windows import Windows

REPLACEMENTS: dict[str, Any] = {
    "step": pl.Int64,
    "query_id": pl.Int64,
    "round": pl.Int32,
    "old_score": pl.Float32,
    "initial_score": pl.Float32,
    "lo": pl.Int32,
    "hi": pl.Int32,
}

FEWEST_DRAWS = 2
"""A query's second draw is the first whose scores can be compared with earlier ones."""


def warn_of_few_draws(settings: PretrainSettings | FinetuneSettings, draws: float) -> list[str]:
    """Return a warning if DHNM is on and a query is drawn too seldom for it, on average; else nothing."""
    if isinstance(settings, PretrainSettings) or not settings.hard_negative_mining.enabled or draws >= FEWEST_DRAWS:
        return []
    return [
        f"a query is drawn {draws:.2g} times on average, but DHNM compares its scores at two draws or more, so few"
        " negatives will be replaced; take more steps or fewer queries, or set hard_negative_mining.enabled: false"
    ]


class HardNegativeMiner(ABC):
    """The state of DHNM in a run. Every rank holds the same state and makes the same decisions; only rank 0 writes it.

    A subclass for each policy decides which negatives are replaced, and when. The setting `refresh` decides where new
    ones come from:

    - static (the papers): further down the pool as it was mined.
    - rerank: the query's hardest candidates under the current weights (see WindowMiner).
    - remine: as static, and every `remine_every` steps all pools are rebuilt with the current weights. All queries then
      restart at rank 0, also those whose data came with negatives, as those have been trained on. pools.duckdb keeps
      the pools as mined, but its `windows` and `replacements` then refer to the rebuilt pools.
    """

    columns: ClassVar[dict[str, Any]] = REPLACEMENTS
    current: Windows | Negatives
    """The negatives of all queries, which batches are built from."""

    def __init__(
        self,
        job: Job,
        settings: FinetuneSettings,
        data: FinetuneData,
        rows_of: Callable[[int], Integers],
        steps: int | None = None,
    ) -> None:
        self.corpus, self.folder, self.settings = job.corpus, job.data, settings.hard_negative_mining
        self.n, self.rows_of, self.steps, self.log_every = settings.negatives, rows_of, steps, settings.log_every
        self.data = data  # with the current pools and picked passages
        self.pools_step = 0  # the step after which the current pools were built; 0 for those of `conan mine`
        self.saved_pools_step = 0  # the same for the last checkpoint
        self.written = 0  # pools.duckdb has the replacements up to this step
        self.unwritten = pl.DataFrame(schema=self.columns)  # the replacements after that step
        self.start(provided_counts(data))

    @abstractmethod
    def start(self, provided: Integers) -> None:
        """Give every query its first negatives; `provided` counts those that came with the data."""

    @abstractmethod
    def observe(self, step: int, losses: Losses, encode: Encode | None = None) -> dict[str, int] | None:
        """Record a step's scores, replace easy negatives if it is time to, and return the counts that are to be logged.

        If the loss is NaN or infinite, the step's scores are ignored. `encode` encodes texts with the current weights;
        rerank and remine need it.
        """

    @abstractmethod
    def changes_data(self, step: int) -> bool:
        """Whether negatives of the next step's batch may be replaced after this step."""

    @abstractmethod
    def checks(self, step: int) -> bool:
        """Whether a step ends with a check, after which pools.duckdb is updated; checkpoints do so in any case."""

    @abstractmethod
    def table(self, step: int, whole: bool) -> tuple[pl.DataFrame, Integers | None]:
        """Return the rows of the table `windows`, and the ids of the queries whose rows they replace (None: all).

        Unless `whole`, these are the queries that have changed since the table was last written.
        """

    @abstractmethod
    def mark_written(self) -> None:
        """Remember that the table `windows` is up to date."""

    def remines(self, step: int) -> bool:
        """Whether pools are rebuilt after this step; never after the last one."""
        settings = self.settings
        due = settings.enabled and settings.refresh == "remine" and step % settings.remine_every == 0
        return due and step != self.steps

    def remine(self, step: int, encode: Encode) -> None:
        """Rebuild all pools with the current weights, and restart every query."""
        mined = read_mined(self.folder)
        self.data = remine(self.folder, self.data, step, mined, encode, keep=self.saved_pools_step)
        self.start(np.zeros(len(self.data.query_ids), np.int64))
        self.pools_step = step

    def write(self, step: int, whole: bool = True) -> bool:
        """Write windows and new replacements to pools.duckdb (rank 0), in place of what other or killed runs left.

        With `whole`, all windows are written, else only those changed since the last call; the others keep the `step`
        of their last change. Returns False if another process has the file open; the next call then writes the rest.
        """
        current, changed = self.table(step, whole)
        try:
            write_windows(self.corpus, current, self.unwritten, self.written + 1, changed)
        except PoolsInUseError:
            return False
        self.mark_written()
        self.written, self.unwritten = step, self.unwritten.clear()
        return True

    def state(self) -> dict[str, Any]:
        """Return the arrays to save in a checkpoint."""
        self.saved_pools_step = self.pools_step
        unwritten = {f"unwritten_{name}": self.unwritten[name].to_numpy() for name in self.columns}
        return (
            vars(self.current)
            | unwritten
            | {"written": np.array(self.written), "pools_step": np.array(self.pools_step)}
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint's arrays, and open the pools that were in use.

        Raises:
            CorpusError: those pools no longer exist.
        """
        self.current = type(self.current)(**{name: state[name] for name in vars(self.current)})
        self.written = int(state["written"])
        self.unwritten = pl.DataFrame({name: state[f"unwritten_{name}"] for name in self.columns}, schema=self.columns)
        if step := int(state["pools_step"]):
            file = pools_file(self.folder, step)
            if not file.exists():
                raise CorpusError(
                    f"{file}: the pools of the last checkpoint are gone; remove {self.folder.parent} to start over"
                )
            self.data = with_pools(self.data, file)
            self.pools_step = self.saved_pools_step = step
