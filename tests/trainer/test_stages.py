"""Which records a step trains on, with alternating tasks or both together."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.training_settings import FinetuneSettings, PretrainSettings
from training_runs import FINETUNE, PRETRAIN, job_of


def test_in_turn_a_task_goes_on_where_it_was(
    training_corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are the same as with both tasks in each step, one task at a time, and none is left out."""
    from conan_embedding.trainer.stages import build_task

    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    plain = FinetuneSettings(**FINETUNE, steps=60)
    both = build_task(job_of(training_corpus, tiny, plain), world_size=1, prompts=Prompts())
    assert both.miner
    alternate_tasks = plain.model_copy(update={"alternate_tasks": True})
    one = build_task(job_of(training_corpus, tiny, alternate_tasks), world_size=1, prompts=Prompts())
    assert one.miner
    steps = [0, 0]
    for step in range(1, 61):
        found = one.build_batch(step)
        task = 0 if len(found.query_rows) else 1
        steps[task] += 1
        expected = both.build_batch(steps[task])
        parts = ("query_rows", "positive_rows", "negative_rows") if task == 0 else ("left_rows", "right_rows")
        for part in parts:
            rows = [getattr(update, part).flatten().tolist() for update in (found, expected)]
            assert [found.texts[row] for row in rows[0] if row >= 0] == [
                expected.texts[row] for row in rows[1] if row >= 0
            ]
        drawn = both.miner.rows_of(steps[0]).tolist() if task == 0 else []
        assert one.miner.rows_of(step).tolist() == drawn
        assert len(found.labels) == (0 if task == 0 else 6)
    assert sum(steps) == 60 and min(steps) > 15


def test_scores_of_a_judge_become_a_term_of_the_loss(
    training_corpus: Path, tiny: Path, judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from conan_embedding.trainer.stages import build_task

    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    judge(
        "cross-encoder-1",
        *((query, passage, query / 40 - passage / 160) for query in range(30) for passage in range(160)),
    )
    distill = {"temperature": 0.5, "weight": 0.3, "loss": "margin_mse"}
    settings = FinetuneSettings(**FINETUNE, steps=3, distill=distill)
    task = build_task(job_of(training_corpus, tiny, settings), world_size=1, prompts=Prompts())
    assert task.facts == {"queries_with_scores": 30}
    batch = task.build_batch(2)
    embeddings = torch.randn(len(batch.texts), 32, generator=torch.Generator().manual_seed(0))
    losses = task.loss(embeddings, batch, torch.tensor(0.2))
    terms = losses.terms
    assert terms["distill"] > 0
    parts = terms["retrieval"] + settings.beta * terms["sts"] + 0.3 * terms["distill"]
    assert losses.total.item() == pytest.approx(parts.item())
    assert task.loss(embeddings, batch, torch.tensor(0.1)).terms["distill"] != terms["distill"]


def test_an_update_may_be_of_one_source(training_corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conan_embedding.trainer.stages import build_task

    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    settings = PretrainSettings(**PRETRAIN, steps=30, homogeneous_batches=True)
    task = build_task(job_of(training_corpus, tiny, settings), world_size=2, prompts=Prompts())
    pairs = pl.read_parquet(training_corpus / "convert" / "pretrain" / "*.parquet")
    source_of = dict(zip(pairs["query"], pairs["source"].cast(pl.String), strict=True))
    sources = []
    for step in range(1, 31):
        update = task.build_batch(step)
        (source,) = {source_of[update.texts[row]] for row in update.query_rows}
        assert len(update.query_rows) == 16
        sources.append(source)
    assert set(sources) == {"a", "b"}
