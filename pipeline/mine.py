"""conan mine: candidates for hard negatives, from the model's own neighbours (NV-Retriever, arXiv 2407.15831)."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import faiss
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ..schemas.settings import EncoderSettings, MineSettings
from .corpus import fingerprint, read_footer, shards
from .encoder import Vectors, encode, find_model, load_encoder, weights_fingerprint
from .engine import Engine, Summary
from .pools import as_lists, read_candidates, stored_fingerprint, write_pools

VERSION = 1
MARGINS = {"topk": 1.0, "topk-abs": 0.7, "topk-marginpos": 0.05, "topk-percpos": 0.95}
"""NV-Retriever §4: the margins its ablation found best; naive top-k has none."""
FLAT_LIMIT = 1_000_000
"""DESIGN §6: an exact index up to this many passages."""
_QUERIES_AT_ONCE = 1024

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def mine(corpus: Path, settings: MineSettings, engine: Engine) -> Summary:
    """Write pools.duckdb: for each query the best-scored passages that are neither its positives nor near them.

    Pools that the same model, settings and data have made are left as they are.

    Raises:
        ModelError: the model can't be read.
    """
    weights = weights_fingerprint(find_model(settings.model))
    folders: list[str] = sorted({*settings.passages, *settings.queries})
    inputs = {folder: shards(corpus, f"convert/{folder}") for folder in folders}
    content = [
        (str(shard.relative_to(corpus)), read_footer(shard).content) for each in inputs.values() for shard in each
    ]
    decisive = fingerprint("mine", VERSION, weights, settings.model_dump(exclude={"model", "batch_tokens"}), content)
    if stored_fingerprint(corpus) != decisive:
        engine.progress("mine", 0, 3, 0)
        queries, passages, positives = _texts(inputs, settings)
        encoder = load_encoder(EncoderSettings(**settings.model_dump(include=set(EncoderSettings.model_fields))))
        passage_vectors = encode(encoder, passages["text"].to_arrow())
        engine.progress("mine", 1, 3, passages.height)
        query_vectors = encode(encoder, queries["text"].to_arrow())
        engine.progress("mine", 2, 3, queries.height)
        tables = _pools(queries, passages, positives, query_vectors, passage_vectors, settings)
        run = {
            "run_id": decisive[:12],
            "model_fingerprint": encoder.fingerprint,
            "method": settings.method,
            "margin": MARGINS[settings.method] if settings.margin is None else settings.margin,
            "top_k": settings.top_k,
            "fingerprint": decisive,
            "created_at": datetime.now(UTC).replace(tzinfo=None),
        }
        tables["runs"] = pa.Table.from_pylist([run])
        tables["candidates"] = tables["candidates"].append_column(
            "run_id", pa.array([run["run_id"]] * queries.height, pa.string())
        )
        write_pools(corpus, tables)
        engine.progress("mine", 3, 3, queries.height)
    pools = read_candidates(corpus)
    sizes = pools["passage_ids"].list.len()
    summary = Summary("mine", rows_in=pools.height, rows_out=pools.height)
    summary.notes = {
        "queries": pools.height,
        "candidates a query": round(float(np.mean(sizes.to_numpy())), 1) if pools.height else 0.0,
        "short pools": int((sizes < settings.top_k).sum()),
    }
    return summary


def _texts(inputs: dict[str, list[Path]], settings: MineSettings) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Distinct queries (`query_id, text`), passages (`passage_id, text, cluster_id`) and which belong together."""
    selects = {
        "retrieval": "SELECT query, unnest(positives) AS positive, unnest(cluster_ids) AS cluster_id "
        "FROM read_parquet({})",
        "pretrain": "SELECT query, positive, cluster_id FROM read_parquet({})",
    }
    with duckdb.connect(":memory:") as connection:
        for name, wanted in (("asked", settings.queries), ("searched", settings.passages)):
            parts = [selects[folder].format([str(shard) for shard in inputs[folder]]) for folder in sorted(wanted)]
            connection.execute(f"CREATE TABLE {name} AS {' UNION ALL '.join(parts)}")
        connection.execute(
            "CREATE TABLE passages AS SELECT row_number() OVER (ORDER BY text) - 1 AS passage_id, text, cluster_id "
            "FROM (SELECT positive AS text, min(cluster_id) AS cluster_id FROM "
            "(FROM searched UNION ALL FROM asked) GROUP BY positive) ORDER BY text"
        )
        connection.execute(
            "CREATE TABLE queries AS SELECT row_number() OVER (ORDER BY text) - 1 AS query_id, text "
            "FROM (SELECT DISTINCT query AS text FROM asked) ORDER BY text"
        )
        positives = connection.sql(
            "SELECT DISTINCT query_id, passage_id, asked.cluster_id FROM asked JOIN queries ON query = queries.text "
            "JOIN passages ON positive = passages.text ORDER BY ALL"
        ).pl()
        return connection.sql("FROM queries").pl(), connection.sql("FROM passages").pl(), positives


