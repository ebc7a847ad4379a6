"""conan mine: candidates for hard negatives, from the model's own neighbours (NV-Retriever, arXiv 2407.15831)."""

import heapq
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import faiss
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from numba import njit, prange

from ..schemas.settings import EncoderSettings, MineSettings
from .corpus import fingerprint, read_footer, shards
from .encoder import WINDOW, Vectors, encode, find_model, load_encoder, weights_fingerprint
from .engine import Engine, Summary
from .pools import as_lists, read_candidates, stored_fingerprint, write_pools

VERSION = 1
MARGINS = {"topk": 1.0, "topk-abs": 0.7, "topk-marginpos": 0.05, "topk-percpos": 0.95}
"""NV-Retriever §4: the margins its ablation found best; naive top-k has none."""
FLAT_LIMIT = 1_000_000
"""Ours: up to this many passages every one is compared, and each query finds all that it may have."""
APPROXIMATE_DEPTH = 10
"""Ours: how many times `top_k` neighbours an approximate index is asked for, before any are dropped."""
SCORES_AT_ONCE = 1 << 26
"""Ours: scores of a block of queries that are held in memory (256 MB)."""

Function = TypeVar("Function", bound=Callable[..., Any])
parallel_kernel: Callable[[Function], Function] = njit(cache=True, parallel=True)

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def mine(corpus: Path, settings: MineSettings, engine: Engine) -> Summary:
    """Write pools.duckdb: for each query the best-scored passages that are neither its positives nor near them.

    Pools that the same model, settings and data have made are left as they are.

    Raises:
        ModelError: the model can't be read.
    """
    started = time.monotonic()
    weights = weights_fingerprint(find_model(settings.model))
    folders: list[str] = sorted({*settings.passages, *settings.queries})
    inputs = {folder: shards(corpus, f"convert/{folder}") for folder in folders}
    content = [
        (str(shard.relative_to(corpus)), read_footer(shard).content) for each in inputs.values() for shard in each
    ]
    decisive = fingerprint("mine", VERSION, weights, settings.model_dump(exclude={"model", "batch_tokens"}), content)
    if stored_fingerprint(corpus) != decisive:
        engine.progress("mine", 0, 3, 0)
        texts = _texts(inputs, settings)
        encoder = load_encoder(EncoderSettings(**settings.model_dump(include=set(EncoderSettings.model_fields))))
        passage_vectors = encode(encoder, texts.passages["text"].to_arrow())
        engine.progress("mine", 1, 3, texts.passages.height)
        query_vectors = encode(encoder, texts.queries["text"].to_arrow())
        engine.progress("mine", 2, 3, texts.queries.height)
        tables = _pools(texts, query_vectors, passage_vectors, settings)
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
        run_ids = pa.repeat(run["run_id"], texts.queries.height)
        tables["candidates"] = tables["candidates"].append_column("run_id", run_ids)
        write_pools(corpus, tables)
        engine.progress("mine", 3, 3, texts.queries.height)
    pools = read_candidates(corpus)
    sizes = pools["passage_ids"].list.len()
    summary = Summary("mine", rows_in=pools.height, rows_out=pools.height, seconds=time.monotonic() - started)
    summary.notes = {
        "queries": pools.height,
        "candidates a query": round(float(np.mean(sizes.to_numpy())), 1) if pools.height else 0.0,
        "short pools": int((sizes < settings.top_k).sum()),
    }
    return summary


class Texts(NamedTuple):
    """Distinct texts, numbered in their order, and what belongs together."""

    queries: pl.DataFrame  # query_id, text
    passages: pl.DataFrame  # passage_id, text, cluster_id: the least of its clusters
    positives: pl.DataFrame  # query_id, passage_id
    members: pl.DataFrame  # passage_id, cluster: a text of two sources' classes is in both
    own: pl.DataFrame  # query_id, cluster: those of its positives


