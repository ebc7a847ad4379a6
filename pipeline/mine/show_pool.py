"""conan mine --show: rank the passages of one query and show which rule dropped which. Nothing is written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from ...schemas.errors import CorpusError
from ...schemas.settings import EncoderSettings, MineSettings, SourcePrompts
from ..corpus.pools import check_version, open_pools
from ..encoder.encoder import encode_after, load_encoder
from ..encoder.model_folder import find_model
from ..encoder.prompts import list_prompts, read_prompts
from ..encoder.vector_cache import find, spaces
from .methods import METHODS, ceilings
from .texts import find_own_texts

BLOCK = 16_384
"""Chosen here: passages whose vectors are in memory at a time."""
_ROUNDING = 1e-6
"""Allowed difference: in another block of queries, the last bits of a product may differ."""

_DECIDED = """
SELECT passage_id, coalesce('judged ' || replace(decision, '_', ' '), 'set aside with the query') AS decision
FROM (SELECT unnest(passage_ids) AS passage_id FROM mined_candidates ANTI JOIN queries USING (query_id)
      WHERE query_id = $query)
FULL JOIN (FROM decisions WHERE query_id = $query) USING (passage_id)
"""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShownPool:
    """A query with its positives and its best passages, each passage with a verdict.

    `ceiling`: its candidates have scores below it; None if the method has no ceiling. `positives`: `passage_id, score,
    text`. `passages`: the `top_k` best of all passages, and all candidates, with `place` (among all passages, from 0),
    `rank` (in the pool, from 0; None if dropped), `passage_id, score, verdict, text`. `dropped`: how many passages were
    dropped down to the last candidate, by verdict.
    """

    query_id: int
    query: str
    run: dict[str, Any]
    ceiling: float | None
    positives: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    dropped: dict[str, int]


def show_pool(
    corpus: Path, wanted: str, settings: MineSettings, sources: Mapping[str, SourcePrompts] = {}
) -> ShownPool:
    """Show what mining did for one query, given by its query_id, its text, or a part of its text that no other has.

    Scores come from the vectors that mining stored. If they are gone, all passages are encoded again.

    Raises:
        CorpusError: there are no pools, no query or several match, or the vectors are gone and the recipe's model or
            settings are not those of the pools.
        ModelError: the vectors are gone and the model can't be read.
    """
    with open_pools(corpus) as pools:
        check_version(pools, corpus)
        run = pools.sql("FROM runs").pl().row(0, named=True)
        query_id, query = _find_query(pools, corpus, wanted)
        asked = pools.sql("FROM mined_queries WHERE query_id = ?", params=[query_id]).pl()
        positives = pools.sql(
            "SELECT passage_id, score, text FROM mined_positives JOIN passages USING (passage_id) "
            "WHERE query_id = ? ORDER BY score DESC, passage_id",
            params=[query_id],
        ).pl()
        kept = pools.sql(
            "SELECT unnest(passage_ids) AS passage_id, generate_subscripts(passage_ids, 1) - 1 AS rank "
            "FROM candidates WHERE query_id = ?",
            params=[query_id],
        ).pl()
        decided = pools.sql(_DECIDED, params={"query": query_id}).pl()
        passages = pools.sql("SELECT passage_id, text, source, vectors FROM passages ORDER BY passage_id").pl()
        scores = _scores(corpus, asked, passages, settings, sources)
        ranked = (
            passages.select("passage_id", "text")
            .with_columns(score=pl.Series(scores))
            .sort("score", "passage_id", descending=[True, False])
            .with_row_index("place")
            .join(kept, on="passage_id", how="left", maintain_order="left")
            .join(decided, on="passage_id", how="left", maintain_order="left")
        )
        depth = ranked.filter(pl.col("rank").is_not_null())["place"].max()
        head = ranked.head(max(run["top_k"], 1 + int(depth) if isinstance(depth, int) else 0))
        pools.register("head", head.select("passage_id").to_arrow())
        find_own_texts(pools, f"WHERE query_id = {query_id}")
        own_texts = pools.sql("SELECT passage_id FROM own_texts ORDER BY passage_id").pl()["passage_id"].to_list()
        clusters_of = "SELECT DISTINCT unnest(cluster_ids) FROM passages WHERE passage_id IN (SELECT unnest(?))"
        answering, asking = (
            pools.sql(clusters_of, params=[ids]).pl().to_series()
            for ids in (positives["passage_id"].to_list(), own_texts)
        )
        clusters = pools.sql("SELECT passage_id, cluster_ids FROM passages SEMI JOIN head USING (passage_id)").pl()
    ceiling = _ceiling(positives, run)
    verdict = _verdict(positives, answering, own_texts, asking, kept.height, ceiling, run)
    judged = head.join(clusters, on="passage_id", maintain_order="left").with_columns(verdict=verdict)
    listed = judged.filter((pl.col("place") < run["top_k"]) | pl.col("rank").is_not_null())
    dropped = judged.filter(pl.col("rank").is_null())["verdict"]
    return ShownPool(
        query_id=query_id,
        query=query,
        run=run,
        ceiling=None if ceiling == inf else ceiling,
        positives=positives.to_dicts(),
        passages=listed.select("place", "rank", "passage_id", "score", "verdict", "text").to_dicts(),
        dropped=dict(Counter(dropped).most_common()),
    )


def _find_query(pools: duckdb.DuckDBPyConnection, corpus: Path, wanted: str) -> tuple[int, str]:
    for condition in ("CAST(query_id AS VARCHAR) = ?", "text = ?", "contains(text, ?)"):
        found = pools.execute(
            f"SELECT query_id, text FROM mined_queries WHERE {condition} ORDER BY query_id LIMIT 6", [wanted]
        ).fetchall()
        if len(found) == 1:
            return int(found[0][0]), str(found[0][1])
    if not found:
        raise CorpusError(f"{corpus}: no query has the id {wanted!r} or contains it; see the table pools.queries")
    some = "\n".join(f"  {query_id}  {text[:80]}" for query_id, text in found[:5])
    raise CorpusError(f"{corpus}: several queries contain {wanted!r}; give the id of one:\n{some}")


def _scores(
    corpus: Path,
    asked: pl.DataFrame,
    passages: pl.DataFrame,
    settings: MineSettings,
    sources: Mapping[str, SourcePrompts],
) -> Floats:
    """Return the cosine of the query and every passage, float32 [passages]. Both have `text, source, vectors`."""
    scores = np.empty(len(passages), np.float32)
    blocks = [np.arange(start, min(start + BLOCK, len(scores))) for start in range(0, len(scores), BLOCK)]
    of_query, stored = (find(corpus, each["vectors"], each["text"].to_arrow()) for each in (asked, passages))
    if of_query is not None and stored is not None:
        vector = of_query.take(np.zeros(1, np.int64))[0]
        for block in blocks:
            scores[block] = stored.take(block) @ vector
        return scores
    encoder = load_encoder(EncoderSettings(**settings.model_dump(include=set(EncoderSettings.model_fields))))
    prompts = read_prompts(find_model(settings.model, settings.trust_remote_code), settings, sources)
    before = [list_prompts(prompts, "query", asked["source"]), list_prompts(prompts, "passage", passages["source"])]
    if not all(
        spaces(encoder.fingerprint, settings, own).equals(each["vectors"])
        for own, each in zip(before, (asked, passages), strict=True)
    ):
        raise CorpusError(
            f"{corpus}: the stored vectors are gone, and the pools were mined with another model than the recipe's "
            f"({settings.model}) or with other settings; run `conan mine {corpus}` again"
        )
    vector = encode_after(encoder, before[0], asked["text"])[0]
    for block in blocks:
        scores[block] = encode_after(encoder, before[1].gather(block), passages["text"].gather(block)) @ vector
    return scores


def _ceiling(positives: pl.DataFrame, run: dict[str, Any]) -> float:
    scores = positives["score"].to_numpy()
    settings = MineSettings(method=run["method"], margin=run["margin"])
    return float(ceilings(np.zeros(len(scores), np.int64), scores, 1, settings)[0])


def _verdict(
    positives: pl.DataFrame,
    answering: pl.Series,
    own_texts: list[int],
    asking: pl.Series,
    candidates: int,
    ceiling: float,
    run: dict[str, Any],
) -> pl.Expr:
    """Return what happened to each passage, from the columns `passage_id, place, rank, score, decision, cluster_ids`.

    `answering` are the clusters of the positives, `own_texts` the passages with the query's own text, `asking` their
    clusters. A passage that a judge has decided on has its decision, and one in the pool was kept; any other was
    dropped by the first rule that applies to it. If no rule applies, an approximate index did not find it.
    """
    lowest = float(positives["score"].to_numpy().min())
    method = METHODS.find(run["method"], "pools.runs")
    rule = f"{run['method']} {method.formula.format(lowest=lowest, margin=run['margin'])}".rstrip()
    is_kept, first = pl.col("rank").is_not_null(), pl.col("place").filter(pl.col("rank") == 0).first()
    return (
        pl.when(pl.col("decision").is_not_null())
        .then(pl.col("decision"))
        .when(is_kept)
        .then(pl.lit("kept"))
        .when(pl.col("passage_id").is_in(positives["passage_id"].implode()))
        .then(pl.lit("own positive"))
        .when(pl.col("passage_id").is_in(own_texts))
        .then(pl.lit("own text"))
        .when(pl.col("cluster_ids").list.eval(pl.element().is_in(answering.implode())).list.any())
        .then(pl.lit("cluster of a positive"))
        .when(pl.col("cluster_ids").list.eval(pl.element().is_in(asking.implode())).list.any())
        .then(pl.lit("cluster of the own text"))
        .when(pl.col("score") > ceiling - _ROUNDING)
        .then(pl.lit(f"above ceiling {ceiling:.2f} ({rule})"))
        .when(method.skips_ranks & ((pl.col("place") < first) | (candidates == 0)))
        .then(pl.lit("shifted"))
        .otherwise(pl.lit("missed by the search"))
    )
