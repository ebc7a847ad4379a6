"""Building the batch of a step from the records drawn for it and the queries' current negatives."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...schemas.prompts import Prompts
from ...schemas.training_settings import FinetuneSettings, PretrainSettings
from ..dhnm.negatives import ABSENT, Negatives
from ..dhnm.windows import Windows
from ..loss.cbb import Batch, Clusters, build_batch
from .teacher_scores import teacher_scores
from .training_tables import FinetuneData, PairData

Integers = npt.NDArray[np.int64]

_PROVIDED = ("provided", "provided_clusters")


def pretrain_batch(data: PairData, rows: Integers, prompts: Prompts) -> Batch:
    """Build the batch of these pairs, which are those of all ranks."""
    taken = data.pairs.take(rows)
    return build_batch(
        taken["query"].to_pylist(),
        taken["positive"].to_pylist(),
        positive_clusters=taken["cluster_id"].to_pylist(),
        prompts=prompts,
        query_sources=taken["source"].to_pylist(),
    )


def finetune_batch(
    data: FinetuneData,
    current: Windows | Negatives,
    rows: Integers,
    sentence_rows: Integers,
    negatives: int,
    visits: Integers,
    prompts: Prompts,
) -> Batch:
    """Build a batch of queries, each with a positive and its current negatives, and of sentence pairs.

    `visits` counts the earlier draws of each query. A query with several positives takes the next one at each draw.
    Prompts are those of a record's source; a negative from the pool has those of its passage's source.
    """
    taken, sentences = data.queries.take(rows), data.sentences.take(sentence_rows)
    positives, clusters = taken["positives"].to_pylist(), taken["clusters"].to_pylist()
    places = [visit % len(each) for visit, each in zip(visits.tolist(), positives, strict=True)]
    chosen = [each[place] for each, place in zip(positives, places, strict=True)]
    if isinstance(current, Windows):
        found = _negatives_of_windows(data, current, rows, taken, negatives)
    else:
        found = _negatives_by_rank(data, current, rows, taken)
    return build_batch(
        taken["query"].to_pylist(),
        chosen,
        found.texts,
        positive_clusters=[each[place] for each, place in zip(clusters, places, strict=True)],
        negative_clusters=found.clusters,
        left=sentences["text_a"].to_pylist(),
        right=sentences["text_b"].to_pylist(),
        labels=sentences["label"].to_pylist(),
        prompts=prompts,
        query_sources=taken["source"].to_pylist(),
        negative_sources=found.sources,
        sentence_sources=sentences["source"].to_pylist(),
        query_only=taken["query_only"].to_pylist(),
        teacher_scores=teacher_scores(data.scores, rows, chosen, found.texts) if data.scores else (),
    )


def window_passages(data: FinetuneData, windows: Windows, rows: Integers) -> tuple[Integers, Integers]:
    """Return the passages of the queries' current windows, concatenated, and the number of passages of each query."""
    pools = data.pools.take(rows)["pool"].combine_chunks()
    ids, starts = pools.values.to_numpy(), pools.offsets.to_numpy()[:-1]
    counts = windows.hi[rows] - windows.lo[rows]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    passages = ids[np.repeat(starts + windows.lo[rows], counts) + within]
    if data.picked is not None:
        picked = data.picked[rows]
        there = picked[:, 0] >= 0
        passages[np.repeat(there, counts)] = picked[there].ravel()
    return passages, counts


def count_steps(settings: PretrainSettings | FinetuneSettings, records: int, sentences: int, world_size: int) -> int:
    """Count the steps of a run: the recipe's `steps`, or else those that draw each record `epochs` times on average.

    `records` is the number of pairs or queries, `sentences` the number of sentence pairs.
    """
    return settings.steps or max(1, round(settings.epochs * records / draws_per_step(settings, sentences, world_size)))


def draws_per_step(settings: PretrainSettings | FinetuneSettings, sentences: int, world_size: int) -> float:
    """Return how many pairs (fine-tuning: queries) a step draws, on average: if tasks alternate, every second has none.

    `sentences` is the number of sentence pairs.
    """
    if isinstance(settings, PretrainSettings):
        return settings.batch_size * world_size
    alternates = settings.alternate_tasks and settings.sts_batch and sentences
    return settings.retrieval_batch / (2 if alternates else 1)


class _Negatives(NamedTuple):
    """The negatives of each query of a batch, with their clusters and sources."""

    texts: list[list[str]]
    clusters: list[list[Clusters]]
    sources: list[list[str]]


def _negatives_of_windows(
    data: FinetuneData, windows: Windows, rows: Integers, taken: pa.Table, negatives: int
) -> _Negatives:
    """Return the negatives of each query: its window's, or the provided ones if that is empty."""
    ids, counts = window_passages(data, windows, rows)
    passages, ends = data.passages.take(ids), np.cumsum(counts)
    texts, clusters, sources = (passages[name].to_pylist() for name in ("text", "clusters", "source"))
    mined = [slice(end - count, end) for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]
    provided, theirs = ([each[:negatives] for each in taken[name].to_pylist()] for name in _PROVIDED)
    asking = taken["source"].to_pylist()
    return _Negatives(
        [texts[own] or came for own, came in zip(mined, provided, strict=True)],
        [clusters[own] or came for own, came in zip(mined, theirs, strict=True)],
        [sources[own] or [asks] * len(came) for own, came, asks in zip(mined, provided, asking, strict=True)],
    )


def _negatives_by_rank(data: FinetuneData, current: Negatives, rows: Integers, taken: pa.Table) -> _Negatives:
    """Return the negatives of each query, each from its rank in the pool or provided."""
    ranks = current.rank[rows]
    pools = data.pools.take(rows)["pool"].combine_chunks()
    of_pool = (pools.offsets.to_numpy()[:-1, None] + ranks)[ranks >= 0]
    passages = data.passages.take(pools.values.to_numpy()[of_pool])
    mined = zip(*(passages[name].to_pylist() for name in ("text", "clusters", "source")), strict=True)
    (provided, theirs), asking = (taken[name].to_pylist() for name in _PROVIDED), taken["source"].to_pylist()
    found = [
        [
            next(mined) if rank >= 0 else (own[slot], clusters[slot], asks)
            for slot, rank in enumerate(of_query)
            if rank != ABSENT
        ]
        for of_query, own, clusters, asks in zip(ranks.tolist(), provided, theirs, asking, strict=True)
    ]
    return _Negatives(*([[part[place] for part in each] for each in found] for place in range(3)))
