"""The section on what language models have written."""

from pathlib import Path
from typing import Any

import polars as pl
from conan_embedding.pipeline.corpus import catalog
from conan_embedding.pipeline.corpus.synthesis import ANSWERS
from conan_embedding.pipeline.report.synthesis import render_synthesis
from conan_embedding.pipeline.synthesize.stage import write_answers
from conan_embedding.schemas.synthesis import SYNTHESIZED
from report_pages import Page, render

REASONS = [None, None, "failed", "unparsed", "refusal", "too_long", "duplicate_within_passage", "round_trip", "grade"]


def make_row(number: int, reason: str | None) -> dict[str, Any]:
    texts = dict.fromkeys(SYNTHESIZED.names, "x") | {"source": "qa", "persona": "<a> nurse" if number % 2 else None}
    numbers = {"seed": 1, "tokens": 100, "answer_tokens": 10, "rank": 1, "grade": 3, "above": []}
    gone = {"failed": ["raw", "query"], "unparsed": ["query"]}.get(str(reason), [])
    return texts | numbers | dict.fromkeys(gone) | {"kind": "question", "reason": reason, "detail": reason}


def test_what_is_left_after_each_check(scored_corpus: Path) -> None:
    assert render(render_synthesis, scored_corpus) == ""
    rows = pl.DataFrame([make_row(number, reason) for number, reason in enumerate(REASONS)], infer_schema_length=None)
    write_answers("qa", rows, "", "f", scored_corpus / ANSWERS / "part-00000.parquet")
    html = render(render_synthesis, scored_corpus)
    assert Page(html).all("h3") == ["By source", "By kind", "By persona"]
    assert "&lt;a&gt; nurse" in html and "<a>" not in html
    total = catalog.query(scored_corpus, "SELECT sum(COLUMNS(* EXCLUDE (source, kind, persona))) FROM synthesis_funnel")
    assert list(total.to_pylist()[0].values()) == [9, 8, 7, 5, 4, 3, 2, 810, 90]
