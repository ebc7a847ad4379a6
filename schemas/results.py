"""What `conan evaluate` keeps of each query, sentence pair or labelled text: columns that don't apply are null."""

import pyarrow as pa

RESULT = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("dimension", pa.int64()),  # null where the model has no vectors
        pa.field("set", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("ndcg_10", pa.float32()),
        pa.field("mrr_10", pa.float32()),
        pa.field("recall_10", pa.float32()),
        pa.field("recall_100", pa.float32()),
        pa.field("map", pa.float32()),  # among the query's own candidates
        pa.field("rank", pa.int64()),  # of the first answer, from 1; null beyond 100
        pa.field("passages", pa.list_(pa.string())),  # the first ten, best first
        pa.field("positive", pa.string()),  # of a sentence pair, the other one
        pa.field("label", pa.float32()),
        pa.field("score", pa.float32()),  # its cosine
        pa.field("class", pa.string()),
        pa.field("accuracy", pa.float32()),  # share of the experiments that told the class
    ]
)
