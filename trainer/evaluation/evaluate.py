"""conan evaluate: what a model's vectors are worth on sets of questions, sentence pairs and labelled texts."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ...pipeline.corpus.atomic import replacing
from ...pipeline.encoder.encoder import Encoder, Vectors, dimension, encode
from ...schemas.errors import CorpusError
from ...schemas.results import RESULT
from . import metrics
from .bm25 import bm25
from .evaluation_sets import EvaluationSet, Haystack, Integers, haystack

CUT = 10
"""Passages of each query that results list: as far as C-MTEB's nDCG looks (mteb)."""
DEPTH = 100
"""Ranks of each query that metrics see: as far as recall looks."""
_SCORES_AT_ONCE = 1 << 24
_PASSAGES = 64 << 20
"""Bytes of passages that a file of results lists once, however many queries find them."""

Scores = Callable[[int, int], npt.NDArray[np.float32]]
"""From queries start to stop to the scores of all passages, [stop - start, passages]."""


@dataclass(frozen=True)
class Judgement:
    """The metrics of a set with vectors of a width, and what is behind them: a row of RESULT's columns for each query.

    A method without vectors has no width.
    """

    set: str
    dimension: int | None
    metrics: dict[str, float]
    results: pl.DataFrame


Found = tuple[dict[str, float], pl.DataFrame]
"""The metrics and the results of a judgement."""


def evaluate(encoder: Encoder, one: EvaluationSet) -> dict[str, float]:
    """A model's metrics on a set, with vectors of full width; `judge` says which."""
    return judge(encoder, one, [dimension(encoder)])[0].metrics


def widths(encoder: Encoder, dimensions: Sequence[int]) -> list[int]:
    """A model's vectors' own width, then those of `dimensions` that they are to be cut to.

    Raises:
        CorpusError: a width that the model's vectors don't have.
    """
    full = dimension(encoder)
    if beyond := [width for width in dimensions if not 1 <= width <= full]:
        raise CorpusError(f"the model's vectors are {full} wide; they can't be cut to {beyond[0]}")
    return list(dict.fromkeys([full, *dimensions]))


def judge(encoder: Encoder, one: EvaluationSet, dimensions: Sequence[int]) -> list[Judgement]:
    """What a model is worth on a set, for each width that its vectors are cut to.

    - retrieval: `ndcg@10, mrr@10, recall@10, recall@100`, and where queries have negatives, `map`: the mean average
      precision among a query's own positives and negatives, as in reranking
    - sts: `spearman`, 0 where all scores or all labels are equal; and where labels are 0 and 1, `ap` and
      `best_accuracy` of the cosine, as in pair classification
    - classification: `accuracy` and `v_measure`
    - what plugins register (see metrics.py)
    """
    if one.task == "sts":
        left, right = (encode(encoder, one.frame[side].to_arrow()) for side in ("text_a", "text_b"))
        found = [_sentence_pairs(one.frame, cut(left, width), cut(right, width)) for width in dimensions]
    elif one.task == "classification":
        vectors = encode(encoder, one.frame["text"].to_arrow())
        found = [_labelled_texts(one.frame, cut(vectors, width)) for width in dimensions]
    else:
        among = haystack(one)
        queries = encode(encoder, one.frame["query"].to_arrow(), encoder.query_prompt)
        passages = encode(encoder, among.passages.to_arrow())
        scores = [_cosines(cut(queries, width), cut(passages, width)) for width in dimensions]
        found = [_retrieval(one.frame, among, score) for score in scores]
    return [Judgement(one.name, width, *each) for width, each in zip(dimensions, found, strict=True)]


def judge_bm25(one: EvaluationSet) -> Judgement:
    """What BM25 is worth on a retrieval set."""
    among = haystack(one)
    score = bm25(among.passages.to_list(), one.frame["query"].to_list())
    return Judgement(one.name, None, *_retrieval(one.frame, among, score))


