"""Exports the records of a run to memory-mapped files: pairs, or queries with pools and sentence pairs."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

from ...pipeline.corpus.pools import FILE, check_version, open_pools
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
        "clusters": pa.large_list(pa.large_list(pa.int64())),  # those of each positive
        "provided": pa.large_list(pa.large_string()),  # negatives that came with the data
        "provided_clusters": pa.large_list(pa.large_list(pa.int64())),  # those of each, if it is a passage too
        "pool": pa.large_list(pa.int64()),  # passage ids, best first
        "query_only": pa.bool_(),  # whether one of its sources has `query_only_negatives`
    }
    | _SOURCE
)
SCORES = pa.schema({"passages": pa.large_list(pa.uint64()), "scores": pa.large_list(pa.float32())})
"""A judge's scores of each query's passages, which are hashes of texts (see teacher_scores.py)."""
SCORES_FILE = "scores.arrow"
POOLS = pa.schema([QUERIES.field("pool")])  # pools of the same queries, rebuilt during training
PASSAGES = pa.schema(
    {"text": pa.large_string(), "clusters": pa.large_list(pa.int64()), "source": pa.large_string()}
)  # the row number is the passage id
SENTENCES = pa.schema({"text_a": pa.large_string(), "text_b": pa.large_string(), "label": pa.float32()} | _SOURCE)

MEMORY = "2GB"
THREADS = 4
"""Chosen here: DuckDB's memory and threads for a join. It spills to disk beyond MEMORY, which all threads share."""
_CLUSTERS = "coalesce(cluster_ids, [cluster_id])"  # a text in classes of two sources has two
WINDOW = 16_384
"""Chosen here: queries or passages that are sorted at a time; more would take too much of MEMORY."""


def write_pairs(folder: Path, shards: Sequence[Path]) -> None:
    """Write the pairs of the shards of one stage.

    From earlier stages than convert, only pairs with the task pretrain or retrieval are taken. Shards older than dedup
    have no clusters; then only equal texts are kept from being negatives of each other.

    Raises:
        CorpusError: there are no pairs.
    """
    count_pairs(shards)
    with _database(folder) as connection:
        write_records(folder / "pairs.arrow", PAIRS, _streamed(connection, f"SELECT * FROM {_pairs(shards)}"))
    write_sources(folder / "pairs.arrow")


def count_pairs(shards: Sequence[Path]) -> int:
    """Count the pairs that `write_pairs` would write. Raises CorpusError if there are none."""
    with duckdb.connect(":memory:") as connection:
        count = _number(connection, f"SELECT count(*) FROM {_pairs(shards)}")
    if not count:
        raise CorpusError(f"{shards[0].parent}: no pairs to train on")
    return count


@dataclass(frozen=True)
class PairData:
    """The data for pre-training, as `write_pairs` wrote it."""

    pairs: MappedTable
    sources: Sources


def read_pairs(folder: Path) -> PairData:
    """Map the pairs that `write_pairs` wrote."""
    return PairData(MappedTable(folder / "pairs.arrow", {"category"}), read_sources(folder / "pairs.arrow"))


def write_finetune(
    folder: Path,
    corpus: Path,
    retrieval: Mapping[str, Sequence[Path]],
    sts: Sequence[Path],
    query_only: Collection[str] = (),
) -> None:
    """Write the data for fine-tuning: queries with their pools, passages, and sentence pairs.

    `retrieval` holds the shards of convert/retrieval, and of convert/pretrain if its pairs are used as retrieval too.
    Queries and passages are ordered by id. Records with the same query are merged into one: it has the positives of
    all of them, and their provided negatives except those that are a positive of one of them. `query_only` names the
    sources with `query_only_negatives`; a query that one of them has, too, counts as theirs. A judge's decisions are
    followed: see `_follow`.

    Raises:
        CorpusError: there are no queries, some have no pool, or passages are not numbered from 0.
    """
    count_queries(corpus, retrieval)
    with _database(folder) as connection:
        _attach(connection, corpus)
        if not _number(connection, "SELECT coalesce(max(passage_id) + 1, 0) = count(*) FROM stored.passages"):
            raise CorpusError(f"{corpus}: passages in {FILE} are not numbered from 0; run `conan mine {corpus}` again")
        write_records(folder / "passages.arrow", PASSAGES, _passages(connection))
        queries = _queries(connection, folder / "windows", retrieval, query_only)
        write_records(folder / "queries.arrow", QUERIES, queries)
        found = _streamed(connection, f"SELECT * FROM {scan_shards(sts)}") if sts else []
        write_records(folder / "sentences.arrow", SENTENCES, found)
    for name in ("queries", "sentences"):
        write_sources(folder / f"{name}.arrow")


