"""conan evaluate: nDCG@10 and Recall@10 on retrieval sets, Spearman on sentence pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import spearmanr

from ..pipeline.corpus import CorpusError
from ..pipeline.encoder import Encoder, encode

CUT = 10
"""C-MTEB's rank for nDCG of retrieval (mteb)."""
_SCORES_AT_ONCE = 1 << 26


_OPTIONAL: dict[str, pl.DataType] = {"negatives": pl.List(pl.String), "label": pl.Float32(), "meta": pl.String()}
"""Columns of pairs that a file may do without."""


@dataclass(frozen=True)
class EvaluationSet:
    """Queries with the passages that answer them, or sentence pairs with their labels."""

    name: str
    task: str
    frame: pl.DataFrame
    passages: pl.Series


def read_sets(places: Sequence[Path]) -> list[EvaluationSet]:
    """Evaluation sets of Parquet or JSONL files, or of all such files in folders.

    A file of pairs (`query, positive, task`, as ingest writes them) is one set for each source in it; a file of records
    has `query, positives` (and `negatives`, searched among too) or `text_a, text_b, label`. Pairs of any task but sts
    ask for their positives. A query without any is left out.

    Raises:
        CorpusError: no such file, one that can't be read or has other columns, or a set that asks nothing.
    """
    files = [
        file
        for place in places
        for file in (sorted([*place.glob("*.parquet"), *place.glob("*.jsonl")]) if place.is_dir() else [place])
    ]
    if not files or not all(file.exists() for file in files):
        missing = [str(file) for file in files if not file.exists()] or [str(place) for place in places]
        raise CorpusError(f"no evaluation sets in {', '.join(missing)}; expected Parquet or JSONL files")
    found = [one for file in files for one in _read_file(file)]
    if empty := [one.name for one in found if one.frame.is_empty()]:
        raise CorpusError(f"evaluation sets with nothing to ask: {', '.join(empty)}")
    return found


def _read_file(file: Path) -> list[EvaluationSet]:
    try:
        frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_ndjson(file)
        return _sets_of(file, frame)
    except pl.exceptions.PolarsError as error:
        raise CorpusError(f"{file}: can't be read as an evaluation set: {error}") from error


def _sets_of(file: Path, frame: pl.DataFrame) -> list[EvaluationSet]:
    columns = set(frame.columns)
    none = pl.Series([], dtype=pl.String)
    if {"source", "task", "query", "positive"} <= columns:
        frame = frame.with_columns(
            pl.col("source", "task").cast(pl.String),
            *(pl.lit(None, kind).alias(name) for name, kind in _OPTIONAL.items() if name not in columns),
        )
        return [_of_pairs(str(name[0]), part) for name, part in frame.group_by("source", maintain_order=True)]
    if {"text_a", "text_b", "label"} <= columns:
        return [EvaluationSet(file.stem, "sts", frame.select("text_a", "text_b", "label").drop_nulls(), none)]
    if {"query", "positives"} <= columns:
        extra = frame["negatives"].explode().drop_nulls() if "negatives" in columns else none
        queries = frame.select("query", pl.col("positives").list.drop_nulls()).drop_nulls()
        queries = queries.filter(pl.col("positives").list.len() > 0)
        return [EvaluationSet(file.stem, "retrieval", queries, extra.cast(pl.String))]
    raise CorpusError(
        f"{file}: expected the columns source, task, query, positive; or text_a, text_b, label; or query, positives; "
        f"found {', '.join(frame.columns)}"
    )


def _of_pairs(name: str, frame: pl.DataFrame) -> EvaluationSet:
    task = str(frame["task"][0])
    if task == "sts":
        pairs = frame.select(text_a="query", text_b="positive", label="label").drop_nulls()
        return EvaluationSet(name, task, pairs, pl.Series([], dtype=pl.String))
    passages = pl.concat([frame["positive"], frame["negatives"].explode().cast(pl.String)])
    only_passages = pl.col("meta").str.contains('"passage_only":true', literal=True).fill_null(False)
    asked = frame.filter(~only_passages & (pl.col("query") != "") & (pl.col("positive") != ""))
    queries = asked.group_by("query", maintain_order=True).agg(positives="positive")
    kind = "classification" if task == "classification" else "retrieval"
    return EvaluationSet(name, kind, queries, passages.drop_nulls().filter(passages.drop_nulls() != ""))


def evaluate(encoder: Encoder, one: EvaluationSet) -> dict[str, float]:
    """The figures of a model on a set: `ndcg@10`, `recall@10`, or `spearman`."""
    if one.task == "sts":
        left, right = (encode(encoder, one.frame[side].to_arrow()) for side in ("text_a", "text_b"))
        scores = np.einsum("nd,nd->n", left, right)
        return {"spearman": float(spearmanr(scores, one.frame["label"].to_numpy()).statistic)}
    positives = one.frame["positives"]
    passages = pl.concat([positives.explode(), one.passages]).drop_nulls().unique(maintain_order=True)
    place = pl.DataFrame({"text": passages, "place": np.arange(len(passages))})
    owner = np.repeat(np.arange(one.frame.height), positives.list.len().to_numpy())
    texts = positives.explode().alias("text").to_frame()
    wanted = texts.join(place, on="text", how="left", maintain_order="left")["place"].to_numpy()
    queries = encode(encoder, one.frame["query"].to_arrow(), encoder.query_prompt)
    return retrieval_figures(queries, encode(encoder, passages.to_arrow()), owner, wanted)


def retrieval_figures(
    queries: npt.NDArray[np.float32],
    passages: npt.NDArray[np.float32],
    owner: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
) -> dict[str, float]:
    """nDCG@10 (gain 1, discount log2(rank + 1)) and Recall@10, means over queries.

    queries [n, D] and passages [m, D] are unit vectors; passage `wanted[i]` answers query `owner[i]`, and every query
    has an answer.
    """
    answers = np.unique(owner * len(passages) + wanted)
    counts = np.bincount(answers // len(passages), minlength=len(queries))
    gains = np.zeros((len(queries), CUT))
    depth = min(CUT, len(passages))
    at_once = max(1, _SCORES_AT_ONCE // len(passages))
    for start in range(0, len(queries), at_once):
        scores = queries[start : start + at_once] @ passages.T
        best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        ranked = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
        rows = np.arange(start, start + len(ranked))[:, None]
        gains[start : start + len(ranked), :depth] = np.isin(rows * len(passages) + ranked, answers)
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    ideal = np.cumsum(discounts)[np.minimum(counts, CUT) - 1]
    return {
        "ndcg@10": float((gains @ discounts / ideal).mean()),
        "recall@10": float((gains.sum(axis=1) / counts).mean()),
    }
