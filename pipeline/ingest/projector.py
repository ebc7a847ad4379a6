"""Project batch after batch in a sandbox that is replaced when the SQL engine fails for good."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

import duckdb
import polars as pl

from ...schemas.source_settings import Source
from .problems import no_problems
from .projection import Plans, Projected, project, reject_batch
from .readers import SourceError, load_batch, open_sandbox, read_joined
from .shown_records import show_records

_FATAL = (duckdb.FatalException, duckdb.InternalException)  # after these, DuckDB refuses all further work


class Projector:
    """Turns the batches of a source into pairs and problems. A row on which the SQL engine fails costs only itself."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.plans: Plans = {}
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sandbox.close()

    def _open(self) -> None:
        self.sandbox = ExitStack()
        self.connection = self.sandbox.enter_context(open_sandbox())
        self.unjoined: SourceError | None = None
        try:
            read_joined(self.connection, self.source)
        except SourceError as error:
            self.unjoined = error

    def project(self, frame: pl.DataFrame) -> Projected:
        """Turn the rows of a frame, numbered by `_row`, into pairs and problems, misfits among them."""
        try:
            return self._project(frame)
        except _FATAL as error:
            self.sandbox.close()
            self._open()
            if frame.height == 1:
                said = pl.lit(f"the SQL engine failed on this row: {str(error).strip().splitlines()[0]}")
                row = frame.select("_row", reason=pl.lit("sql_engine"), detail=said)
                return Projected(_NO_PAIRS, show_records(frame, row), [], 0)
        half = frame.height // 2
        return _join(self.project(frame.head(half)), self.project(frame.tail(-half)))

    def _project(self, frame: pl.DataFrame) -> Projected:
        problems = no_problems()
        try:
            problems = load_batch(self.connection, self.source, frame)
            if self.unjoined:
                raise self.unjoined
            found = project(self.connection, self.source, frame, self.plans)
        except _FATAL:
            raise
        except (duckdb.Error, SourceError, UnicodeDecodeError) as error:
            found = Projected(_NO_PAIRS, reject_batch(self.connection, self.source, frame, error), [], 0)
        return Projected(found.pairs, pl.concat([problems, found.problems]), found.missing, found.left_out)


_NO_PAIRS = pl.DataFrame()


def _join(one: Projected, other: Projected) -> Projected:
    return Projected(
        pl.concat([one.pairs, other.pairs], how="diagonal_relaxed"),
        pl.concat([one.problems, other.problems]),
        list(dict.fromkeys([*one.missing, *other.missing])),
        one.left_out + other.left_out,
    )
