"""Which records each update sees, and their texts: a pure function of seed and step, so any step can be resumed."""

import difflib
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
from ..schemas.pairs import Category
from ..schemas.recipe import RecipeError
from ..schemas.settings import FinetuneSettings, Mixing, PretrainSettings
from .cbb import Update, build_update
from .negatives import Windows

Integers = npt.NDArray[np.int64]


PAPER_SHARES: dict[Category, float] = {
    "news": 27.3,
    "knowledge_base": 7.7,
    "social_media": 39.9,
    "web_page": 4.6,
    "academic_paper": 6.0,
    "community_qa": 1.6,
    "instruction": 11.7,
    "llm_generated": 1.2,
}
"""Per cent of the pre-training pairs by category (Conan-embedding, arXiv 2408.15710, Table 1)."""


@dataclass(frozen=True)
class Sources:
    """Where records come from: each record's source as a place in `names`, and the category of each source."""

    of_records: Integers
    names: list[str]
    categories: list[Category]


def source_weights(sizes: npt.ArrayLike, sources: Sources, mixing: Mixing) -> npt.NDArray[np.float64]:
    """How often each source is drawn against the others, float64 [sources]; `sizes` are their numbers of records.

    Its size to the power `mixing.power`. With shares of categories, these are divided in that proportion: a category
    weighs what its share says against the others that are there. What `mixing.sources` says multiplies the result.

    Raises:
        RecipeError: a category that is there has no share, a number is negative, or nothing is left to draw.
    """
    weights = np.asarray(sizes, np.float64) ** mixing.power
    if mixing.categories is not None:
        shares = PAPER_SHARES if mixing.categories == "paper" else mixing.categories
        if missing := sorted(set(sources.categories) - set(shares)):
            held = [name for name, own in zip(sources.names, sources.categories, strict=True) if own == missing[0]]
            raise RecipeError(
                f"mixing.categories has no share for {missing[0]}, the category of {', '.join(held)}; 0 leaves it out"
            )
        _, category = np.unique(sources.categories, return_inverse=True)
        weights *= np.array([shares[own] for own in sources.categories]) / np.bincount(category, weights)[category]
    weights *= np.array([mixing.sources.get(name, 1.0) for name in sources.names])
    if (weights < 0).any():
        raise RecipeError("mixing: shares of categories and factors of sources can't be negative")
    if len(weights) and not weights.any():
        raise RecipeError(f"mixing leaves nothing to draw of {', '.join(sources.names)}: all have the weight 0")
    return weights


def check_mixing(mixing: Mixing, *drawn: Sources) -> None:
    """Raise RecipeError where `mixing.sources` names a source that none of those drawn from has."""
    known = sorted({name for sources in drawn for name in sources.names})
    for name in mixing.sources:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise RecipeError(f"mixing.sources: no records of a source {name}; {hint}")


def draws(sources: Sources, total: int, mixing: Mixing, seed: int, run: int = 1) -> Integers:
    """Which record each of `total` draws takes, int64 [total].

    A draw picks a source by its weight (see `source_weights`) and then that source's next record in a shuffled order,
    so no record comes back before its source is used up. `run` successive draws share their source.
    """
    records = [np.flatnonzero(sources.of_records == source) for source in range(len(sources.names))]
    generator = np.random.default_rng(seed)
    weights = source_weights([len(each) for each in records], sources, mixing)
    drawn = np.repeat(generator.choice(len(records), -(-total // run), p=weights / weights.sum()), run)[:total]
    result = np.empty(total, np.int64)
    for source, own in enumerate(records):
        places = np.flatnonzero(drawn == source)
        rounds = -(-len(places) // len(own))
        order = generator.permuted(np.tile(own, (rounds, 1)), axis=1).ravel()
        result[places] = order[: len(places)]
    return result


@dataclass(frozen=True)
class PairData:
    """Pairs for pre-training."""

    queries: pa.Array
    positives: pa.Array
    clusters: Integers
    sources: Sources


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
        _sources(frame),
    )


def _sources(frame: pl.DataFrame) -> Sources:
    """The sources of records, by name: the same whatever shards they came from."""
    named = frame.select(pl.col("source", "category").cast(pl.String))
    of_records = (named["source"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    known = named.group_by("source").agg(pl.col("category").min()).sort("source")
    return Sources(of_records, known["source"].to_list(), known["category"].to_list())


def _pairs(shard: Path) -> pl.DataFrame:
    frame = pl.read_parquet(shard)
    if "task" in frame.columns:
        frame = frame.filter(pl.col("task").cast(pl.String).is_in(["pretrain", "retrieval"]))
    if "cluster_id" not in frame.columns:
        frame = frame.with_columns(cluster_id=pl.lit(-1, pl.Int64))
    return frame.select("query", "positive", "cluster_id", pl.col("source", "category").cast(pl.String))


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
    """Queries with positives, given negatives and pools, by row; sentence pairs; passages by id."""

    query_ids: Integers
    queries: pa.Array
    positives: pa.Array  # list<string>
    clusters: pa.Array  # list<int64>, of the positives
    given: pa.Array  # list<string>
    sources: Sources
    pool_starts: Integers  # [queries + 1], into pool_passages
    pool_passages: Integers
    passages: pa.Array
    passage_clusters: Integers
    left: pa.Array
    right: pa.Array
    labels: npt.NDArray[np.float32]
    sentence_sources: Sources

    @property
    def pool_sizes(self) -> Integers:
        """Candidates of each query."""
        return np.diff(self.pool_starts)


_RECORDS = {
    "retrieval": "SELECT query, source, category, pair_ids, positives, cluster_ids, negatives FROM read_parquet({})",
    "pretrain": "SELECT query, source, category, pair_ids, [positive], [cluster_id], CAST([] AS VARCHAR[]) "
    "FROM read_parquet({})",
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
            "CREATE VIEW records(query, source, category, pair_ids, positives, cluster_ids, negatives) AS "
            + " UNION ALL ".join(parts)
        )
        queries: pl.DataFrame = connection.sql(
            """SELECT * REPLACE (list_filter(given, lambda text: NOT list_contains(positives, text)) AS given)
               FROM (SELECT query_id, query, first(CAST(source AS VARCHAR) ORDER BY source, pair_ids) AS source,
                            first(CAST(category AS VARCHAR) ORDER BY source, pair_ids) AS category,
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
    sentences = pl.concat([pl.DataFrame(schema=_SENTENCES), *(_sentences(shard) for shard in sts)])
    return FinetuneData(
        query_ids=queries["query_id"].to_numpy(),
        queries=queries["query"].to_arrow(),
        positives=queries["positives"].to_arrow(),
        clusters=queries["clusters"].to_arrow(),
        given=queries["given"].list.unique(maintain_order=True).to_arrow(),
        sources=_sources(queries),
        pool_starts=np.concatenate([[0], np.cumsum(queries["pool"].list.len().to_numpy())]).astype(np.int64),
        pool_passages=queries["pool"].explode().drop_nulls().to_numpy(),
        passages=passages["text"].to_arrow(),
        passage_clusters=passages["cluster_id"].to_numpy(),
        left=sentences["text_a"].to_arrow(),
        right=sentences["text_b"].to_arrow(),
        labels=sentences["label"].to_numpy(),
        sentence_sources=_sources(sentences),
    )


_SENTENCES = pl.Schema(
    {"text_a": pl.String, "text_b": pl.String, "label": pl.Float32, "source": pl.String, "category": pl.String}
)


def _sentences(shard: Path) -> pl.DataFrame:
    return pl.read_parquet(shard, columns=list(_SENTENCES)).cast(_SENTENCES)


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
