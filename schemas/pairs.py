"""The pair: one Arrow schema for every record of every stage.

Stages add columns and never rename them: dedup adds `cluster_id`, score adds `score`.
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

Task = Literal["pretrain", "retrieval", "sts", "classification"]

CATEGORIES: tuple[str, ...] = get_args(Category)
FORMATS: tuple[str, ...] = get_args(Format)
TASKS: tuple[str, ...] = get_args(Task)

NAME = pa.dictionary(pa.int32(), pa.string())
"""A column of few distinct names."""

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
"""What dedup writes: pairs whose positives are near-duplicates share `cluster_id`."""

SCORED = CLUSTERED.append(pa.field("score", pa.float32()))
"""What score writes: the cosine of query and positive, null where a task is not scored."""

REASON = [pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string(), nullable=False)]


def rejected(schema: pa.Schema) -> pa.Schema:
    """The schema of a stage's rejects: its input's columns, then `reason` and `detail`."""
    return pa.schema([*schema, *REASON])


REJECTED_AT_INGEST = pa.schema(
    [
        *[field.with_nullable(True) for field in PAIR],
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64()),  # counted from 1; null where the reader knows no line
        pa.field("record", pa.string()),  # what was read, as far as it could be decoded
        *REASON,
    ]
)
"""Ingest rejects what never became a pair, so it keeps the place and the raw record instead."""
