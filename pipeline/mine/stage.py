"""conan mine: find candidates for hard negatives among a model's nearest neighbours (NV-Retriever, arXiv 2407.15831).

The steps: collect the texts, encode them, search for each query's passages, write the pools.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from ...schemas.outcomes import Summary
from ...schemas.settings import MineSettings, SourcePrompts
from ..corpus.folder import fingerprint, is_begun, read_footer, shards
from ..corpus.pools import (
    as_lists,
    read_candidates,
    read_judging,
    stored_fingerprint,
    write_decisions,
    write_pools,
)
from ..corpus.sql import scan_shards
from ..encoder.finite import check_finite
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import StoredVectors, keep_only, spaces, store, truncated
from ..engine.calls import Engine
from .methods import ceiling_sql, ceilings, margin_of, skipped_ranks
from .search import Rules, check_index, default_index, find_own_texts, pair_cosines, search

VERSION = 5


def mine(corpus: Path, settings: MineSettings, engine: Engine, sources: Mapping[str, SourcePrompts] = {}) -> Summary:
    """Write pools.duckdb: for each query, the best-scored passages that the method allows.

    A passage is allowed if it is neither the query's own text nor one of its positives, nor in a cluster of these, and
    if its score is below the ceiling. Pools of the same model, settings and data are left as they are, except that a
    judge's decisions are removed; texts that the model has already encoded are not encoded again. `sources` are the
    prompts of the sources that have their own.

    Raises:
        ModelError: the model can't be read, or gives vectors with NaN or infinite numbers.
        RecipeError: no such method, a margin that does not fit it, or an index that FAISS can't build.
    """
    started = time.monotonic()
    margin = margin_of(settings)
    folder = find_model(settings.model, settings.trust_remote_code)
    weights = weights_fingerprint(folder)
    prompts = read_prompts(folder, settings, sources)
    others = [name for name in settings.passages if name != "passages"]
    if others and not is_begun(corpus, "convert/passages"):
        settings = settings.model_copy(update={"passages": others})
    inputs: dict[str, list[Path]] = {
        name: shards(corpus, f"convert/{name}") for name in sorted({*settings.passages, *settings.queries})
    }
    content = [(name, shard.name, read_footer(shard).content) for name, found in inputs.items() for shard in found]
    decisive = settings.model_dump(exclude={"model", "batch_tokens", "compile", "prompts"})
    decisive |= {"prompts": [prompts.of_side("query"), prompts.of_side("passage")]}
    wanted = fingerprint("mine", VERSION, weights, decisive, content)
    if stored_fingerprint(corpus) != wanted:
        texts = _texts(inputs, settings)
        if settings.index is not None:
            from ..encoder.encoder import dimension, loaded  # imports transformers, which cached vectors don't need

            check_index(settings.index, dimension(loaded(settings, weights, "cpu")), texts.passages.height)
        of_passages = list_prompts(prompts, "passage", texts.passages["source"])
        of_queries = list_prompts(prompts, "query", texts.queries["source"])
        passages = store(corpus, weights, settings, of_passages, texts.passages["text"].to_arrow(), engine)
        queries = store(corpus, weights, settings, of_queries, texts.queries["text"].to_arrow(), engine)
        texts = texts._replace(
            queries=texts.queries.with_columns(spaces(weights, settings, of_queries)),
            passages=texts.passages.with_columns(spaces(weights, settings, of_passages)),
        )
        in_use = {*texts.queries["vectors"].unique(), *texts.passages["vectors"].unique()}
        check_finite(settings.model, queries.take, texts.queries["text"], "queries")
        check_finite(settings.model, passages.take, texts.passages["text"], "passages")
        run = {
            "run_id": wanted[:12],
            "model_fingerprint": weights,
            "method": settings.method,
            "margin": margin,
            "top_k": settings.top_k,
            "index": settings.index or default_index(len(passages)),
            "queries_from": sorted(set(settings.queries)),
            "passages_from": sorted(set(settings.passages)),
            "queries": len(queries),
            "passages": len(passages),
            "truncated": truncated(corpus, in_use),
            "fingerprint": wanted,
            "created_at": datetime.now(UTC).replace(tzinfo=None),
        }
        tables = _pools(texts, queries, passages, settings, engine, run)
        write_pools(corpus, tables, ceiling_sql())
        keep_only(corpus, in_use)
    elif read_judging(corpus):
        write_decisions(corpus, None, None)
    return _summary(corpus, settings, time.monotonic() - started)


def _summary(corpus: Path, settings: MineSettings, seconds: float) -> Summary:
    pools = read_candidates(corpus)
    sizes = pools["passage_ids"].list.len()
    notes = {
        "queries": pools.height,
        "candidates_per_query": round(float(np.mean(sizes.to_numpy())), 1) if pools.height else 0.0,
        "short_pools": int((sizes < settings.top_k).sum()),
    }
    return Summary("mine", rows_in=pools.height, rows_out=pools.height, seconds=seconds, notes=notes)


class Texts(NamedTuple):
    """The distinct texts, numbered in sorted order, and how they belong together.

    A text that several sources have is of the one whose name comes first.
    """

    queries: pl.DataFrame  # query_id, text, source
    passages: pl.DataFrame  # passage_id, text, source, cluster_id (its smallest cluster), cluster_ids (all of them)
    positives: pl.DataFrame  # query_id, passage_id
    members: pl.DataFrame  # passage_id, cluster; a text in classes of two sources has two clusters
    own: pl.DataFrame  # query_id, cluster (of one of its positives, or of its own text)


def _texts(inputs: dict[str, list[Path]], settings: MineSettings) -> Texts:
    columns = {
        "retrieval": "query, unnest(positives) AS positive, unnest(cluster_ids) AS cluster_id, source",
        "pretrain": "query, positive, cluster_id, source",
        "passages": "'' AS query, text AS positive, cluster_id, source",
    }
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        for name, wanted in (("asked", settings.queries), ("searched", settings.passages)):
            selects = [f"SELECT {columns[folder]} FROM {scan_shards(inputs[folder])}" for folder in sorted(set(wanted))]
            connection.execute(f"CREATE TABLE {name} AS {' UNION ALL '.join(selects)}")
        connection.execute(
            "CREATE TABLE queries AS SELECT row_number() OVER (ORDER BY query) - 1 AS query_id, query AS text, "
            "min(CAST(source AS VARCHAR)) AS source FROM asked GROUP BY query;"
            "CREATE TABLE clustered AS SELECT positive AS text, cluster_id, min(CAST(source AS VARCHAR)) AS source "
            "FROM (FROM asked UNION ALL FROM searched) GROUP BY ALL;"
            "CREATE TABLE passages AS SELECT row_number() OVER (ORDER BY text) - 1 AS passage_id, text, "
            "min(source) AS source, min(cluster_id) AS cluster_id, list(cluster_id ORDER BY cluster_id) AS cluster_ids "
            "FROM clustered GROUP BY text;"
            "CREATE TABLE members AS SELECT passage_id, clustered.cluster_id AS cluster "
            "FROM clustered JOIN passages USING (text);"
            "CREATE TABLE positives AS SELECT DISTINCT query_id, passage_id FROM asked "
            "JOIN queries ON query = queries.text JOIN passages ON positive = passages.text;"
        )
        queries, passages, positives, members = (
            connection.sql(f"FROM {table} ORDER BY ALL").pl()
            for table in ("queries", "passages", "positives", "members")
        )
    never = pl.concat([positives, find_own_texts(queries, passages)])
    own = never.join(members, on="passage_id").select("query_id", "cluster").unique().sort("query_id", "cluster")
    return Texts(queries, passages, positives, members, own)


def _pools(
    texts: Texts,
    queries: StoredVectors,
    passages: StoredVectors,
    settings: MineSettings,
    engine: Engine,
    run: dict[str, Any],
) -> dict[str, pa.Table]:
    """Build the tables of pools.duckdb."""

    def progress(done: int, total: int) -> None:
        engine.progress("mine: search", done, total, len(queries) * done // total)

    owner, passage = (texts.positives[name].to_numpy() for name in ("query_id", "passage_id"))
    positive_scores = pair_cosines(queries.take, owner, passages.take, passage)
    rules = Rules(
        ceilings(owner, positive_scores, len(queries), settings),
        np.searchsorted(texts.own["query_id"].to_numpy(), np.arange(len(queries) + 1)),
        texts.own["cluster"].to_numpy(),
        np.searchsorted(texts.members["passage_id"].to_numpy(), np.arange(len(passages) + 1)),
        texts.members["cluster"].to_numpy(),
    )
    shift = skipped_ranks(settings)
    best = search(queries.take, passages.take, rules, settings.top_k + shift, settings.index, progress)
    ids, scores = best.ids[:, shift:], best.scores[:, shift:]
    there = ids >= 0
    return {
        "runs": pa.Table.from_pylist([run]),
        "passages": texts.passages.to_arrow(),
        "queries": texts.queries.to_arrow(),
        "positives": texts.positives.with_columns(score=pl.Series(positive_scores)).to_arrow(),
        "candidates": pa.table(
            {
                "query_id": texts.queries["query_id"].to_arrow(),
                "run_id": pa.repeat(run["run_id"], len(queries)),
                "passage_ids": as_lists(ids[there], there.sum(axis=1)),
                "scores": as_lists(scores[there], there.sum(axis=1)),
            }
        ),
    }
