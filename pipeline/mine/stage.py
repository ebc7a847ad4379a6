"""conan mine: find candidates for hard negatives among a model's nearest neighbours (NV-Retriever, arXiv 2407.15831).

The steps: collect the texts, encode them, search for each query's passages, write the pools. Texts, vectors and
candidates are held in blocks; for the whole corpus, only some numbers of each text are (docs/mining.md counts them).
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from ...schemas.outcomes import Summary
from ...schemas.prompts import Prompts, Side
from ...schemas.settings import MineSettings, SourcePrompts
from ..corpus.folder import fingerprint, is_begun, read_footer, shards
from ..corpus.pools import (
    as_lists,
    insert,
    new_pools,
    open_pools,
    read_judging,
    stored_fingerprint,
    write_decisions,
)
from ..encoder.finite import check_finite
from ..encoder.model_folder import find_model, weights_fingerprint
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import StoredVectors, concatenate, keep_only, spaces, store, truncated
from ..engine.calls import Engine
from .methods import ceiling_sql, ceilings, margin_of, skipped_ranks
from .search import Rules, check_index, default_index, pair_cosines
from .search_stored import search_stored
from .texts import collect_texts, list_sources, read_clusters

VERSION = 5
TABLES: dict[Side, str] = {"query": "mined_queries", "passage": "passages"}


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
    decisive = settings.model_dump(exclude={"model", "batch_tokens", "compile", "prompts", "block"})
    decisive |= {"prompts": [prompts.of_side("query"), prompts.of_side("passage")]}
    wanted = fingerprint("mine", VERSION, weights, decisive, content)
    if stored_fingerprint(corpus) != wanted:
        with new_pools(corpus, ceiling_sql()) as pools:
            collect_texts(pools, inputs, settings, _name_spaces(inputs, weights, settings, prompts))
            if settings.index is not None:
                from ..encoder.encoder import dimension, loaded  # imports transformers, which cached vectors don't need

                width = dimension(loaded(settings, weights, "cpu"))
                check_index(settings.index, width, _count(pools, "passages"), settings.block)
            passages = _encode(pools, "passage", corpus, weights, settings, prompts, engine)
            queries = _encode(pools, "query", corpus, weights, settings, prompts, engine)
            used = "SELECT vectors FROM mined_queries UNION SELECT vectors FROM passages"
            in_use = {str(name) for (name,) in pools.sql(used).fetchall()}
            run = {
                "run_id": wanted[:12],
                "model_fingerprint": weights,
                "method": settings.method,
                "margin": margin,
                "top_k": settings.top_k,
                "index": settings.index or default_index(len(passages), settings.block),
                "queries_from": sorted(set(settings.queries)),
                "passages_from": sorted(set(settings.passages)),
                "queries": len(queries),
                "passages": len(passages),
                "truncated": truncated(corpus, in_use),
                "fingerprint": wanted,
                "created_at": datetime.now(UTC).replace(tzinfo=None),
            }
            insert(pools, "runs", pa.Table.from_pylist([run]))
            _fill_pools(pools, queries, passages, settings, wanted[:12], corpus, engine)
        keep_only(corpus, in_use)
    elif read_judging(corpus):
        write_decisions(corpus, None, None)
    return _summary(corpus, settings, time.monotonic() - started)


def _summary(corpus: Path, settings: MineSettings, seconds: float) -> Summary:
    with open_pools(corpus) as pools:
        sizes = "SELECT len(passage_ids) AS size FROM queries JOIN candidates USING (query_id)"
        queries, mean, short = pools.execute(
            f"SELECT count(*), coalesce(avg(size), 0), count(*) FILTER (size < ?) FROM ({sizes})", [settings.top_k]
        ).fetchall()[0]
    notes = {"queries": queries, "candidates_per_query": round(mean, 1), "short_pools": short}
    return Summary("mine", rows_in=queries, rows_out=queries, seconds=seconds, notes=notes)


def _name_spaces(
    inputs: Mapping[str, list[Path]], weights: str, settings: MineSettings, prompts: Prompts
) -> pl.DataFrame:
    """Name the folder of vectors/ for each source's queries and passages: columns `source, query, passage`."""
    sources = list_sources(inputs)
    names = [spaces(weights, settings, list_prompts(prompts, side, sources)).alias(side) for side in TABLES]
    return pl.DataFrame([sources, *names])


def _count(pools: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(pools.sql(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _encode(
    pools: duckdb.DuckDBPyConnection,
    side: Side,
    corpus: Path,
    weights: str,
    settings: MineSettings,
    prompts: Prompts,
    engine: Engine,
) -> StoredVectors:
    """Store the vectors of all queries or passages, in the order of their ids, `settings.block` texts at a time."""
    table, number = TABLES[side], f"{side}_id"
    kind = {"query": "queries", "passage": "passages"}[side]
    blocks = []
    for first in range(0, _count(pools, table), settings.block):
        texts = pools.sql(
            f"SELECT text, source FROM {table} WHERE {number} BETWEEN ? AND ? ORDER BY {number}",
            params=[first, first + settings.block - 1],
        ).pl()
        before = list_prompts(prompts, side, texts["source"])
        vectors = store(corpus, weights, settings, before, texts["text"].to_arrow(), engine)
        check_finite(settings.model, vectors.take, texts["text"], kind)
        blocks.append(vectors)
    return concatenate(blocks)


def _fill_pools(
    pools: duckdb.DuckDBPyConnection,
    queries: StoredVectors,
    passages: StoredVectors,
    settings: MineSettings,
    run_id: str,
    corpus: Path,
    engine: Engine,
) -> None:
    """Write the positives with their scores, search, and write each query's candidates."""
    answers = pools.sql("FROM answers ORDER BY ALL").pl()
    owner, passage = (answers[name].to_numpy() for name in ("query_id", "passage_id"))
    positive_scores = pair_cosines(queries.take, owner, passages.take, passage)
    insert(pools, "mined_positives", answers.with_columns(score=pl.Series(positive_scores)).to_arrow())
    rules = Rules(
        ceilings(owner, positive_scores, len(queries), settings),
        *read_clusters(pools, "own", "query_id", len(queries)),
        *read_clusters(pools, "members", "passage_id", len(passages)),
    )
    del answers, owner, passage, positive_scores
    shift, first = skipped_ranks(settings), 0
    for best in search_stored(
        corpus,
        queries,
        passages,
        rules,
        settings.top_k + shift,
        engine,
        "mine: search",
        index=settings.index,
        block=settings.block,
    ):
        ids, scores = best.ids[:, shift:], best.scores[:, shift:]
        there = ids >= 0
        rows = {
            "query_id": np.arange(first, first + len(ids)),
            "run_id": pa.repeat(run_id, len(ids)),
            "passage_ids": as_lists(ids[there], there.sum(axis=1)),
            "scores": as_lists(scores[there], there.sum(axis=1)),
        }
        insert(pools, "mined_candidates", pa.table(rows))  # no transaction: it would hold the batches until its end
        first += len(ids)