def count_queries(corpus: Path, retrieval: Mapping[str, Sequence[Path]]) -> int:
    """Count the queries that `write_finetune` would write. Raises CorpusError if there are none or some lack a pool."""
    with duckdb.connect(":memory:") as connection:
        _attach(connection, corpus)
        distinct = f"(SELECT DISTINCT query FROM {_records(retrieval)} ANTI JOIN set_aside USING (query))"
        count = _number(connection, f"SELECT count(*) FROM {distinct}")
        missing = _number(connection, f"SELECT count(*) FROM {distinct} ANTI JOIN pools USING (query)")
    if not count:
        raise CorpusError(f"{corpus}: no queries to train on in {', '.join(retrieval)}")
    if missing:
        raise CorpusError(
            f"{corpus}: {missing} of {count} queries have no pool of negatives; list {', '.join(retrieval)} under "
            f"mine.queries in the recipe and run `conan mine {corpus}`"
        )
    return count


def count_sentences(sts: Sequence[Path]) -> int:
    """Count the sentence pairs in the shards."""
    return sum(pq.read_metadata(shard).num_rows for shard in sts)


@dataclass(frozen=True)
class FinetuneData:
    """The data for fine-tuning, as `write_finetune` wrote it. Only query ids and pool sizes are held in memory.

    `pools` has one row per query. `picked` [queries, n] holds the passages of a query's window if `rerank` picked them
    one by one, and -1 if the window is a range of the pool. `scores` are a judge's, with the schema SCORES.
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
    scores: MappedTable | None = None


def read_finetune(folder: Path) -> FinetuneData:
    """Open what `write_finetune` wrote."""
    queries = MappedTable(folder / "queries.arrow", {"category"})
    return FinetuneData(
        queries,
        MappedTable(folder / "passages.arrow"),
        MappedTable(folder / "sentences.arrow", {"category"}),
        read_sources(folder / "queries.arrow"),
        read_sources(folder / "sentences.arrow"),
        query_ids=_joined(batch["query_id"] for batch in queries),
        pools=MappedTable(folder / "queries.arrow", {*QUERIES.names} - {"pool"}),
        pool_sizes=_joined(pc.list_value_length(batch["pool"]) for batch in queries),
        scores=MappedTable(folder / SCORES_FILE) if (folder / SCORES_FILE).exists() else None,
    )


def pools_file(folder: Path, step: int) -> Path:
    """Return the path of the pools that were rebuilt after a step, in a run's data folder."""
    return folder / f"pools-{step:08d}.arrow"


def with_pools(data: FinetuneData, file: Path) -> FinetuneData:
    """Return the same data with the pools of another file, whose schema is POOLS."""
    pools = MappedTable(file)
    return replace(data, pools=pools, pool_sizes=_joined(pc.list_value_length(batch["pool"]) for batch in pools))


def provided_counts(data: FinetuneData) -> Integers:
    """Count the negatives that came with the data, per query."""
    return _joined(pc.list_value_length(batch["provided"]) for batch in data.queries)


