"""`conan evaluate`: evaluate models on retrieval sets, sentence pairs and labelled texts."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...pipeline.corpus.atomic import replacing
from ...pipeline.encoder.encoder import Encoder, Vectors, dimension, encode
from ...pipeline.encoder.finite import check_finite
from ...pipeline.encoder.quantization import (
    binarize,
    bytes_per_vector,
    calibrate,
    calibration_rows,
    cut,
    dequantize_int8,
    quantize_int8,
)
from ...schemas.errors import CorpusError
from ...schemas.evaluate_settings import Quantization
from ...schemas.results import RESULT
from . import metrics
from .bm25 import bm25
from .evaluation_sets import EvaluationSet, Haystack, Integers, haystack
from .metrics import Floats

CUT = 10
"""How many passages the results list per query: the cutoff of C-MTEB's nDCG (mteb)."""
DEPTH = 100
"""How many ranks per query the metrics see: the largest cutoff, that of recall@100."""
RESCORE_MULTIPLIER = 4
"""A binary index rescores this many times as many passages as it returns, as the demo of
https://huggingface.co/blog/embedding-quantization does, which finds 40 to return 10."""
_SCORES_AT_ONCE = 1 << 24
"""The most scores (queries x passages) in memory at a time."""
_PASSAGES = 64 << 20
"""The size limit of a Parquet dictionary in bytes: up to it, a results file stores a passage once, not per query."""

Scores = Callable[[int, int], npt.NDArray[np.float32]]
"""Maps start and stop to the scores of all passages for these queries, [stop - start, passages]."""


@dataclass(frozen=True)
class Judgement:
    """The metrics on a set for one dimension of the vectors, and one row of results per query, text or pair.

    `results` has columns of RESULT. `each` has, by metric, the values per row of `results` of which the metric is the
    mean, [n]; NaN for rows that don't count. `precision` is what the vectors are stored as: float32, int8 or binary. It
    and `dimension` are None for BM25, which has no vectors.
    """

    set: str
    dimension: int | None
    precision: str | None
    metrics: dict[str, float]
    results: pl.DataFrame
    each: dict[str, Floats]

    @property
    def bytes_per_vector(self) -> int | None:
        """The size of a stored vector; None for BM25."""
        if self.dimension is None or self.precision is None:
            return None
        return bytes_per_vector(self.dimension, self.precision)


Found = tuple[dict[str, float], pl.DataFrame, dict[str, Floats]]
"""Metrics, results and values per row, as in Judgement."""


def evaluate(encoder: Encoder, one: EvaluationSet) -> dict[str, float]:
    """Return a model's metrics on a set, with vectors at full width; `judge` lists them."""
    return judge(encoder, one, [dimension(encoder)])[0].metrics


def widths(encoder: Encoder, dimensions: Sequence[int]) -> list[int]:
    """Return the widths to evaluate: the full width of the model's vectors, then the smaller ones in `dimensions`.

    Raises:
        CorpusError: a width is below 1 or above the full width.
    """
    full = dimension(encoder)
    if beyond := [width for width in dimensions if not 1 <= width <= full]:
        raise CorpusError(f"the model's vectors have {full} dimensions and can't be truncated to {beyond[0]}")
    return list(dict.fromkeys([full, *dimensions]))


