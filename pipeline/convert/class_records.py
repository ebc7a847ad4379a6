"""Turn classification pairs (text, class name) into retrieval records: texts of a class are each other's positives."""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ...schemas.settings import ConvertSettings
from ..text.match_key import match_key


def judge_classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `reason` (why this text gets no record, null if it gets one), `detail`, and the text's `key` and `class`.

    A text in two classes would be its own negative (`ambiguous_class`), a class with one text has no positive
    (`lonely_class`), and a single class has no negatives (`one_class`). `detail` lists the class names of the text.
    Texts with the same match key are the same text, as in dedup, so `好！` is never a negative of `好`. The rows of a
    class name can be in several clusters: `class` is the smallest `cluster_id` among them, so the order of rows does
    not matter, and class names with the same smallest cluster are one class.
    """
    class_names = pl.col("positive").unique().sort().str.join(", ")
    frame = frame.with_columns(key=match_key(pl.col("query")), **{"class": pl.col("cluster_id").min().over("positive")})
    has_one_class = pl.col("class").n_unique().over("key") == 1
    class_size = pl.col("key").filter(pl.col("has_one_class")).n_unique().over("class")
    frame = frame.with_columns(has_one_class=has_one_class).with_columns(class_size=class_size)
    usable_classes = frame.filter(pl.col("has_one_class") & (pl.col("class_size") > 1))["class"].n_unique()
    return frame.with_columns(
        reason=pl.when(~pl.col("has_one_class"))
        .then(pl.lit("ambiguous_class"))
        .when(pl.col("class_size") == 1)
        .then(pl.lit("lonely_class"))
        .when(pl.lit(usable_classes) < 2)
        .then(pl.lit("one_class")),
        detail=pl.format("class {}", class_names.over("key")),
    ).drop("has_one_class", "class_size")


def build_class_records(frame: pl.DataFrame, settings: ConvertSettings) -> pl.DataFrame:
    """Build one record per distinct query: positives from its own class, negatives from the others (paper §3.2).

    `frame` must have the rows to which `judge_classes` gave no reason: at least two classes, each with at least two
    texts, or no rows. Queries with the same match key get the same positives and negatives.

    Each class is shuffled into a ring, and a text's positives are the texts that follow it, so every text is a positive
    equally often. For the negatives, the texts of the other classes are divided into `class_negatives` equal parts and
    one text is drawn from each, so none is drawn twice. Where there are too few texts, a record has fewer.
    """
    texts = frame.unique("key", keep="first", maintain_order=True)
    count = texts.height  # n
    generator = np.random.default_rng(settings.seed)
    classes = texts["class"].to_numpy()
    shuffled = generator.permutation(count)
    # `order` [n] has the texts class by class. Row i of every array below belongs to the text order[i].
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    class_start, class_size = np.repeat(starts, sizes)[:, None], np.repeat(sizes, sizes)[:, None]  # [n, 1]
    step = np.arange(1, settings.class_positives + 1)
    positives = order[class_start + (np.arange(count)[:, None] - class_start + step) % np.maximum(class_size, 1)]
    # Treat `order` as circular: after the last text of a class come the texts of all other classes. `edges` [n, k + 1]
    # divides these into k parts. An empty part still draws an offset, and the mask `np.diff(edges) > 0` drops it.
    edges = np.arange(settings.class_negatives + 1) * (count - class_size) // settings.class_negatives
    offset = generator.integers(edges[:, :-1], np.maximum(edges[:, 1:], edges[:, :-1] + 1))
    negatives = order[(class_start + class_size + offset) % max(count, 1)]
    lists_by_key = texts[order].select(
        "key",
        positives=_build_lists(texts["query"], positives, step < class_size),
        negatives=_build_lists(texts["query"], negatives, np.diff(edges) > 0),
    )
    records = frame.group_by("query", maintain_order=True).agg(
        pl.col("source", "category", "key", "class").first(), pair_ids="pair_id"
    )
    return records.join(lists_by_key, on="key", maintain_order="left").with_columns(
        cluster_ids=pl.col("class").repeat_by(pl.col("positives").list.len())
    )


def _build_lists(texts: pl.Series, rows: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> pl.Series:
    """Gather the texts at `rows` [n, m] into n lists, leaving out those where `mask` [n, m] is False."""
    ends = np.cumsum(mask.sum(axis=1))
    chosen = texts.gather(rows[mask]).to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), chosen))
