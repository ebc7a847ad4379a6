"""Turn classification pairs (text, class name) into retrieval records: texts of a class are each other's positives."""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ...schemas.settings import ConvertSettings
from ..text.normalise import match_key


def judge_classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `reason` (why a text makes no record, null if it makes one), `detail`, and the text's `key` and `class`.

    A text in two classes would be its own negative, a class with one text has no positive, and a single class has no
    negatives. Texts with the same match key are the same text, as in dedup, so `好！` is never a negative of `好`.
    Class names that share a cluster are one class.
    """
    names = pl.col("positive").unique().sort().str.join(", ")
    frame = frame.with_columns(key=match_key(pl.col("query")), **{"class": pl.col("cluster_id").min().over("positive")})
    clear = pl.col("class").n_unique().over("key") == 1
    size = pl.col("key").filter(pl.col("clear")).n_unique().over("class")
    frame = frame.with_columns(clear=clear).with_columns(size=size)
    left = frame.filter(pl.col("clear") & (pl.col("size") > 1))["class"].n_unique()
    return frame.with_columns(
        reason=pl.when(~pl.col("clear"))
        .then(pl.lit("ambiguous_class"))
        .when(pl.col("size") == 1)
        .then(pl.lit("lonely_class"))
        .when(pl.lit(left) < 2)
        .then(pl.lit("one_class")),
        detail=pl.format("class {}", names.over("key")),
    ).drop("clear", "size")


def build_class_records(frame: pl.DataFrame, settings: ConvertSettings) -> pl.DataFrame:
    """Build one record per text: positives from its own class, negatives from the other classes (paper §3.2).

    `frame` has the rows to which `judge_classes` gave no reason: at least two classes, each with at least two texts.

    Each class is shuffled into a ring, and a text's positives are the texts that follow it, so every text is a positive
    equally often. For the negatives, the texts of the other classes are divided into `class_negatives` equal parts and
    one text is drawn from each, so none is drawn twice. Where there are too few texts, a record has fewer.
    """
    texts = frame.unique("key", keep="first", maintain_order=True)
    count = texts.height
    generator = np.random.default_rng(settings.seed)
    classes = texts["class"].to_numpy()
    shuffled = generator.permutation(count)
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    start, size = np.repeat(starts, sizes)[:, None], np.repeat(sizes, sizes)[:, None]
    step = np.arange(1, settings.class_positives + 1)
    positives = order[start + (np.arange(count)[:, None] - start + step) % np.maximum(size, 1)]
    # Seen from a class, `order` is a ring: the texts of the other classes start where its own texts end.
    edges = np.arange(settings.class_negatives + 1) * (count - size) // settings.class_negatives
    after = generator.integers(edges[:, :-1], np.maximum(edges[:, 1:], edges[:, :-1] + 1))
    negatives = order[(start + size + after) % max(count, 1)]
    shown = texts[order].select(
        "key",
        positives=_build_lists(texts["query"], positives, step < size),
        negatives=_build_lists(texts["query"], negatives, np.diff(edges) > 0),
    )
    records = frame.group_by("query", maintain_order=True).agg(
        pl.col("source", "category", "key", "class").first(), pair_ids="pair_id"
    )
    return records.join(shown, on="key", maintain_order="left").with_columns(
        cluster_ids=pl.col("class").repeat_by(pl.col("positives").list.len())
    )


def _build_lists(texts: pl.Series, rows: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]) -> pl.Series:
    """Gather the texts at `rows` [n, m] into n lists, leaving out those that are not wanted."""
    ends = np.cumsum(wanted.sum(axis=1))
    chosen = texts.gather(rows[wanted]).to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), chosen))
