"""The Arrow schema of what `conan synthesize` keeps: a row for each request that was answered, or that failed."""

import pyarrow as pa

from .pairs import NAME

SYNTHESIZED = pa.schema(
    [
        pa.field("source", NAME, nullable=False),
        pa.field("request", pa.string(), nullable=False),  # a hash of all that decides the answer
        pa.field("pair_id", pa.string(), nullable=False),  # of the passage
        pa.field("passage", pa.string(), nullable=False),  # as it was sent; of a translation the pair's positive
        pa.field("original", pa.string()),  # the query that a translation is of; null for other kinds
        pa.field("kind", NAME, nullable=False),
        pa.field("language", NAME, nullable=False),
        pa.field("persona", pa.string()),
        pa.field("difficulty", NAME, nullable=False),
        pa.field("length", NAME, nullable=False),
        pa.field("model", NAME, nullable=False),
        pa.field("prompt", NAME, nullable=False),  # its version
        pa.field("seed", pa.int64(), nullable=False),  # of the request
        pa.field("raw", pa.string()),  # the answer; null if the request failed
        pa.field("tokens", pa.int64(), nullable=False),  # of prompt and answer
        pa.field("answer_tokens", pa.int64(), nullable=False),
        pa.field("query", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("positive", pa.string()),  # the passage, or the answer
        pa.field("rank", pa.int32()),  # of the passage for the query, from 1
        pa.field("above", pa.list_(pa.string())),  # pair_ids of the passages that rank higher, best first
        pa.field("grade", pa.int32()),  # by the language model, from 0 to 3
    ]
)
"""`query` and what follows are null as far as a row did not come: a reject has the values up to its reason."""