def _texts(inputs: dict[str, list[Path]], settings: MineSettings) -> Texts:
    selects = {
        "retrieval": "SELECT query, unnest(positives) AS positive, unnest(cluster_ids) AS cluster_id "
        "FROM read_parquet(?)",
        "pretrain": "SELECT query, positive, cluster_id FROM read_parquet(?)",
    }
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        for name, wanted in (("asked", settings.queries), ("searched", settings.passages)):
            folders = sorted(set(wanted))
            select = " UNION ALL ".join(selects[folder] for folder in folders)
            files = [[str(shard) for shard in inputs[folder]] for folder in folders]
            connection.execute(f"CREATE TABLE {name} AS {select}", files)
        connection.execute(
            "CREATE TABLE queries AS SELECT row_number() OVER (ORDER BY query) - 1 AS query_id, query AS text "
            "FROM (SELECT DISTINCT query FROM asked);"
            "CREATE TABLE clustered AS SELECT DISTINCT positive AS text, cluster_id "
            "FROM (FROM asked UNION ALL FROM searched);"
            "CREATE TABLE passages AS SELECT row_number() OVER (ORDER BY text) - 1 AS passage_id, text, "
            "min(cluster_id) AS cluster_id FROM clustered GROUP BY text;"
            "CREATE TABLE members AS SELECT passage_id, clustered.cluster_id AS cluster "
            "FROM clustered JOIN passages USING (text);"
            "CREATE TABLE positives AS SELECT DISTINCT query_id, passage_id FROM asked "
            "JOIN queries ON query = queries.text JOIN passages ON positive = passages.text;"
        )
        return Texts(
            connection.sql("FROM queries ORDER BY query_id").pl(),
            connection.sql("FROM passages ORDER BY passage_id").pl(),
            connection.sql("FROM positives ORDER BY ALL").pl(),
            connection.sql("FROM members ORDER BY ALL").pl(),
            connection.sql(
                "SELECT DISTINCT query_id, cluster FROM positives JOIN members USING (passage_id) ORDER BY ALL"
            ).pl(),
        )


def _pools(
    texts: Texts, query_vectors: Vectors, passage_vectors: Vectors, settings: MineSettings
) -> dict[str, pa.Table]:
    """The tables of pools.duckdb, without the run."""
    count = texts.queries.height
    owner, passage = (texts.positives[name].to_numpy() for name in ("query_id", "passage_id"))
    positive_scores = _cosines(query_vectors, owner, passage_vectors, passage)
    ceiling = ceilings(owner, positive_scores, count, settings)
    own_starts = np.searchsorted(texts.own["query_id"].to_numpy(), np.arange(count + 1))
    member_starts = np.searchsorted(texts.members["passage_id"].to_numpy(), np.arange(len(passage_vectors) + 1))
    own, members = texts.own["cluster"].to_numpy(), texts.members["cluster"].to_numpy()
    ids = np.empty((count, settings.top_k), np.int64)
    scores = np.empty((count, settings.top_k), np.float32)
    for start, found_ids, found in _neighbours(query_vectors, passage_vectors, settings):
        block = slice(start, start + len(found))
        starts = own_starts[start : start + len(found) + 1]
        _choose(found_ids, found, ceiling[block], starts, own, member_starts, members, ids[block], scores[block])
    there = ids >= 0
    return {
        "passages": texts.passages.to_arrow(),
        "queries": texts.queries.to_arrow(),
        "positives": texts.positives.with_columns(score=pl.Series(positive_scores)).to_arrow(),
        "candidates": pa.table(
            {
                "query_id": texts.queries["query_id"].to_arrow(),
                "passage_ids": as_lists(ids[there], there.sum(axis=1)),
                "scores": as_lists(scores[there], there.sum(axis=1)),
            }
        ),
    }


