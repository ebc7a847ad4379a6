"""pools.duckdb, the negative pools: `conan mine` writes them, the trainer reads them, only its rank 0 updates them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ...schemas.errors import CorpusError
from ...schemas.pools import POOLS, SHORT_POOLS, WHAT_IS_LEFT
from .atomic import replacing
from .folder import fingerprint
from .judgements import fill
from .sql import quote
from .uris import fetch

FILE = "pools.duckdb"
TABLES = {name: f"mined_{name}" for name in ("queries", "positives", "candidates")}
TABLES |= {"runs": "runs", "passages": "passages"}
"""The tables of what mining writes; a judge's decisions leave the views `queries`, `positives` …"""


MEMORY, THREADS = "1GB", 4
"""Chosen here: DuckDB's memory and threads while pools are written. It spills to disk beyond MEMORY, which all threads
share."""


class PoolsInUseError(CorpusError):
    """Another process has pools.duckdb open; DuckDB allows either one writer or several readers."""


def has_pools(corpus: Path) -> bool:
    """Whether a corpus has pools; those of a corpus at a URI are fetched."""
    fetch(corpus, FILE)
    return (corpus / FILE).exists()


def stored_fingerprint(corpus: Path) -> str | None:
    """Return the fingerprint of the stored pools, or None if there are no pools or their schema is outdated."""
    if not has_pools(corpus):
        return None
    try:
        with open_pools(corpus) as connection:
            found = connection.execute("SELECT fingerprint FROM runs").fetchone()
    except (duckdb.CatalogException, duckdb.BinderException):
        return None
    return str(found[0]) if found else None


def open_pools(corpus: Path, read_only: bool = True) -> duckdb.DuckDBPyConnection:
    """Open the database of the pools.

    Raises:
        CorpusError: there are no pools yet.
        PoolsInUseError: another process has the database open.
    """
    if not has_pools(corpus):
        raise CorpusError(f"{corpus}: no {FILE}; run `conan mine {corpus}` first")
    try:
        connection = duckdb.connect(str(corpus / FILE), read_only=read_only)
    except duckdb.IOException as error:
        raise PoolsInUseError(f"{corpus / FILE} can't be opened: {error}") from error
    connection.execute("SET enable_progress_bar = false")
    return connection


def write_pools(corpus: Path, tables: dict[str, pa.Table], ceiling_sql: str) -> None:
    """Replace the pools atomically. `tables` holds an Arrow table for each name in TABLES; more as in `new_pools`."""
    with new_pools(corpus, ceiling_sql) as pools:
        for name, table in TABLES.items():
            insert(pools, table, tables[name])


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Append rows to a table that has their columns."""
    connection.register("incoming", rows)
    connection.execute(f"INSERT INTO {table} BY NAME FROM incoming")
    connection.unregister("incoming")


@contextmanager
def new_pools(corpus: Path, ceiling_sql: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database, which replaces the pools atomically once the block has ended without an error.

    `ceiling_sql` is the SQL expression for the column `ceiling` of the view `short_pools` (see mine/methods.py). What
    the store of judgements knows about the new pools is filled in at the end.
    """
    with replacing(corpus / FILE) as temporary:
        with duckdb.connect(str(temporary)) as connection:
            connection.execute(f"SET enable_progress_bar = false; SET threads = {THREADS}")
            connection.execute(f"SET memory_limit = {quote(MEMORY)}")
            connection.execute(POOLS)
            connection.execute(WHAT_IS_LEFT)
            connection.execute(SHORT_POOLS.format(ceiling=ceiling_sql))
            yield connection
            fill(connection, corpus)
            connection.execute("CHECKPOINT")
        # The write-ahead log of a killed trainer belongs to the old pools; DuckDB must not replay it on the new ones.
        (corpus / f"{FILE}.wal").unlink(missing_ok=True)


def refresh_judgements(corpus: Path) -> None:
    """Fill the table `judgements` of the pools from the store.

    Raises:
        CorpusError: there are no pools, or they are from before there were judges.
        PoolsInUseError: another process has the database open.
    """
    with _changed(corpus) as connection:
        fill(connection, corpus)


