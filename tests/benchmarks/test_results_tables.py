"""The tables of docs/results, from made-up runs whose metrics are known."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "results_tables.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, arm: str, seed: int, gain: float, sets: Sequence[str], questions: int = 7) -> None:
    """Write a run whose questions of set i have the value i / 100 + gain; only those of the test half count."""
    place = folder / f"{arm}-{seed}"
    place.mkdir(parents=True)
    found = {"arm": arm, "seed": seed, "changes": [], "questions": questions, "settings": {}, "cpu_seconds": 120}
    (place / "metrics.json").write_text(json.dumps(found))
    rows = [
        {
            "set": name,
            "validation": half,
            "label": float(row % 3),
            "value": number / 100 + gain + row * (name == "stsb_test"),
        }
        for number, name in enumerate(sets)
        for half in (False, True)
        for row in range(20 + number)
    ]
    frame = pl.DataFrame(rows, schema_overrides={"label": pl.Float32, "value": pl.Float32})
    frame.with_columns(value=pl.col("value") + 10.0 * pl.col("validation")).write_parquet(place / "questions.parquet")
    line = {"step": 1, "loss": 1.0, "negatives": 16.0, "mining": {"replaced": 3 + seed, "exhausted": 1}}
    (place / "log.jsonl").write_text(json.dumps({"event": "start"}) + "\n" + json.dumps(line) + "\n")


def test_arms_are_compared_with_the_baseline(tables: ModuleType, tmp_path: Path) -> None:
    sets = [*tables.PRIMARY, *tables.SECONDARY, tables.SENTENCES, tables.CLASSES]
    for arm, seed, gain in (("vanilla", 0, 0.0), ("vanilla", 1, 0.1), ("both", 0, 0.2), ("both", 1, 0.3)):
        write_run(tmp_path, arm, seed, gain, sets)
    arms = tables.by_arm(tables.read_runs(tmp_path, "test"))
    assert list(arms) == ["both", "vanilla"]
    held_out = np.mean(range(5)) / 100
    assert tables.mean_over_sets(arms["both"], tables.PRIMARY) == pytest.approx(held_out + 0.25, abs=1e-6)
    bounds = tables.difference(arms["both"], arms["vanilla"], tables.PRIMARY)
    assert (bounds.low, bounds.high, bounds.p) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.2, abs=0.01), 1)
    rows = np.arange(28)
    assert tables.metric(arms["both"], "stsb_test") == pytest.approx(spearmanr(rows, rows % 3).statistic)
    assert f"| both | 0, 1 | {held_out + 0.25:.4f} ± 0.0707 |" in "\n".join(tables.metrics_table(arms))
    assert "| both | **+0.2000** (" in "\n".join(tables.difference_table(arms, "vanilla"))
    assert "| both | 1 | 2.0 | 16 | 3, 4 | 1, 1 |" in "\n".join(tables.cost_table(arms))


def test_every_question_weighs_what_it_weighs_in_the_mean_over_sets(tables: ModuleType, tmp_path: Path) -> None:
    """The mean of the resampled differences is the difference of the means, however large the sets are."""
    for arm in ("vanilla", "cbb"):
        write_run(tmp_path, arm, 0, 0.0, ["toyhom", "csl"])
        file = tmp_path / f"{arm}-0" / "questions.parquet"
        frame = pl.read_parquet(file).filter(~pl.col("validation"))
        longer = pl.concat([frame.filter(set="toyhom")] * 30 + [frame.filter(set="csl")])
        better = longer.with_columns(
            pl.when(set="csl").then(1.0 if arm == "cbb" else 0.0).otherwise("value").alias("value")
        )
        better.write_parquet(file)
    arms = tables.by_arm(tables.read_runs(tmp_path, "test"))
    bounds = tables.difference(arms["cbb"], arms["vanilla"], ["toyhom", "csl"])
    assert bounds.low < 0.5 < bounds.high  # 21 of 621 questions differ, by 1


def test_runs_of_different_questions_are_refused(tables: ModuleType, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "vanilla", seed, 0.0, ["toyhom"], questions=seed)
    with pytest.raises(SystemExit, match="evaluated on different questions"):
        tables.read_runs(tmp_path, "test")
