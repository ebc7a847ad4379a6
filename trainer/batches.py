"""Which records each update sees, and their texts: a pure function of seed and step, so any step can be resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ..pipeline.corpus import CorpusError
from ..pipeline.pools import read_candidates
from ..schemas.settings import FinetuneSettings, PretrainSettings
from .cbb import Update, build_update
from .negatives import Windows

Integers = npt.NDArray[np.int64]


def draws(sources: npt.ArrayLike, total: int, mixing: float, seed: int, run: int = 1) -> Integers:
    """Which record each of `total` draws takes, int64 [total].

    `sources` names the source of each record. A draw picks a source in proportion to its size to the power `mixing`
    and then that source's next record in a shuffled order, so no record comes back before its source is used up.
    `run` successive draws share their source.
    """
    names, source_of = np.unique(np.asarray(sources), return_inverse=True)
    records = [np.flatnonzero(source_of == source) for source in range(len(names))]
    generator = np.random.default_rng(seed)
    weights = np.array([len(each) for each in records], np.float64) ** mixing
    drawn = np.repeat(generator.choice(len(names), -(-total // run), p=weights / weights.sum()), run)[:total]
    result = np.empty(total, np.int64)
    for source, own in enumerate(records):
        places = np.flatnonzero(drawn == source)
        rounds = -(-len(places) // len(own))
        order = generator.permuted(np.tile(own, (rounds, 1)), axis=1).ravel()
        result[places] = order[: len(places)]
    return result


@dataclass(frozen=True)
class PairData:
    """Pairs for pre-training; sources as numbers."""

    queries: pa.Array
    positives: pa.Array
    clusters: Integers
    sources: Integers


def read_pairs(shards: Sequence[Path]) -> PairData:
    """The pairs of shards of any stage. Before dedup there are no clusters: only equal texts count as one.

    Of convert, all are for pre-training; of earlier stages those whose task is pretrain or retrieval.

    Raises:
        CorpusError: there are none.
    """
    frame = pl.concat([_pairs(shard) for shard in shards])
    if frame.is_empty():
        raise CorpusError(f"{shards[0].parent}: no pairs to train on")
    return PairData(
        frame["query"].to_arrow(),
        frame["positive"].to_arrow(),
        frame["cluster_id"].to_numpy(),
        _numbered(frame["source"]),
    )


def _numbered(names: pl.Series) -> Integers:
    """Names as their places in sorted order: the same whatever shards they came from."""
    numbers: Integers = names.rank("dense").cast(pl.Int64).to_numpy()
    return numbers


def _pairs(shard: Path) -> pl.DataFrame:
    frame = pl.read_parquet(shard)
    if "task" in frame.columns:
        frame = frame.filter(pl.col("task").cast(pl.String).is_in(["pretrain", "retrieval"]))
    if "cluster_id" not in frame.columns:
        frame = frame.with_columns(cluster_id=pl.lit(-1, pl.Int64))
    return frame.select("query", "positive", "cluster_id", pl.col("source").cast(pl.String))


def pretrain_update(data: PairData, rows: Integers) -> Update:
    """The pairs of one update, of all ranks."""
    taken = pa.array(rows)
    return build_update(
        data.queries.take(taken).to_pylist(),
        data.positives.take(taken).to_pylist(),
        positive_clusters=data.clusters[rows].tolist(),
    )


@dataclass(frozen=True)
class FinetuneData:
    """Queries with positives, given negatives and pools, by row; sentence pairs; passages by id; sources as numbers."""

    query_ids: Integers
    queries: pa.Array
    positives: pa.Array  # list<string>
    clusters: pa.Array  # list<int64>, of the positives
    given: pa.Array  # list<string>
    sources: Integers
    pool_starts: Integers  # [queries + 1], into pool_passages
    pool_passages: Integers
    passages: pa.Array
    passage_clusters: Integers
    left: pa.Array
    right: pa.Array
    labels: npt.NDArray[np.float32]
    sentence_sources: Integers

    @property
    def pool_sizes(self) -> Integers:
        """Candidates of each query."""
        return np.diff(self.pool_starts)


_RECORDS = {
    "retrieval": "SELECT query, source, pair_ids, positives, cluster_ids, negatives FROM read_parquet({})",
    "pretrain": "SELECT query, source, pair_ids, [positive], [cluster_id], CAST([] AS VARCHAR[]) FROM read_parquet({})",
}


def read_finetune(corpus: Path, retrieval: Mapping[str, Sequence[Path]], sts: Sequence[Path]) -> FinetuneData:
    """Training records of both tasks, with the pools of the queries that were mined.

    `retrieval` holds the shards of convert/retrieval, and of convert/pretrain where its pairs serve as retrieval too.
    A query that several records share is one: its positives and given negatives come together, and what is a positive
    in one of them is a negative in none.

    Raises:
        CorpusError: no queries, queries without a pool, or pools whose passages are not numbered from 0.
    """
    with duckdb.connect(":memory:") as connection:
        connection.register("pools", read_candidates(corpus).select("query_id", "query", "passage_ids").to_arrow())
        parts = [_RECORDS[kind].format([str(shard) for shard in each]) for kind, each in sorted(retrieval.items())]
        connection.execute(
            "CREATE VIEW records(query, source, pair_ids, positives, cluster_ids, negatives) AS "
            + " UNION ALL ".join(parts)
        )
        queries: pl.DataFrame = connection.sql(
            """SELECT * REPLACE (list_filter(given, lambda text: NOT list_contains(positives, text)) AS given)
               FROM (SELECT query_id, query, first(CAST(source AS VARCHAR) ORDER BY source, pair_ids) AS source,
                            flatten(list(positives ORDER BY source, pair_ids)) AS positives,
                            flatten(list(cluster_ids ORDER BY source, pair_ids)) AS clusters,
                            flatten(list(negatives ORDER BY source, pair_ids)) AS given,
                            any_value(passage_ids) AS pool
                     FROM records LEFT JOIN pools USING (query) GROUP BY query_id, query)
               ORDER BY query_id"""
        ).pl()
        connection.execute(f"ATTACH '{corpus / 'pools.duckdb'}' AS stored (READ_ONLY)")
        passages: pl.DataFrame = connection.sql("FROM stored.passages ORDER BY passage_id").pl()
    if not queries.height:
        raise CorpusError(f"{corpus}: no queries to train on in {', '.join(retrieval)}")
    if missing := queries["query_id"].null_count():
        raise CorpusError(
            f"{corpus}: {missing} of {queries.height} queries have no pool; name {', '.join(retrieval)} under "
            f"`queries:` of mine and run `conan mine {corpus}`"
        )
    if not (passages["passage_id"].to_numpy() == np.arange(passages.height)).all():
        raise CorpusError(
            f"{corpus}: passages in pools.duckdb are not numbered from 0; run `conan mine {corpus}` again"
        )
    sentences = pl.concat([pl.read_parquet(shard) for shard in sts]) if sts else _no_sentences()
    return FinetuneData(
        query_ids=queries["query_id"].to_numpy(),
        queries=queries["query"].to_arrow(),
        positives=queries["positives"].to_arrow(),
        clusters=queries["clusters"].to_arrow(),
        given=queries["given"].list.unique(maintain_order=True).to_arrow(),
        sources=_numbered(queries["source"]),
        pool_starts=np.concatenate([[0], np.cumsum(queries["pool"].list.len().to_numpy())]).astype(np.int64),
        pool_passages=queries["pool"].explode().drop_nulls().to_numpy(),
        passages=passages["text"].to_arrow(),
        passage_clusters=passages["cluster_id"].to_numpy(),
        left=sentences["text_a"].to_arrow(),
        right=sentences["text_b"].to_arrow(),
        labels=sentences["label"].to_numpy(),
        sentence_sources=_numbered(sentences["source"].cast(pl.String)),
    )


def _no_sentences() -> pl.DataFrame:
    return pl.DataFrame(schema={"text_a": pl.String, "text_b": pl.String, "label": pl.Float32, "source": pl.String})


def given_counts(data: FinetuneData) -> Integers:
    """How many negatives came with each query."""
    counts: Integers = pl.Series(data.given).list.len().to_numpy().astype(np.int64)
    return counts


def finetune_update(
    data: FinetuneData, windows: Windows, rows: Integers, sentence_rows: Integers, negatives: int, visits: Integers
) -> Update:
    """One update: queries with a positive and the negatives of their present windows, and sentence pairs.

    `visits` says how often each query was drawn before: a query of several positives shows the next one each time.
    """
    taken = pa.array(rows)
    positives, clusters = data.positives.take(taken).to_pylist(), data.clusters.take(taken).to_pylist()
    chosen = [int(visit) % len(each) for visit, each in zip(visits, positives, strict=True)]
    texts, groups = _negatives(data, windows, rows, negatives)
    sentences = pa.array(sentence_rows)
    return build_update(
        data.queries.take(taken).to_pylist(),
        [each[place] for each, place in zip(positives, chosen, strict=True)],
        texts,
        positive_clusters=[each[place] for each, place in zip(clusters, chosen, strict=True)],
        negative_clusters=groups,
        left=data.left.take(sentences).to_pylist(),
        right=data.right.take(sentences).to_pylist(),
        labels=data.labels[sentence_rows].tolist(),
    )


def _negatives(
    data: FinetuneData, windows: Windows, rows: Integers, negatives: int
) -> tuple[list[list[str]], list[list[int]]]:
    """Texts and clusters of the negatives of each query: of its window, or the given ones where that is empty."""
    texts, clusters = [], []
    for row in rows:
        lo, hi = windows.lo[row], windows.hi[row]
        if lo == hi:
            own = data.given[row].as_py()[:negatives]
            texts.append(own)
            clusters.append([-1] * len(own))
        else:
            start = data.pool_starts[row]
            ids = data.pool_passages[start + lo : start + hi]
            texts.append(data.passages.take(pa.array(ids)).to_pylist())
            clusters.append(data.passage_clusters[ids].tolist())
    return texts, clusters


def visits(drawn: Integers) -> Integers:
    """How often the record of each draw was drawn before it, int64 [draws]."""
    order = np.argsort(drawn, kind="stable")
    ordered = drawn[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    before = np.arange(len(drawn)) - np.repeat(starts, np.diff(starts, append=len(drawn)))
    result = np.empty(len(drawn), np.int64)
    result[order] = before
    return result


def steps_of(settings: PretrainSettings | FinetuneSettings, records: int, batch: int) -> int:
    """Updates in all: as the recipe says, else so many that `epochs` times every record is drawn."""
    return settings.steps or max(1, round(settings.epochs * records / batch))