def _pools(
    queries: pl.DataFrame,
    passages: pl.DataFrame,
    positives: pl.DataFrame,
    query_vectors: Vectors,
    passage_vectors: Vectors,
    settings: MineSettings,
) -> dict[str, pa.Table]:
    owner, passage = positives["query_id"].to_numpy(), positives["passage_id"].to_numpy()
    positive_scores = np.einsum("pd,pd->p", query_vectors[owner], passage_vectors[passage])
    ceiling = ceilings(owner, positive_scores, queries.height, settings)
    clusters, cluster_of = np.unique(passages["cluster_id"].to_numpy(), return_inverse=True)
    own_cluster = np.searchsorted(clusters, positives["cluster_id"].to_numpy())
    # A query and a cluster as one number, so that membership is one lookup.
    own = np.unique(np.concatenate([owner * len(clusters) + own_cluster, owner * len(clusters) + cluster_of[passage]]))
    index = _index(passage_vectors, settings.index)
    ids, scores, counts = [], [], []
    for start in range(0, queries.height, _QUERIES_AT_ONCE):
        rows = np.arange(start, min(start + _QUERIES_AT_ONCE, queries.height))
        for chosen_ids, chosen_scores, chosen_counts in _search(
            index, query_vectors[rows], rows, ceiling[rows], own, cluster_of, len(clusters), settings.top_k
        ):
            ids.append(chosen_ids)
            scores.append(chosen_scores)
            counts.append(chosen_counts)
    every = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    flat_ids = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    flat_scores = np.concatenate(scores) if scores else np.zeros(0, np.float32)
    return {
        "passages": passages.to_arrow(),
        "queries": queries.to_arrow(),
        "positives": positives.unique(["query_id", "passage_id"], maintain_order=True)
        .select(
            "query_id",
            "passage_id",
            score=pl.Series(positive_scores).gather(
                positives.with_row_index("place").unique(["query_id", "passage_id"], maintain_order=True)["place"]
            ),
        )
        .to_arrow(),
        "candidates": pa.table(
            {
                "query_id": queries["query_id"].to_arrow(),
                "passage_ids": as_lists(flat_ids, every),
                "scores": as_lists(flat_scores, every),
            }
        ),
    }


def ceilings(owner: Integers, positive_scores: Floats, queries: int, settings: MineSettings) -> Floats:
    """The score that a negative of each query stays below, float32 [queries] (NV-Retriever §4).

    topk: none; topk-abs: the margin; topk-marginpos: positive − margin; topk-percpos: margin × positive. A query of
    several positives is held to the lowest of them. Where a positive's score is negative, percpos goes below it by
    the same share.
    """
    lowest = np.full(queries, np.inf, np.float32)
    np.minimum.at(lowest, owner, positive_scores)
    margin = np.float32(MARGINS[settings.method] if settings.margin is None else settings.margin)
    match settings.method:
        case "topk":
            return np.full(queries, np.inf, np.float32)
        case "topk-abs":
            return np.full(queries, margin, np.float32)
        case "topk-marginpos":
            return lowest - margin
        case "topk-percpos":
            return np.asarray(lowest - (1 - margin) * np.abs(lowest), np.float32)


def _index(passage_vectors: Vectors, factory: str | None) -> faiss.Index:
    """FAISS over unit vectors by inner product: exact up to FLAT_LIMIT passages, else IVF with √n lists."""
    count, width = passage_vectors.shape
    if factory is None:
        factory = "Flat" if count <= FLAT_LIMIT else f"IVF{int(4 * count**0.5)},Flat"
    index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(passage_vectors)
    index.add(passage_vectors)
    return index


def _search(
    index: faiss.Index,
    vectors: Vectors,
    rows: Integers,
    ceiling: Floats,
    own: Integers,
    cluster_of: Integers,
    clusters: int,
    top_k: int,
) -> Iterator[tuple[Integers, Floats, Integers]]:
    """Candidates of a block of queries: flat passage ids and scores, best first, and how many each query has.

    Own positives and their clusters go first, then the positive-aware filter, then the rank counts. Where that leaves
    a query short, it is searched deeper until it has top_k or the index is used up.
    """
    depth = min(2 * top_k + 8, index.ntotal)
    found_ids = np.full((len(rows), top_k), -1, np.int64)
    found_scores = np.zeros((len(rows), top_k), np.float32)
    pending = np.arange(len(rows))
    while len(pending):
        scores, ids = index.search(vectors[pending], depth)
        key = rows[pending, None] * clusters + cluster_of[ids]
        allowed = (ids >= 0) & ~np.isin(key, own) & (scores < ceiling[pending, None])
        rank = np.cumsum(allowed, axis=1)
        query, place = np.nonzero(allowed & (rank <= top_k))
        found_ids[pending[query], rank[query, place] - 1] = ids[query, place]
        found_scores[pending[query], rank[query, place] - 1] = scores[query, place]
        pending = pending[rank[:, -1] < top_k] if depth < index.ntotal else pending[:0]
        depth = min(4 * depth, index.ntotal)
    there = found_ids >= 0
    yield found_ids[there], found_scores[there], there.sum(axis=1)
