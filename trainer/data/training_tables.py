"""The records that a run trains on, exported to mapped files of its own: pairs, queries with pools, sentence pairs."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...pipeline.corpus.pools import FILE, open_pools
from ...pipeline.corpus.sql import quote, scan_shards
from ...schemas.errors import CorpusError
from .mapped_table import ROWS, MappedTable, read_sources, write_records, write_sources
from .mixing import Sources

Integers = npt.NDArray[np.int64]

_SOURCE = {"source": pa.large_string(), "category": pa.large_string()}
PAIRS = pa.schema({"query": pa.large_string(), "positive": pa.large_string(), "cluster_id": pa.int64()} | _SOURCE)
QUERIES = pa.schema(
    {
        "query_id": pa.int64(),
        "query": pa.large_string(),
        "positives": pa.large_list(pa.large_string()),
        "clusters": pa.large_list(pa.int64()),  # one for each positive
        "provided": pa.large_list(pa.large_string()),
        "pool": pa.large_list(pa.int64()),  # passages, best first
    }
    | _SOURCE
)
POOLS = pa.schema([QUERIES.field("pool")])  # of the same queries, mined anew
PASSAGES = pa.schema({"text": pa.large_string(), "cluster_id": pa.int64()})  # a passage's row is its id
SENTENCES = pa.schema({"text_a": pa.large_string(), "text_b": pa.large_string(), "label": pa.float32()} | _SOURCE)

MEMORY = "2GB"
THREADS = 4
"""Chosen here: what DuckDB may take for a join, the rest goes to disk; each thread holds parts of a row group."""
WINDOW = 16_384
"""Chosen here: queries, or passages, that are sorted at a time. More at once takes too much of MEMORY."""


def write_pairs(folder: Path, shards: Sequence[Path]) -> None:
    """Write the pairs of shards of any stage.

    Of convert, all are for pre-training; of earlier stages those whose task is pretrain or retrieval. Before dedup
    there are no clusters: only equal texts count as one.

    Raises:
        CorpusError: there are none.
    """
    count_pairs(shards)
    with _database(folder) as connection:
        write_records(folder / "pairs.arrow", PAIRS, _streamed(connection, f"SELECT * FROM {_pairs(shards)}"))
    write_sources(folder / "pairs.arrow")


def count_pairs(shards: Sequence[Path]) -> int:
    """How many pairs `write_pairs` would write. Raises CorpusError where there are none."""
    with duckdb.connect(":memory:") as connection:
        count = _number(connection, f"SELECT count(*) FROM {_pairs(shards)}")
    if not count:
        raise CorpusError(f"{shards[0].parent}: no pairs to train on")
    return count


@dataclass(frozen=True)
class PairData:
    """What `write_pairs` wrote."""

    pairs: MappedTable
    sources: Sources


def read_pairs(folder: Path) -> PairData:
    """Open what `write_pairs` wrote."""
    return PairData(MappedTable(folder / "pairs.arrow", _SOURCE), read_sources(folder / "pairs.arrow"))


def write_finetune(folder: Path, corpus: Path, retrieval: Mapping[str, Sequence[Path]], sts: Sequence[Path]) -> None:
    """Write training records of both tasks, with the pools of the queries that were mined: queries and passages by id.

    `retrieval` holds the shards of convert/retrieval, and of convert/pretrain where its pairs serve as retrieval too.
    A query that several records share is one: its positives and provided negatives come together, and a positive of one
    record is a negative of none.

    Raises:
        CorpusError: no queries, queries without a pool, or pools whose passages are not numbered from 0.
    """
    count_queries(corpus, retrieval)
    with _database(folder) as connection:
        _attach(connection, corpus)
        if not _number(connection, "SELECT coalesce(max(passage_id) + 1, 0) = count(*) FROM stored.passages"):
            raise CorpusError(f"{corpus}: passages in {FILE} are not numbered from 0; run `conan mine {corpus}` again")
        write_records(folder / "passages.arrow", PASSAGES, _passages(connection))
        write_records(folder / "queries.arrow", QUERIES, _queries(connection, folder / "windows", retrieval))
        found = _streamed(connection, f"SELECT * FROM {scan_shards(sts)}") if sts else []
        write_records(folder / "sentences.arrow", SENTENCES, found)
    for name in ("queries", "sentences"):
        write_sources(folder / f"{name}.arrow")


def count_queries(corpus: Path, retrieval: Mapping[str, Sequence[Path]]) -> int:
    """How many queries `write_finetune` would write. Raises CorpusError for none, or where some have no pool."""
    with duckdb.connect(":memory:") as connection:
        _attach(connection, corpus)
        distinct = f"SELECT DISTINCT query FROM {_records(retrieval)}"
        count = _number(connection, f"SELECT count(*) FROM ({distinct})")
        missing = _number(connection, f"SELECT count(*) FROM ({distinct}) ANTI JOIN pools USING (query)")
    if not count:
        raise CorpusError(f"{corpus}: no queries to train on in {', '.join(retrieval)}")
    if missing:
        raise CorpusError(
            f"{corpus}: {missing} of {count} queries have no pool; name {', '.join(retrieval)} under "
            f"`queries:` of mine and run `conan mine {corpus}`"
        )
    return count


def count_sentences(sts: Sequence[Path]) -> int:
    """How many sentence pairs shards have."""
    return sum(pq.read_metadata(shard).num_rows for shard in sts)


@dataclass(frozen=True)
class FinetuneData:
    """What `write_finetune` wrote; of each query, its id and the number of its candidates are in memory.

    `pools` has a row for each query; `picked` [queries, n] the passages of its window where those were picked one by
    one, else -1.
    """

    queries: MappedTable
    passages: MappedTable
    sentences: MappedTable
    sources: Sources
    sentence_sources: Sources
    query_ids: Integers
    pools: MappedTable
    pool_sizes: Integers
    picked: Integers | None = None


def read_finetune(folder: Path) -> FinetuneData:
    """Open what `write_finetune` wrote."""
    queries = MappedTable(folder / "queries.arrow", _SOURCE)
    return FinetuneData(
        queries,
        MappedTable(folder / "passages.arrow"),
        MappedTable(folder / "sentences.arrow", _SOURCE),
        read_sources(folder / "queries.arrow"),
        read_sources(folder / "sentences.arrow"),
        query_ids=_joined(batch["query_id"] for batch in queries),
        pools=MappedTable(folder / "queries.arrow", {*QUERIES.names} - {"pool"}),
        pool_sizes=_joined(pc.list_value_length(batch["pool"]) for batch in queries),
    )


def pools_file(folder: Path, step: int) -> Path:
    """Where the pools that were made after a step are, in the folder of a run's data."""
    return folder / f"pools-{step:08d}.arrow"


