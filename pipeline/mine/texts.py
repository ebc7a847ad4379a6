"""Collect the texts that are mined, and what belongs together, in the database of the new pools.

DuckDB sorts and joins them, on disk if need be; Python sees one batch of texts at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from ...schemas.settings import MineSettings
from ..corpus.pools import THREADS, insert
from ..corpus.sql import scan_shards
from ..text.match_key import match_key

BATCH = 65_536
"""Chosen here: texts whose keys are compared that are in memory at a time."""
SORTING = 2
"""Chosen here: threads that sort texts; each needs room of its own. In 256 MB, two sort ten million texts of 208 bytes,
four don't."""

Integers = npt.NDArray[np.int64]


def list_sources(inputs: Mapping[str, list[Path]]) -> pl.Series:
    """List the sources of the records in some folders of convert/."""
    scans = " UNION ALL ".join(f"SELECT source FROM {scan_shards(files)}" for files in inputs.values())
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        names = connection.sql(f"SELECT DISTINCT CAST(source AS VARCHAR) AS source FROM ({scans}) ORDER BY source")
        return pl.Series("source", names.pl().to_series())


def collect_texts(
    pools: duckdb.DuckDBPyConnection, inputs: Mapping[str, list[Path]], settings: MineSettings, spaces: pl.DataFrame
) -> None:
    """Fill `mined_queries` and `passages` with the distinct texts, numbered in sorted order.

    A text that several sources have is of the one whose name comes first. `spaces` has the columns `source, query,
    passage`: the folders of vectors/ for the queries and passages of each source.

    These temporary tables say how the texts belong together, each in the order of its columns: `answers` (query_id,
    passage_id) the positives; `members` (passage_id, cluster), where a text in classes of two sources has two clusters;
    `own` (query_id, cluster) the clusters of a query's positives and of its own text.
    """
    columns = {
        "retrieval": "query, unnest(positives) AS positive, unnest(cluster_ids) AS cluster_id, source",
        "pretrain": "query, positive, cluster_id, source",
        "passages": "NULL AS query, text AS positive, cluster_id, source",
    }
    spaces = spaces.with_row_index("place")
    # DuckDB can sort and group more than fits into memory if it comes from a table, but not from a UNION ALL.
    pools.execute("ATTACH ':memory:' AS work")  # which a cursor sees, unlike temporary tables
    pools.execute("CREATE TABLE work.records (query VARCHAR, positive VARCHAR, cluster_id BIGINT, place BIGINT)")
    pools.register("spaces", spaces.rename({"query": "of_query"}).to_arrow())
    for name in sorted({*settings.queries, *settings.passages}):
        query = "query" if name in settings.queries else "NULL"
        _execute(
            pools,
            f"INSERT INTO work.records SELECT {query}, positive, cluster_id, place "
            f"FROM (SELECT {columns[name]} FROM {scan_shards(inputs[name])}) JOIN spaces USING (source)",
        )
    # A number is given in a stream, after the sort: a window over all rows would need them in memory.
    _execute(
        pools,
        "INSERT INTO mined_queries SELECT row_number() OVER () - 1, query, source, of_query FROM ("
        "FROM (SELECT query, min(place) AS place FROM work.records WHERE query IS NOT NULL GROUP BY query) "
        "JOIN spaces USING (place) ORDER BY query)",
    )
    pools.unregister("spaces")
    _insert_passages(pools, spaces)
    for statement in (
        "CREATE TEMP TABLE answers AS SELECT DISTINCT query_id, passage_id FROM work.records "
        "JOIN mined_queries ON query = mined_queries.text JOIN passages ON positive = passages.text ORDER BY ALL",
        "DETACH work",
        "CREATE TEMP TABLE members AS SELECT passage_id, unnest(cluster_ids) AS cluster FROM passages ORDER BY ALL",
    ):
        _execute(pools, statement)
    find_own_texts(pools)
    pools.execute(
        "CREATE TEMP TABLE own AS SELECT DISTINCT query_id, cluster FROM (FROM answers UNION ALL FROM own_texts) "
        "JOIN members USING (passage_id) ORDER BY ALL"
    )


