"""Metrics that are kept in a corpus; whole evaluations are in trainer/evaluation/test_evaluate.py."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conan_embedding.evaluation import _keep_metrics


def test_evaluations_that_end_at_once_keep_all_metrics(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    rows = [
        {"model": f"model {number}", "dimension": 8, "set": "s", "metric": "m", "value": 0.5} for number in range(40)
    ]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda row: _keep_metrics(file, [row]), rows))
    kept = json.loads(file.read_text("utf-8"))
    assert sorted(row["model"] for row in kept) == sorted(row["model"] for row in rows)
    _keep_metrics(file, [{**rows[3], "model": "model 3@4", "dimension": 4, "value": 0.7}])
    replaced = [row for row in json.loads(file.read_text("utf-8")) if row["model"].startswith("model 3@")]
    assert [row["value"] for row in replaced] == [0.7]
