"""Results of `conan evaluate`: a row per query, sentence pair or classified text; columns that don't apply are null."""

import pyarrow as pa

RESULT = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("dimension", pa.int64()),  # null for BM25
        pa.field("precision", pa.string()),  # float32, int8 or binary; null for BM25
        pa.field("set", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("ndcg_10", pa.float32()),
        pa.field("mrr_10", pa.float32()),
        pa.field("recall_10", pa.float32()),
        pa.field("recall_100", pa.float32()),
        pa.field("map", pa.float32()),  # among the query's own positives and negatives
        pa.field("rank", pa.int64()),  # of the first positive found, from 1; null beyond 100
        pa.field("passages", pa.list_(pa.string())),  # the ten best, best first
        pa.field("positive", pa.string()),  # the second sentence of a pair
        pa.field("label", pa.float32()),
        pa.field("score", pa.float32()),  # cosine of a sentence pair
        pa.field("class", pa.string()),
        pa.field("accuracy", pa.float32()),  # share of the experiments that predicted the class
    ]
)
