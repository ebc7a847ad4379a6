"""The negative pools."""

from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from conan_embedding.pipeline.corpus.pools import write_decisions, write_pools
from conan_embedding.pipeline.mine.methods import ceiling_sql
from conan_embedding.pipeline.report.negative_pools import render_pools
from judged_pools import POOLS, write_judged_pools
from report_pages import Page, facts_of, render


def test_pools(scored_corpus: Path) -> None:
    run = {"run_id": "a", "model_fingerprint": "f", "method": "topk", "margin": 0.95, "top_k": 3, "fingerprint": "p"}
    scores = [[0.5, 0.4], [0.9], []]
    tables = {
        "runs": [run | {"created_at": datetime(2025, 1, 1)}],
        "passages": [{"passage_id": number, "text": str(number), "cluster_id": number} for number in range(5)],
        "queries": [{"query_id": number, "text": str(number)} for number in range(3)],
        "positives": [
            {"query_id": q, "passage_id": p, "score": s} for q, p, s in ((0, 0, 0.8), (0, 1, 0.6), (1, 2, 0.7))
        ],
        "candidates": [
            {"query_id": q, "run_id": "a", "passage_ids": list(range(len(own))), "scores": own}
            for q, own in enumerate(scores)
        ],
    }
    write_pools(scored_corpus, {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}, ceiling_sql())
    html = render(render_pools, scored_corpus)
    assert "Decisions" not in html
    assert "Negative pools" in Page(html).all("h2")
    facts = facts_of(html)
    assert [facts[name] for name in ("queries", "passages", "candidates", "replacements")] == ["3", "5", "3", "0"]
    assert facts["method"] == "topk, 0.95, top 3"
    assert float(facts["mean gap to top negative"]) == pytest.approx(((0.6 - 0.5) + (0.7 - 0.9)) / 2, abs=1e-3)


def test_decisions_are_counted_by_source(scored_corpus: Path) -> None:
    write_judged_pools(scored_corpus)
    names = ["ambiguous", "ambiguous", "near_duplicate"]
    rows = [
        {"query_id": 0, "passage_id": n, "decision": name, "judge": "j", "score": 0.5} for n, name in enumerate(names)
    ]
    write_decisions(scored_corpus, pa.Table.from_pylist(rows), "{}")
    html = render(render_pools, scored_corpus)
    assert "<h3>Decisions of the judge</h3>" in html
    assert '<th scope="row">web</th><td>2</td><td>1</td>' in html
    assert facts_of(html)["candidates"] == str(
        sum(len(pool) for _, pool in POOLS.values()) - 1
    )  # the others are no candidates