def judge(
    encoder: Encoder, one: EvaluationSet, dimensions: Sequence[int], quantize: Sequence[Quantization] = ()
) -> list[Judgement]:
    """Evaluate a model on a set, once for each width in `dimensions` that its vectors are truncated to.

    A retrieval set is also searched with its passages' vectors quantised, at each width (see `_index`).

    - retrieval: `ndcg@10, mrr@10, recall@10, recall@100`; if queries have negatives, also `map`: the mean average
      precision among a query's own positives and negatives, as in reranking
    - sts: `spearman` (0 if all scores or all labels are equal); if the labels are 0 and 1, also `ap` and
      `best_accuracy` of the cosine, as in pair classification
    - classification: `accuracy` and `v_measure`
    - the metrics that plugins register (see metrics.py)

    Raises:
        ModelError: vectors have NaN or infinite numbers.
    """
    prompts = encoder.prompts.override(one.prompts)
    if one.task == "sts":
        left, right = (
            _encode(encoder, one, one.frame[side], "sentences", prompts.sentence) for side in ("text_a", "text_b")
        )
        found = [_sentence_pairs(one.frame, cut(left, width), cut(right, width)) for width in dimensions]
    elif one.task == "classification":
        vectors = _encode(encoder, one, one.frame["text"], "texts", prompts.sentence)
        found = [_labelled_texts(one.frame, cut(vectors, width)) for width in dimensions]
    else:
        among = haystack(one)
        queries = _encode(encoder, one, one.frame["query"], "queries", prompts.query)
        passages = _encode(encoder, one, among.passages, "passages", prompts.passage)
        judgements = []
        for width, precision in product(dimensions, ("float32", *dict.fromkeys(quantize))):
            index = _index(cut(queries, width), cut(passages, width), precision)
            judgements.append(Judgement(one.name, width, precision, *_retrieval(one.frame, among, *index)))
        return judgements
    return [Judgement(one.name, width, "float32", *each) for width, each in zip(dimensions, found, strict=True)]


def list_metrics(one: EvaluationSet) -> list[str]:
    """List the metrics that a set has, whichever model is evaluated."""
    if one.task == "sts":
        labels = one.frame["label"].to_numpy()
        return list(metrics.compute_metrics("sts", labels, labels)[0])
    if one.task == "classification":
        return [name for name, metric in metrics.METRICS.items() if metric.task == one.task]
    among = haystack(one)
    nothing_found = np.zeros((one.frame.height, min(DEPTH, len(among.passages))), bool)
    counts = np.bincount(among.owner[among.wanted], minlength=one.frame.height)
    ranking = metrics.Ranking(nothing_found, counts, among.owner, np.zeros(len(among.owner)), among.wanted)
    return list(metrics.compute_metrics("retrieval", ranking)[0])


def _encode(encoder: Encoder, one: EvaluationSet, texts: pl.Series, kind: str, prompt: str) -> Vectors:
    vectors = encode(encoder, texts.to_arrow(), prompt)
    check_finite(f"evaluation set {one.name}", vectors.__getitem__, texts, kind)
    return vectors


def judge_bm25(one: EvaluationSet) -> Judgement:
    """Evaluate BM25 on a retrieval set."""
    among = haystack(one)
    score = bm25(among.passages.to_list(), one.frame["query"].to_list())
    return Judgement(one.name, None, None, *_retrieval(one.frame, among, score))


def _index(queries: Vectors, passages: Vectors, precision: str) -> tuple[Scores, Scores | None]:
    """Return the scores of an index that stores passages in a precision and, if it searches by others first, those.

    Queries stay float32. An int8 index is calibrated on a sample of its passages and scores them as dequantised. A
    binary index finds passages by Hamming distance, which also needs the queries' bits, and rescores the nearest by the
    inner product of the query and the passage's bits (Yamada et al. 2021, arXiv 2106.00882, §3).
    """
    if precision == "int8":
        ranges = calibrate(passages[calibration_rows(len(passages))])
        passages = dequantize_int8(quantize_int8(passages, ranges), ranges)
    elif precision == "binary":
        passages = binarize(passages)
        return _inner_products(queries, passages), _inner_products(binarize(queries), passages)
    return _inner_products(queries, passages), None


def _inner_products(queries: Vectors, passages: Vectors) -> Scores:
    return lambda start, stop: queries[start:stop] @ passages.T


def _sentence_pairs(frame: pl.DataFrame, left: Vectors, right: Vectors) -> Found:
    scores, labels = np.einsum("nd,nd->n", left, right), frame["label"].to_numpy()
    found, each = metrics.compute_metrics("sts", scores, labels)
    results = frame.select("query_id", "label", query="text_a", positive="text_b", score=pl.Series(scores))
    return found, results, each