@contextmanager
def _changed(corpus: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the pools for changes that take effect together, once the block has ended."""
    with open_pools(corpus, read_only=False) as connection:
        check_version(connection, corpus)
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")


def check_version(connection: duckdb.DuckDBPyConnection, corpus: Path) -> None:
    """Raise CorpusError if opened pools are of a release whose tables were others."""
    if ("decisions",) not in connection.execute("SHOW TABLES").fetchall():
        raise CorpusError(f"{corpus}: {FILE} is of an earlier version; run `conan mine {corpus}` again")


def decided_fingerprint(corpus: Path) -> str | None:
    """Return the fingerprint of what is left of the pools; without decisions it is that of `stored_fingerprint`."""
    mined = stored_fingerprint(corpus)
    if mined is None:
        return None
    with open_pools(corpus) as connection:
        check_version(connection, corpus)
        decisions = connection.sql("SELECT query_id, passage_id, decision FROM decisions ORDER BY ALL").fetchall()
    return fingerprint(mined, decisions) if decisions else mined


def write_decisions(corpus: Path, decisions: pa.Table | None, settings: str | None) -> None:
    """Replace a judge's decisions and the settings that they follow from; with None, the pools are as mined.

    Raises:
        CorpusError: there are no pools, or they are from before there were judges.
        PoolsInUseError: another process has the database open.
    """
    with _changed(corpus) as connection:
        connection.execute("DELETE FROM decisions; DELETE FROM judging")
        if decisions is not None:
            connection.register("incoming", decisions)
            connection.execute("INSERT INTO decisions BY NAME FROM incoming")
            connection.execute("INSERT INTO judging VALUES (?)", [settings])


def read_judging(corpus: Path) -> str | None:
    """Return the settings with which the pools were judged, None if they were not."""
    with open_pools(corpus) as connection:
        check_version(connection, corpus)
        found = connection.sql("SELECT settings FROM judging").fetchall()
        return str(found[0][0]) if found else None


def check_judging(corpus: Path, wanted: str | None) -> None:
    """Raise CorpusError unless the pools are judged with the settings `wanted`; None stands for pools as mined."""
    found = read_judging(corpus)
    if wanted and found != wanted:
        how = "not judged" if found is None else "judged with other settings than the recipe's"
        raise CorpusError(f"{corpus}: the pools are {how}; run `conan judge {corpus}` first")
    if found and not wanted:
        raise CorpusError(
            f"{corpus}: the pools are judged, but the recipe has no `judge:`; add it, or run `conan mine {corpus}`, "
            "which leaves the pools as mined"
        )


def read_candidates(corpus: Path) -> pl.DataFrame:
    """Return every query with its pool: columns `query_id, query, passage_ids, scores`, ordered by query_id.

    Raises:
        CorpusError: there are no pools yet.
    """
    with open_pools(corpus) as connection:
        pools: pl.DataFrame = connection.sql(
            "SELECT query_id, text AS query, passage_ids, scores FROM queries JOIN candidates USING (query_id) "
            "ORDER BY query_id"
        ).pl()
        return pools


def read_passages(corpus: Path, passage_ids: npt.NDArray[np.int64]) -> pl.DataFrame:
    """Return the texts of passages: columns `passage_id, text, cluster_id`, ordered by passage_id.

    Raises:
        CorpusError: there are no pools yet.
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
    """Save DHNM's current state and append to its log; log entries of later steps, from a killed run, are deleted.

    `windows` replaces all stored windows or, if `changed` lists query ids, only those of these queries, which is faster
    if there are a million. Replacements that are written twice are stored once.

    Raises:
        CorpusError: there are no pools yet.
    """
    with open_pools(corpus, read_only=False) as connection:
        connection.register("new_windows", windows.to_arrow())
        connection.register("new_replacements", replacements.to_arrow())
        connection.execute("BEGIN")
        for table in ("windows", "replacements"):  # pools mined before there was a policy for single negatives
            connection.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS slot INTEGER")
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
    """Build a list column from flat values: row i takes the next `counts[i]` of them."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