def _passages(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    """Yield the passages ordered by id, one window at a time, because sorting loads all texts into memory."""
    for start in range(0, _number(connection, "SELECT count(*) FROM stored.passages"), WINDOW):
        rows = f"FROM stored.passages WHERE passage_id >= {start} AND passage_id < {start + WINDOW}"
        yield from _streamed(connection, f"SELECT text, {_CLUSTERS} AS clusters, source {rows} ORDER BY passage_id")


def _queries(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    retrieval: Mapping[str, Sequence[Path]],
    query_only: Collection[str],
) -> Iterator[pa.RecordBatch]:
    """Yield the queries ordered by id, with their records merged.

    Records are first partitioned into windows of ids, because grouping loads all that it groups into memory.
    """
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
    # Texts whose clusters the records don't tell: those with several, and provided negatives that are passages, too.
    connection.execute(
        f"CREATE TABLE clustered AS SELECT text, {_CLUSTERS} AS known FROM stored.passages "
        f"WHERE len(cluster_ids) > 1 OR text IN (SELECT unnest(negatives) FROM {_records(retrieval)})"
    )
    positives, provided = (pl.col(name).explode(empty_as_null=False) for name in ("positives", "negatives"))
    for window in sorted(writers):
        with pa.memory_map(str(folder / f"{window}")) as file:
            connection.register("records", pa.ipc.open_file(file).read_all())
            records: pl.DataFrame = connection.sql(
                f"""SELECT records.*, pool FROM records JOIN pools USING (query_id)
                    WHERE query_id BETWEEN {window * WINDOW} AND {(window + 1) * WINDOW - 1}
                    ORDER BY query_id, source, pair_ids"""
            ).pl()
            decided: pl.DataFrame = connection.sql(
                f"""SELECT query_id, decision, text, {_CLUSTERS} AS clusters
                    FROM stored.decisions JOIN stored.passages USING (passage_id) SEMI JOIN records USING (query_id)
                    ORDER BY query_id, passage_id"""
            ).pl()
            clustered: pl.DataFrame = connection.sql(
                "FROM clustered SEMI JOIN (SELECT unnest(positives || negatives) AS text FROM records) USING (text)"
            ).pl()
            connection.unregister("records")
        if decided.height:
            records = _follow(decided, records)
        queries = records.group_by("query_id", maintain_order=True).agg(
            pl.first("query", "source", "category", "pool"),
            pl.col("source").is_in(list(query_only)).any().alias("query_only"),
            positives,
            pl.col("cluster_ids").explode(empty_as_null=False).alias("clusters"),
            provided.filter(~provided.is_in(positives.implode())).unique(maintain_order=True).alias("provided"),
        )
        queries = queries.with_columns(
            clusters=_find_clusters(queries.select("query_id", text="positives", own="clusters"), clustered, decided),
            provided_clusters=_find_clusters(queries.select("query_id", text="provided"), clustered),
        ).select(QUERIES.names)
        yield from queries.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches()
    shutil.rmtree(folder)


def _follow(decided: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Follow a judge's decisions, `query_id, decision, text, clusters`: records lose and get positives.

    Irrelevant positives are removed from the records, and each relabelled candidate is a further record of its query.
    """
    bad = decided.filter(decision="irrelevant").select("query_id", positives="text")
    split = records.explode("positives", "cluster_ids").join(bad, on=["query_id", "positives"], how="anti")
    left = split.with_columns(pl.concat_list("positives"), pl.concat_list("cluster_ids"))
    found = decided.filter(decision="positive").with_columns(
        positives=pl.concat_list("text"), cluster_ids=pl.concat_list(pl.col("clusters").list.first())
    )
    query = records.group_by("query_id", maintain_order=True).agg(
        pl.first("query", "source", "category", "pool", "pair_ids"), pl.col("negatives").explode(empty_as_null=False)
    )
    more = query.join(found.select("query_id", "positives", "cluster_ids"), on="query_id")
    return pl.concat([left, more.select(left.columns)]).sort("query_id", maintain_order=True)


def _find_clusters(queries: pl.DataFrame, clustered: pl.DataFrame, decided: pl.DataFrame | None = None) -> pl.Series:
    """Return the clusters of each text in the lists `text`: those that are known, or the text's cluster in `own`.

    A query's positives are also given the clusters of the candidates that a judge has relabelled or set aside: in a
    batch, whatever is in a cluster of its positive is never a query's negative.
    """
    texts = queries.explode(queries.columns[1:], empty_as_null=False)
    found = texts.join(clustered, on="text", how="left", maintain_order="left")
    own = pl.concat_list("own") if "own" in queries.columns else pl.lit([], pl.List(pl.Int64))
    clusters = pl.coalesce("known", own)
    if decided is not None and decided.height:
        aside = (
            decided.filter(pl.col("decision") != "irrelevant").group_by("query_id").agg(pl.col("clusters").explode())
        )
        found = found.join(aside, on="query_id", how="left", maintain_order="left")
        clusters = clusters.list.set_union(pl.col("clusters").fill_null([]))
    lists = found.group_by("query_id").agg(clusters.alias("clusters"))
    return queries.join(lists, on="query_id", how="left", maintain_order="left")["clusters"].fill_null([])


@contextmanager
def _database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory DuckDB that spills to a folder beyond MEMORY; the folder is removed at the end."""
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
    """Attach pools.duckdb as `stored`, and create the views `pools` (query_id, query, pool) and `set_aside` (query).

    Raises CorpusError if the corpus has no pools, or those of an earlier version.
    """
    with open_pools(corpus) as pools:
        check_version(pools, corpus)
    connection.execute(f"ATTACH {quote(corpus / FILE)} AS stored (READ_ONLY)")
    connection.execute(
        "CREATE VIEW pools AS SELECT query_id, text AS query, passage_ids AS pool "
        "FROM stored.queries JOIN stored.candidates USING (query_id);"
        "CREATE VIEW set_aside AS SELECT text AS query FROM stored.mined_queries "
        "ANTI JOIN stored.queries USING (query_id)"
    )


def _streamed(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    return connection.sql(query).to_arrow_reader(ROWS)


def _number(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(connection.sql(query).fetchall()[0][0])


def _pairs(shards: Sequence[Path]) -> str:
    """Return SQL for the pairs in the shards of one stage."""
    columns = pq.read_schema(shards[0]).names
    cluster = "cluster_id" if "cluster_id" in columns else "CAST(-1 AS BIGINT) AS cluster_id"
    tasks = "WHERE task IN ('pretrain', 'retrieval')" if "task" in columns else ""
    kept = f"query, positive, {cluster}, source, category"
    return f"(SELECT {kept} FROM {scan_shards(shards)} {tasks})"


def _records(retrieval: Mapping[str, Sequence[Path]]) -> str:
    """Return SQL for the records with queries, of convert/retrieval and convert/pretrain, in one form."""
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
    """Concatenate the numbers of all batches."""
    return np.concatenate([np.zeros(0, np.int64), *(array.to_numpy() for array in arrays)])
