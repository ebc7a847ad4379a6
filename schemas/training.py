"""Arrow schemas of training records: convert writes them, the trainer reads them.

`pair_ids` lists the pairs that a record was built from.
"""

import pyarrow as pa

from .pairs import NAME

_ORIGIN = [
    pa.field("pair_ids", pa.list_(pa.string()), nullable=False),
    pa.field("source", NAME, nullable=False),
    pa.field("category", NAME, nullable=False),
]

PRETRAIN = pa.schema(
    [
        *_ORIGIN,
        pa.field("query", pa.string(), nullable=False),
        pa.field("positive", pa.string(), nullable=False),
        pa.field("cluster_id", pa.int64(), nullable=False),
    ]
)

RETRIEVAL = pa.schema(
    [
        *_ORIGIN,
        pa.field("query", pa.string(), nullable=False),
        pa.field("positives", pa.list_(pa.string()), nullable=False),
        pa.field("cluster_ids", pa.list_(pa.int64()), nullable=False),  # of each positive
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
    ]
)

STS = pa.schema(
    [
        *_ORIGIN,
        pa.field("text_a", pa.string(), nullable=False),
        pa.field("text_b", pa.string(), nullable=False),
        pa.field("label", pa.float32(), nullable=False),  # from 0 (unrelated) to 1 (same meaning)
        pa.field("original_label", pa.float32()),  # on the source's own scale
    ]
)

PASSAGES = pa.schema(
    [
        *_ORIGIN,
        pa.field("text", pa.string(), nullable=False),
        pa.field("cluster_id", pa.int64(), nullable=False),
    ]
)

TRAINING = {"pretrain": PRETRAIN, "retrieval": RETRIEVAL, "sts": STS, "passages": PASSAGES}
"""Schemas by folder under convert/. No run trains on passages: `conan mine` searches them for negatives."""
