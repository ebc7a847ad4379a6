"""pools.duckdb: negative pools, written whole by mine, read by the trainer, appended to by rank 0 alone."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ...schemas.errors import CorpusError
from ...schemas.pools import POOLS, SHORT_POOLS
from .atomic import replacing

FILE = "pools.duckdb"
TABLES = ("runs", "passages", "queries", "positives", "candidates")


class PoolsInUseError(CorpusError):
    """pools.duckdb is open in another process: DuckDB allows one that writes, or several that read."""


def stored_fingerprint(corpus: Path) -> str | None:
    """What decided the pools that are there; None where there are none, or only tables of an earlier shape."""
    if not (corpus / FILE).exists():
        return None
    try:
        with open_pools(corpus) as connection:
            found = connection.execute("SELECT fingerprint FROM runs").fetchone()
    except (duckdb.CatalogException, duckdb.BinderException):
        return None
    return str(found[0]) if found else None


def open_pools(corpus: Path, read_only: bool = True) -> duckdb.DuckDBPyConnection:
    """The database of the pools.

    Raises:
        CorpusError: there is none yet.
        PoolsInUseError: another process has it open.
    """
    if not (corpus / FILE).exists():
        raise CorpusError(f"{corpus}: no {FILE}; run `conan mine {corpus}` first")
    try:
        connection = duckdb.connect(str(corpus / FILE), read_only=read_only)
    except duckdb.IOException as error:
        raise PoolsInUseError(f"{corpus / FILE} can't be opened: {error}") from error
    connection.execute("SET enable_progress_bar = false")
    return connection


def write_pools(corpus: Path, tables: dict[str, pa.Table], ceiling_sql: str) -> None:
    """Replace the pools: whole or not at all. `tables` holds an Arrow table for each of TABLES.

    `ceiling_sql` is what the view `short_pools` shows as ceiling (see mine/methods.py).
    """
    with replacing(corpus / FILE) as temporary:
        with duckdb.connect(str(temporary)) as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.execute(POOLS)
            connection.execute(SHORT_POOLS.format(ceiling=ceiling_sql))
            for name in TABLES:
                connection.register("incoming", tables[name])
                connection.execute(f"INSERT INTO {name} BY NAME FROM incoming")
                connection.unregister("incoming")
            connection.execute("CHECKPOINT")
        # What a killed trainer left unmerged belongs to the old pools and must not be replayed on the new ones.
        (corpus / f"{FILE}.wal").unlink(missing_ok=True)


def read_candidates(corpus: Path) -> pl.DataFrame:
    """Every query with its pool: `query_id, query, passage_ids, scores`, by query_id.

    Raises:
        CorpusError: no pools yet.
    """
    with open_pools(corpus) as connection:
        pools: pl.DataFrame = connection.sql(
            "SELECT query_id, text AS query, passage_ids, scores FROM queries JOIN candidates USING (query_id) "
            "ORDER BY query_id"
        ).pl()
        return pools


def read_passages(corpus: Path, passage_ids: npt.NDArray[np.int64]) -> pl.DataFrame:
    """Texts of passages: `passage_id, text, cluster_id`, by passage_id, in one query.

    Raises:
        CorpusError: no pools yet.
    """
    with open_pools(corpus) as connection:
        connection.register("wanted", pa.table({"passage_id": np.unique(passage_ids)}))
        passages: pl.DataFrame = connection.sql(
            "SELECT passage_id, text, cluster_id FROM passages JOIN wanted USING (passage_id) ORDER BY passage_id"
        ).pl()
        return passages


def write_windows(
    corpus: Path,
    windows: pl.DataFrame,
    replacements: pl.DataFrame,
    step: int,
    changed: npt.NDArray[np.int64] | None = None,
) -> None:
    """Record DHNM's present state and append to its log; nothing of a later step (of a killed run) stays.

    `windows` takes the place of all that are there or, where `changed` has query ids, of those of these queries alone:
    to write all of a million takes longer. Writing the same replacements twice leaves them there once.

    Raises:
        CorpusError: no pools yet.
    """
    with open_pools(corpus, read_only=False) as connection:
        connection.register("new_windows", windows.to_arrow())
        connection.register("new_replacements", replacements.to_arrow())
        connection.execute("BEGIN")
        if changed is None:
            connection.execute("DELETE FROM windows")
        else:
            connection.register("changed", pa.table({"query_id": changed}))
            connection.execute("DELETE FROM windows WHERE query_id IN (FROM changed)")
        connection.execute("INSERT INTO windows BY NAME FROM new_windows")
        connection.execute(
            "DELETE FROM replacements WHERE step > ? OR step IN (SELECT step FROM new_replacements)", [step]
        )
        connection.execute("INSERT INTO replacements BY NAME FROM new_replacements")
        connection.execute("COMMIT")


def as_lists(values: npt.NDArray[np.generic], counts: Sequence[int] | npt.NDArray[np.int64]) -> pa.Array:
    """A list column of flat values: `counts[i]` of them belong to row i."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