def _insert_passages(pools: duckdb.DuckDBPyConnection, spaces: pl.DataFrame) -> None:
    """Fill `passages` with the distinct texts of `work.records`.

    DuckDB only sorts them: were it to collect the clusters of each text, it would hold those of all in memory.
    """
    count = 0
    pools.execute(f"SET threads = {SORTING}")
    _execute(
        pools, "CREATE TABLE work.sorted AS SELECT positive AS text, cluster_id, place FROM work.records ORDER BY text"
    )
    pools.execute(f"SET threads = {THREADS}")
    with pools.cursor() as reading:  # while `pools` writes
        rows = reading.sql("FROM work.sorted")
        for batch in _whole_texts(map(pl.DataFrame, rows.to_arrow_reader(BATCH))):
            found = batch.group_by("text", maintain_order=True).agg(
                place=pl.col("place").min(), cluster_ids=pl.col("cluster_id").unique().sort()
            )
            texts = found.select(
                "text",
                "cluster_ids",
                passage_id=pl.int_range(count, count + pl.len()),
                source=spaces["source"].gather(found["place"]),
                vectors=spaces["passage"].gather(found["place"]),
                cluster_id=pl.col("cluster_ids").list.first(),
            )
            insert(pools, "passages", texts.to_arrow())  # no transaction: it would hold the batches until its end
            count += found.height
    pools.execute("DROP TABLE work.sorted")


def _whole_texts(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Divide distinct rows, sorted by text, so that all rows of a text are in the same batch."""
    rest = pl.DataFrame()
    for batch in batches:
        rows = pl.concat([rest, batch]) if rest.height else batch
        is_last = rows["text"] == rows["text"][-1]
        yield rows.filter(~is_last)
        # Copied, as a filtered column keeps the texts of all rows in memory.
        rest = pl.DataFrame(rows.filter(is_last).unique().rows(), rows.schema, orient="row")
    if rest.height:
        yield rest


def _execute(pools: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Run a statement; if it does not fit into the limit of memory, lift the limit."""
    try:
        pools.execute(statement)
    except duckdb.OutOfMemoryException:
        pools.execute("RESET memory_limit")
        pools.execute(statement)


def find_own_texts(pools: duckdb.DuckDBPyConnection, condition: str = "") -> None:
    """Create the temporary table `own_texts` (query_id, passage_id): passages that say what a query says.

    They differ from it in case, width and punctuation at most. A query's own text answers nothing, and is nearest to
    it: it must not be its negative. `condition` is a WHERE clause for the queries; by default all are compared.
    """
    pools.execute("CREATE TEMP TABLE keys (of_query BOOLEAN, id BIGINT, key UHUGEINT)")
    sides = {
        True: f"query_id AS id, text FROM mined_queries {condition}",
        False: "passage_id AS id, text FROM passages",
    }
    for of_query, texts in sides.items():
        with pools.cursor() as reading:  # while `pools` writes
            for batch in reading.sql(f"SELECT {texts}").to_arrow_reader(BATCH):
                frame = pl.DataFrame(batch).select("id", key=match_key(pl.col("text")))
                pools.register("keyed", frame.to_arrow())
                pools.execute(f"INSERT INTO keys SELECT {of_query}, id, md5_number(key) FROM keyed")
    pools.unregister("keyed")
    pools.execute(
        "CREATE TEMP TABLE own_texts AS SELECT asked.id AS query_id, passages.id AS passage_id "
        "FROM (FROM keys WHERE of_query) AS asked JOIN (FROM keys WHERE NOT of_query) AS passages USING (key);"
        "DROP TABLE keys"
    )


def read_clusters(pools: duckdb.DuckDBPyConnection, table: str, owner: str, count: int) -> tuple[Integers, Integers]:
    """Read `members` or `own`: where the clusters of each of `count` owners begin, [count + 1], and all clusters."""
    frame = pools.sql(f"SELECT {owner}, cluster FROM {table} ORDER BY ALL").pl()
    return np.searchsorted(frame[owner].to_numpy(), np.arange(count + 1)), frame["cluster"].to_numpy()