def cut(vectors: Vectors, width: int) -> Vectors:
    """The first `width` numbers of each vector, at unit length again (Matryoshka, arXiv 2205.13147)."""
    if width == vectors.shape[1]:
        return vectors
    first = vectors[:, :width]
    found: Vectors = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found


def _cosines(queries: Vectors, passages: Vectors) -> Scores:
    return lambda start, stop: queries[start:stop] @ passages.T


def _sentence_pairs(frame: pl.DataFrame, left: Vectors, right: Vectors) -> Found:
    scores, labels = np.einsum("nd,nd->n", left, right), frame["label"].to_numpy()
    found, _ = metrics.compute_metrics("sts", scores, labels)
    results = frame.select("query_id", "label", query="text_a", positive="text_b", score=pl.Series(scores))
    return found, results


def _labelled_texts(frame: pl.DataFrame, vectors: Vectors) -> Found:
    classes, learnt = frame["class"].to_numpy(), frame["learnt"].to_numpy()
    found, each = metrics.compute_metrics("classification", vectors, classes, learnt)
    results = frame.select("query_id", "class", query="text", accuracy=pl.Series(each["accuracy"]))
    return found, results.filter(~pl.Series(learnt))


def _retrieval(frame: pl.DataFrame, among: Haystack, score: Scores) -> Found:
    ranked, own = _search(among, frame.height, score)
    queries, passages = frame.height, len(among.passages)
    answers = (among.owner * passages + among.place)[among.wanted]
    gains = np.isin(np.arange(queries)[:, None] * passages + ranked, answers)
    counts = np.bincount(among.owner[among.wanted], minlength=queries)
    found, each = metrics.compute_metrics("retrieval", metrics.Ranking(gains, counts, among.owner, own, among.wanted))
    head = ranked[:, :CUT]
    results = frame.select(
        "query_id",
        "query",
        *(pl.Series(name.replace("@", "_"), values) for name, values in each.items()),
        rank=pl.Series(gains.argmax(axis=1) + 1).set(~pl.Series(gains.any(axis=1)), None),
        passages=among.passages.gather(head.ravel()).reshape(head.shape).arr.to_list(),
    )
    return found, results


def _search(among: Haystack, queries: int, score: Scores) -> tuple[Integers, npt.NDArray[np.float32]]:
    """The places of the best DEPTH passages of each query, [queries, DEPTH], and the scores of those it names."""
    passages = len(among.passages)
    ranked = np.empty((queries, min(DEPTH, passages)), np.int64)
    own = np.empty(len(among.owner), np.float32)
    at_once = max(1, _SCORES_AT_ONCE // passages)
    for start in range(0, queries, at_once):
        scores = score(start, min(start + at_once, queries))
        ranked[start : start + at_once] = metrics.best(scores, ranked.shape[1])
        named = slice(*np.searchsorted(among.owner, [start, start + at_once]))
        own[named] = scores[among.owner[named] - start, among.place[named]]
    return ranked, own


def write_results(folder: Path, model: str, judgements: Sequence[Judgement]) -> Path:
    """What is behind a model's metrics, as `folder/MODEL.parquet` with RESULT's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (re.sub(r"[^\w.-]+", "_", model) + ".parquet")
    settings = {"compression": "zstd", "dictionary_pagesize_limit": _PASSAGES}
    with replacing(file) as temporary, pq.ParquetWriter(temporary, RESULT, **settings) as writer:
        for each in judgements:
            named = {"model": model, "dimension": each.dimension, "set": each.set}
            frame = each.results.with_columns(pl.lit(value).alias(column) for column, value in named.items())
            writer.write_table(_as_results(frame))
    return file


def _as_results(frame: pl.DataFrame) -> pa.Table:
    numbers = frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None)).to_arrow()
    columns: list[Any] = [
        numbers[field.name].cast(field.type) if field.name in frame.columns else pa.nulls(len(frame), field.type)
        for field in RESULT
    ]
    return pa.table(columns, RESULT)
