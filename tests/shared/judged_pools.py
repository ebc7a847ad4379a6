"""Small pools to judge: queries, passages, positives and candidates, in any numbering."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from conan_embedding.pipeline.corpus.pools import FILE, write_pools
from conan_embedding.pipeline.mine.methods import ceiling_sql

POOLS = {
    "天气怎样": (["今天天气很好"], ["上海天气", "北京天气好", "股市"]),
    "怎样泡茶": (["泡绿茶", "好茶怎样泡"], ["茶", "绿茶很好", "今天天气很好"]),
    "股市": (["今天股市"], ["北京股市怎样", "股市", "上海天气"]),
    "问": (["答"], []),
}
"""Positives and candidates of each query; the characters are those of tests/shared/model_folders.py."""

Judged = dict[tuple[str, str], float]


def write_judged_pools(
    corpus: Path,
    pools: Mapping[str, tuple[Sequence[str], Sequence[str]]] = POOLS,
    first: int = 0,
    source: str | None = "web",
    clusters: Mapping[str, list[int]] = {},
) -> None:
    """Write pools whose candidates are in the given order, with cosines that fall from 0.9; ids begin at `first`.

    Each passage has a cluster of its own, unless `clusters` has others.
    """
    texts = sorted({text for positives, candidates in pools.values() for text in [*positives, *candidates]})
    passage = {text: first + place for place, text in enumerate(texts)}
    members = [clusters.get(text, [100 + number]) for text, number in passage.items()]
    ids = [first + place for place in range(len(pools))]
    run = {"run_id": "r", "model_fingerprint": "m", "method": "topk-percpos", "margin": 0.95, "top_k": 3}
    run |= {"fingerprint": f"{sorted(pools)}{first}", "created_at": np.datetime64("2025-01-01", "us").item()}
    positives = [(number, passage[text]) for number, (own, _) in zip(ids, pools.values(), strict=True) for text in own]
    scores = [[0.9 - 0.1 * place for place in range(len(candidates))] for _, candidates in pools.values()]
    write_pools(
        corpus,
        {
            "runs": pa.Table.from_pylist([run]),
            "passages": pa.table(
                {
                    "passage_id": list(passage.values()),
                    "text": texts,
                    "source": pa.array([source] * len(texts), pa.string()),
                    "cluster_id": [min(each) for each in members],
                    "cluster_ids": members,
                }
            ),
            "queries": pa.table(
                {"query_id": ids, "text": list(pools), "source": pa.array([source] * len(ids), pa.string())}
            ),
            "positives": pa.table(
                {
                    "query_id": [query for query, _ in positives],
                    "passage_id": [each for _, each in positives],
                    "score": pa.array([0.95] * len(positives), pa.float32()),
                }
            ),
            "candidates": pa.table(
                {
                    "query_id": ids,
                    "run_id": ["r"] * len(ids),
                    "passage_ids": pa.array(
                        [[passage[text] for text in candidates] for _, candidates in pools.values()],
                        pa.list_(pa.int64()),
                    ),
                    "scores": pa.array(scores, pa.list_(pa.float32())),
                }
            ),
        },
        ceiling_sql(),
    )


def asked_pairs(candidates: int) -> list[tuple[str, str]]:
    """The pairs of POOLS that are judged."""
    return sorted((query, text) for query, (own, pool) in POOLS.items() for text in [*own, *pool[:candidates]])


def read_judgements(corpus: Path, judge: str | None = None) -> Judged:
    """Read the view `judgements`, with texts in place of ids."""
    with duckdb.connect(str(corpus / FILE), read_only=True) as connection:
        rows = connection.execute(
            "SELECT q.text, p.text, score FROM judgements JOIN mined_queries q USING (query_id) "
            "JOIN passages p USING (passage_id) WHERE ? IS NULL OR judge = ?",
            [judge, judge],
        ).fetchall()
    found = {(query, passage): score for query, passage, score in rows}
    assert len(found) == len(rows)
    return found
