"""The Arrow schema of a pair, the record of all data stages.

Stages add columns and never rename any: dedup adds `cluster_id`, score adds `score, mismatched, rank`.
"""

from typing import Literal, get_args

import pyarrow as pa

Category = Literal[
    "news",
    "knowledge_base",
    "social_media",
    "web_page",
    "academic_paper",
    "community_qa",
    "instruction",
    "llm_generated",
]
"""The eight categories of the paper's Table 1."""

Format = Literal["title_content", "question_answer", "input_output", "prompt_response"]
"""The four data formats of the paper's Table 1."""

Task = Literal["pretrain", "retrieval", "sts", "classification", "passage"]
"""Uses of a pair. A passage is a positive alone, with an empty query: searched, but never a training pair."""

CATEGORIES: tuple[str, ...] = get_args(Category)
FORMATS: tuple[str, ...] = get_args(Format)
TASKS: tuple[str, ...] = get_args(Task)

NAME = pa.dictionary(pa.int32(), pa.string())
"""Type of a column with few distinct values."""

PAIR = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),  # 128-bit content hash, 32 hex digits
        pa.field("source", NAME, nullable=False),
        pa.field("category", NAME, nullable=False),
        pa.field("format", NAME, nullable=False),
        pa.field("task", NAME, nullable=False),
        pa.field("query", pa.string(), nullable=False),
        pa.field("positive", pa.string(), nullable=False),
        pa.field("negatives", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.float32()),
        pa.field("meta", pa.string(), nullable=False),  # a JSON object
    ]
)

CLUSTERED = PAIR.append(pa.field("cluster_id", pa.int64(), nullable=False))
"""Pairs as dedup writes them. Pairs whose positives are near-duplicates share a `cluster_id`."""

SCORED = pa.schema(
    [
        *CLUSTERED,
        pa.field("score", pa.float32()),  # cosine of query and positive
        pa.field("mismatched", pa.float32()),  # cosine of the query and a passage drawn from the corpus
        pa.field("rank", pa.int32()),  # of the positive among passages drawn from the corpus, from 1
    ]
)
"""Pairs as score writes them; the last three columns are null for tasks that are not scored."""

REASON = [pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string(), nullable=False)]


def rejected(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a stage's rejects: the columns of its input, then `reason` and `detail`."""
    return pa.schema([*schema, *REASON])


REJECTED_AT_INGEST = pa.schema(
    [
        *[field.with_nullable(True) for field in PAIR],
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64()),  # from 1; null if the reader has no line numbers
        pa.field("record", pa.string()),  # the raw record, as far as it could be decoded
        *REASON,
    ]
)
"""Rejects of ingest. As they never became pairs, they keep their place and the raw record."""
