"""The three lines with which the demo ends."""

from pathlib import Path

import small_shards
from conan_embedding.pipeline.demo.prepare import conclude
from conan_embedding.schemas.outcomes import Evaluated, Summary, Trained


def test_the_conclusion_has_the_counts_the_metrics_and_what_to_type_next(tmp_path: Path) -> None:
    with small_shards.writer(tmp_path / "ingest" / "part-00000.parquet") as writer:
        writer.received(3384)
        writer.keep(small_shards.rows(0, 3384))
    metrics = [
        {"model": model, "set": "questions", "metric": metric, "value": value}
        for model, value in {"untrained": 0.1, "bootstrap": 0.84, "finetune": 0.8675, "bm25": 0.4796}.items()
        for metric, value in {"ndcg@10": value, "recall@10": 1.0}.items()
    ]
    metrics.append({"model": "finetune", "set": "sts_test", "metric": "spearman", "value": 0.9})
    outcomes = [
        Summary("dedup", rows_in=3200, rows_out=3100),
        Summary("synthesize", rows_in=200, rows_out=160),
        Trained("bootstrap", True, "model", {}),
        Summary("convert", rows_in=3100, rows_out=3057),
        Evaluated(metrics),
    ]
    assert conclude(tmp_path, outcomes).splitlines() == [
        "Of 3,384 records, 160 of which a language model wrote, 3,057 were kept, and an encoder was trained on them, "
        "then on what it confuses.",
        "Questions among near-misses, nDCG@10: 0.840 after training on pairs, 0.868 after hard negatives; BM25 0.480.",
        f"Next: conan report {tmp_path}    or with your own files: conan init FOLDER -o recipe.yaml",
    ]