def _cosines(query_vectors: Vectors, owner: Integers, passage_vectors: Vectors, passage: Integers) -> Floats:
    """The cosine of each pair of rows, float32 [pairs]."""
    scores = np.empty(len(owner), np.float32)
    for start in range(0, len(owner), WINDOW):
        pairs = slice(start, start + WINDOW)
        np.einsum("nd,nd->n", query_vectors[owner[pairs]], passage_vectors[passage[pairs]], out=scores[pairs])
    return scores


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


def _neighbours(
    query_vectors: Vectors, passage_vectors: Vectors, settings: MineSettings
) -> Iterator[tuple[int, Integers, Floats]]:
    """Blocks of queries: the first one's row, passage ids [1 or n, m] (-1 for none) and their scores [n, m].

    Every passage up to FLAT_LIMIT, where a query whose best neighbours are its own or above its ceiling must be able
    to go far down; the nearest ones by FAISS above it, or where the recipe names an index.
    """
    passages = len(passage_vectors)
    exact = settings.index is None and passages <= FLAT_LIMIT
    index = None if exact else _index(passage_vectors, settings.index)
    depth = passages if exact else min(APPROXIMATE_DEPTH * settings.top_k, passages)
    at_once = max(1, SCORES_AT_ONCE // max(1, depth))
    every = np.arange(passages)[None]
    product = np.empty((at_once, depth), np.float32)
    for start in range(0, len(query_vectors), at_once):
        vectors = query_vectors[start : start + at_once]
        if index is None:
            yield start, every, np.matmul(vectors, passage_vectors.T, out=product[: len(vectors)])
        else:
            scores, ids = index.search(vectors, depth)
            yield start, ids, scores


def _index(passage_vectors: Vectors, factory: str | None) -> faiss.Index:
    """A FAISS index of unit vectors by inner product: IVF of 4√n lists by default, of which 1/16 are searched."""
    count, width = passage_vectors.shape
    index = faiss.index_factory(width, factory or f"IVF{int(4 * count**0.5)},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(passage_vectors)
    index.add(passage_vectors)
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = max(1, lists.nlist // 16)
    return index


@parallel_kernel
def _choose(
    ids: Integers,
    scores: Floats,
    ceiling: Floats,
    own_starts: Integers,
    own: Integers,
    member_starts: Integers,
    members: Integers,
    chosen_ids: Integers,
    chosen_scores: Floats,
) -> None:
    """Write the candidates of a block of queries, best first, equal ones by place; id -1 where there are no more.

    Own positives and their clusters go first, then the positive-aware filter, then the rank counts. Row i's own
    clusters are `own[own_starts[i] : own_starts[i + 1]]`, a passage's are so in `members`.
    """
    for row in prange(len(scores)):
        best = [(scores[row, 0], 0) for _ in range(0)]  # a heap, the worst on top; empty, but of known type
        floor, below = np.float32(-np.inf), ceiling[row]
        for start in range(0, scores.shape[1], 64):
            stretch = scores[row, start : start + 64]
            promising = np.int32(0)  # counted without a branch, as a vector: most stretches have none
            for score in stretch:
                promising += np.int32(score > floor) & np.int32(score < below)
            if promising == 0:
                continue
            for place, score in enumerate(stretch, start):
                passage = ids[row % len(ids), place]
                if not floor < score < below or passage < 0:
                    continue
                mine = False
                for cluster in members[member_starts[passage] : member_starts[passage + 1]]:
                    for other in own[own_starts[row] : own_starts[row + 1]]:
                        mine |= cluster == other
                if mine:
                    continue
                if len(best) < chosen_ids.shape[1]:
                    heapq.heappush(best, (score, -place))
                else:
                    heapq.heapreplace(best, (score, -place))
                if len(best) == chosen_ids.shape[1]:
                    floor = best[0][0]
        chosen_ids[row, len(best) :] = -1
        while best:
            score, place = heapq.heappop(best)
            chosen_ids[row, len(best)] = ids[row % len(ids), -place]
            chosen_scores[row, len(best)] = score
