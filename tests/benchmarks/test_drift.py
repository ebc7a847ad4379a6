"""The verdicts of benchmarks/drift.py on recorded scores, against those worked out by hand."""

import importlib.util
from pathlib import Path

import polars as pl
import pytest


def test_drift_is_told_from_learning() -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "drift.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    drift = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drift)
    # Random pairs fall from 0.7 to 0.5. Negatives fall with them (query 1), by much more (2), stay (3); 4 is seen once.
    before, after = {1: 0.88, 2: 0.88, 3: 0.88, 4: 0.88}, {1: 0.68, 2: 0.45, 3: 0.88}
    rows = [
        {
            "step": step,
            "query_id": query,
            "round": 0,
            "positive": 0.9,
            "negatives": [score, score],
            "random_pairs": pairs,
        }
        for step, scores, pairs in ((1, before, 0.7), (2, after, 0.5))
        for query, score in scores.items()
    ]
    (found,) = drift.checks(pl.DataFrame(rows), every=2)
    assert (found.step, found.eligible) == (2, 3)
    assert found.paper == 2  # 1.15 · 0.68 and 1.15 · 0.45 are below 0.88
    assert found.drift == 2  # 1.15 · (0.88 - 0.2) is, too
    assert found.rescaled == 1 + 1  # (0.88 - 0.7) / 0.3 = 0.6; then 0.36, -0.1 and 0.76
    assert found.v2 == pytest.approx(2 / 3)
    assert found.below_ceiling == pytest.approx(2 / 7)