def with_pools(data: FinetuneData, file: Path) -> FinetuneData:
    """The same data with other pools, of a file with POOLS."""
    pools = MappedTable(file)
    return replace(data, pools=pools, pool_sizes=_joined(pc.list_value_length(batch["pool"]) for batch in pools))


def provided_counts(data: FinetuneData) -> Integers:
    """How many negatives came with each query."""
    return _joined(pc.list_value_length(batch["provided"]) for batch in data.queries)


def _passages(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    """The passages by id: sorted in windows, as sorting texts takes them all to memory."""
    for start in range(0, _number(connection, "SELECT count(*) FROM stored.passages"), WINDOW):
        rows = f"FROM stored.passages WHERE passage_id >= {start} AND passage_id < {start + WINDOW}"
        yield from _streamed(connection, f"SELECT text, cluster_id {rows} ORDER BY passage_id")


def _queries(
    connection: duckdb.DuckDBPyConnection, folder: Path, retrieval: Mapping[str, Sequence[Path]]
) -> Iterator[pa.RecordBatch]:
    """The queries by id, each with all its records. Grouping takes what it groups to memory, so by windows of ids."""
    folder.mkdir()
    with ExitStack() as files:
        writers: dict[int, pa.RecordBatchFileWriter] = {}
        joined = f"SELECT query_id, records.* FROM {_records(retrieval)} AS records JOIN stored.queries ON text = query"
        for batch in _streamed(connection, joined):
            windows = batch["query_id"].to_numpy() // WINDOW
            for window in np.unique(windows).tolist():
                if window not in writers:
                    writers[window] = files.enter_context(pa.ipc.new_file(folder / f"{window}", batch.schema))
                writers[window].write_batch(batch.filter(pa.array(windows == window)))
    positives, provided = (pl.col(name).explode(empty_as_null=False) for name in ("positives", "negatives"))
    for window in sorted(writers):
        with pa.memory_map(str(folder / f"{window}")) as file:
            connection.register("records", pa.ipc.open_file(file).read_all())
            records: pl.DataFrame = connection.sql(
                f"""SELECT records.*, pool FROM records JOIN pools USING (query_id)
                    WHERE query_id BETWEEN {window * WINDOW} AND {(window + 1) * WINDOW - 1}
                    ORDER BY query_id, source, pair_ids"""
            ).pl()
            connection.unregister("records")
        queries = records.group_by("query_id", maintain_order=True).agg(
            pl.first("query", "source", "category", "pool"),
            positives,
            pl.col("cluster_ids").explode(empty_as_null=False).alias("clusters"),
            provided.filter(~provided.is_in(positives.implode())).unique(maintain_order=True).alias("provided"),
        )
        yield from queries.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()
    shutil.rmtree(folder)


@contextmanager
def _database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB in memory, and in a folder that goes in the end where that is not enough."""
    limits: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "threads": THREADS,
        "temp_directory": str(folder / "spilled"),
    }
    with duckdb.connect(":memory:", config=limits) as connection:
        connection.execute("SET enable_progress_bar = false")
        yield connection
    shutil.rmtree(folder / "spilled", ignore_errors=True)


def _attach(connection: duckdb.DuckDBPyConnection, corpus: Path) -> None:
    """The pools of a corpus as `stored`, and of it `pools` (query_id, query, pool). Raises CorpusError for none."""
    open_pools(corpus).close()
    connection.execute(f"ATTACH {quote(corpus / FILE)} AS stored (READ_ONLY)")
    connection.execute(
        "CREATE VIEW pools AS SELECT query_id, text AS query, passage_ids AS pool "
        "FROM stored.queries JOIN stored.candidates USING (query_id)"
    )


def _streamed(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    return connection.sql(query).to_arrow_reader(ROWS)


def _number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(connection.sql(query).fetchall()[0][0])


def _pairs(shards: Sequence[Path]) -> str:
    """The pairs of shards of one stage, as SQL."""
    columns = pq.read_schema(shards[0]).names
    cluster = "cluster_id" if "cluster_id" in columns else "CAST(-1 AS BIGINT) AS cluster_id"
    tasks = "WHERE task IN ('pretrain', 'retrieval')" if "task" in columns else ""
    kept = f"query, positive, {cluster}, source, category"
    return f"(SELECT {kept} FROM {scan_shards(shards)} {tasks})"


def _records(retrieval: Mapping[str, Sequence[Path]]) -> str:
    """Records of both kinds that have queries, as SQL."""
    columns = {
        "retrieval": "positives, cluster_ids, negatives",
        "pretrain": "[positive] AS positives, [cluster_id] AS cluster_ids, CAST([] AS VARCHAR[]) AS negatives",
    }
    parts = [
        f"SELECT query, source, category, pair_ids, {columns[kind]} FROM {scan_shards(shards)}"
        for kind, shards in retrieval.items()
    ]
    return f"({' UNION ALL '.join(parts)})"


def _joined(arrays: Iterable[pa.Array]) -> Integers:
    """Numbers of all batches."""
    return np.concatenate([np.zeros(0, np.int64), *(array.to_numpy() for array in arrays)])