def _labelled_texts(frame: pl.DataFrame, vectors: Vectors) -> Found:
    classes, learnt = frame["class"].to_numpy(), frame["learnt"].to_numpy()
    found, each = metrics.compute_metrics("classification", vectors, classes, learnt)
    results = frame.select("query_id", "class", query="text", accuracy=pl.Series(each["accuracy"]))
    return found, results.filter(~pl.Series(learnt)), {name: values[~learnt] for name, values in each.items()}


def _retrieval(frame: pl.DataFrame, among: Haystack, score: Scores, nearness: Scores | None = None) -> Found:
    ranked, own = _search(among, frame.height, score, nearness)
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
    return found, results, each


def _search(
    among: Haystack, queries: int, score: Scores, nearness: Scores | None
) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Search the passages for each query; given `nearness`, only rank those that it finds.

    Returns the indices of its best DEPTH passages, [queries, DEPTH], and the scores of the passages that it names (its
    positives and negatives), in the order of the haystack.
    """
    passages = len(among.passages)
    ranked = np.empty((queries, min(DEPTH, passages)), np.int64)
    own = np.empty(len(among.owner), np.float32)
    at_once = max(1, _SCORES_AT_ONCE // passages)
    for start in range(0, queries, at_once):
        stop = min(start + at_once, queries)
        scores = score(start, stop)
        places = scores if nearness is None else _rescored(nearness(start, stop), scores)
        ranked[start:stop] = metrics.best(places, ranked.shape[1])
        named = slice(*np.searchsorted(among.owner, [start, start + at_once]))
        own[named] = scores[among.owner[named] - start, among.place[named]]
    return ranked, own


def _rescored(nearness: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Order passages as an index that rescores the nearest RESCORE_MULTIPLIER × k for its best k; [queries, passages].

    The first CUT are what a search for CUT finds, the others what a search for DEPTH finds; the rest are -inf.
    """
    order = np.full_like(scores, -np.inf)
    for best_place, k in ((0, DEPTH), (CUT, CUT)):
        nearest = metrics.best(nearness, min(RESCORE_MULTIPLIER * k, scores.shape[1]))
        ranked = metrics.best(np.take_along_axis(scores, nearest, axis=1), min(k, nearest.shape[1]))
        found = np.take_along_axis(nearest, ranked, axis=1)
        np.put_along_axis(order, found, best_place - np.arange(found.shape[1], dtype=np.float32), axis=1)
    return order


def write_results(folder: Path, model: str, judgements: Sequence[Judgement]) -> Path:
    """Write the results per query behind a model's metrics to `folder/MODEL.parquet`, with the columns of RESULT."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _results_file(folder, model)
    settings = {"compression": "zstd", "dictionary_pagesize_limit": _PASSAGES}
    with replacing(file) as temporary, pq.ParquetWriter(temporary, RESULT, **settings) as writer:
        for each in judgements:
            named = {"model": model, "dimension": each.dimension, "precision": each.precision, "set": each.set}
            frame = each.results.with_columns(pl.lit(value).alias(column) for column, value in named.items())
            writer.write_table(_as_results(frame))
    return file


def drop_results(folder: Path, model: str, sets: Collection[str]) -> None:
    """Delete a model's results on these sets."""
    file = _results_file(folder, model)
    if not file.exists():
        return
    kept = pq.read_table(file, filters=~pc.field("set").isin(sorted(sets)))
    if kept.num_rows:
        with replacing(file) as temporary:
            pq.write_table(kept, temporary, compression="zstd", dictionary_pagesize_limit=_PASSAGES)
    else:
        file.unlink()


def _results_file(folder: Path, model: str) -> Path:
    return folder / (re.sub(r"[^\w.-]+", "_", model) + ".parquet")


def _as_results(frame: pl.DataFrame) -> pa.Table:
    numbers = frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None)).to_arrow()
    columns: list[Any] = [
        numbers[field.name].cast(field.type) if field.name in frame.columns else pa.nulls(len(frame), field.type)
        for field in RESULT
    ]
    return pa.table(columns, RESULT)
