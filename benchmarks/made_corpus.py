"""A generated corpus of random characters, in the state after `conan mine`, for benchmarks."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from conan_embedding.pipeline.corpus.pools import write_pools
from conan_embedding.pipeline.mine.methods import ceiling_sql

CHARACTERS = np.array([chr(point) for point in range(0x4E00, 0x4E00 + 3_000)])
POOL = 30  # candidates of each query


def write_corpus(corpus: Path, queries: int, seed: int = 0) -> None:
    """Write convert/retrieval, convert/sts with twice as many sentence pairs, and pools.duckdb."""
    random = np.random.default_rng(seed)
    asked, passages = make_texts(random, queries, 16), make_texts(random, 3 * queries, 220)
    ids, passage_ids = np.arange(queries), np.arange(3 * queries)
    # No positives in the pools: negatives are shared within a batch, and other libraries would not mask a negative of
    # one query that is the positive of another.
    pools = [random.choice(passage_ids[queries:], POOL, replace=False).tolist() for _ in range(queries)]
    source = {"source": "made", "category": "news"}
    retrieval = {
        "query": asked,
        "positives": [[text] for text in passages[:queries]],
        "cluster_ids": [[row] for row in range(queries)],
        "negatives": pl.Series([[]] * queries, dtype=pl.List(pl.String)),
        "pair_ids": [[f"r{row}"] for row in range(queries)],
    }
    left, right = (make_texts(random, 2 * queries, 25) for _ in range(2))
    sts = {
        "text_a": left,
        "text_b": right,
        "label": pl.Series(random.integers(0, 6, 2 * queries) / 5, dtype=pl.Float32),
        "pair_ids": [[f"s{row}"] for row in range(2 * queries)],
    }
    for kind, columns in {"retrieval": retrieval, "sts": sts}.items():
        folder = corpus / "convert" / kind
        folder.mkdir(parents=True)
        pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in source.items()}).write_parquet(
            folder / "part-00000.parquet"
        )
    made = {
        "run_id": "made",
        "model_fingerprint": "",
        "method": "topk",
        "margin": 0.0,
        "top_k": POOL,
        "fingerprint": "",
    }
    tables = {
        "runs": pa.Table.from_pylist([made | {"created_at": datetime(2025, 1, 1)}]),
        "passages": pa.table({"passage_id": passage_ids, "text": passages, "cluster_id": passage_ids}),
        "queries": pa.table({"query_id": ids, "text": asked}),
        "positives": pa.table({"query_id": ids, "passage_id": ids, "score": np.ones(queries, np.float32)}),
        "candidates": pa.table(
            {
                "query_id": ids,
                "run_id": ["made"] * queries,
                "passage_ids": pools,
                "scores": [[0.5] * POOL] * queries,
            }
        ),
    }
    write_pools(corpus, tables, ceiling_sql())


def make_texts(random: np.random.Generator, count: int, median: int) -> list[str]:
    """Generate texts with log-normal lengths in characters (one token each); 5 % are over 3.7 times the median."""
    lengths = np.clip(random.lognormal(np.log(median), 0.8, count), 4, 40 * median).astype(int)
    return ["".join(random.choice(CHARACTERS, length)) for length in lengths]
