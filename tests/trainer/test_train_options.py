"""The effect of settings on a run: ZeRO stages, precision, validation, temperature, TensorBoard, the exported model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.schemas.settings import EncoderSettings
from conan_embedding.trainer.evaluation.evaluate import evaluate
from conan_embedding.trainer.evaluation.validation import validation_sets
from conan_embedding.trainer.job import Job
from conan_embedding.trainer.model.embedding_model import EmbeddingModel, load
from training_runs import SHORT, log_of, losses_of, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("training")]


def test_the_best_model_on_the_validation_sets_is_kept(runs: dict[str, Job]) -> None:
    job = runs["validated"]
    lines = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if line.get("event") == "validation"]
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    means = [line["mean"] for line in found]
    assert [line["best"] for line in found] == [
        mean > max(means[:place], default=-1) for place, mean in enumerate(means)
    ]
    assert not all(line["best"] for line in found)
    kept = json.loads((job.best_folder / "best.json").read_text())
    best = found[int(np.argmax(means))]
    assert kept == {"step": best["step"], "mean": best["mean"], "sets": {"sets": [], "queries": 20}}
    encoder = load_encoder(EncoderSettings(model=str(job.best_folder)))
    for one in validation_sets(job):
        assert one.frame.height == 20
        assert evaluate(encoder, one) == pytest.approx(best["metrics"][one.name], abs=1e-5)
    headlines = best["metrics"]["asked"]["ndcg@10"], best["metrics"]["alike"]["spearman"]
    assert best["mean"] == pytest.approx(np.mean(headlines))


def test_a_learnt_temperature_moves_and_is_logged(runs: dict[str, Job]) -> None:
    temperatures = [line["temperature"] for line in log_of(runs["validated"])]
    assert temperatures[0] != pytest.approx(0.1, rel=1e-3)
    assert len(set(temperatures)) == 8
    assert "temperature" not in log_of(runs["plain"])[0]


def test_tensorboard_has_what_the_log_has(runs: dict[str, Job]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = runs["validated"]
    events = accumulator.EventAccumulator(str(job.folder / "tensorboard")).Reload()
    for name in ("loss", "temperature", "tokens_per_second", "validation/metrics/asked/ndcg@10"):
        assert name in events.Tags()["scalars"]
    assert [one.value for one in events.Scalars("loss")] == pytest.approx(losses_of(job), rel=1e-6)
    assert [one.step for one in events.Scalars("loss")] == [line["step"] for line in log_of(job)]


def test_without_sentence_pairs_their_loss_is_zero(runs: dict[str, Job]) -> None:
    for line in log_of(runs["no sentences"]):
        assert line["sts"] == 0
        assert line["loss"] == line["retrieval"] > 0


def test_in_turn_one_loss_is_zero(runs: dict[str, Job]) -> None:
    losses = [(line["retrieval"] > 0, line["sts"] > 0) for line in log_of(runs["in turn"])]
    assert set(losses) == {(True, False), (False, True)}


def test_stages_of_zero_share_memory_and_nothing_else(runs: dict[str, Job]) -> None:
    one = weights_of(runs["zero 1"].model_folder)
    for name in ("zero 0, chunked", "zero 2", "zero 3"):
        assert losses_of(runs[name]) == pytest.approx(losses_of(runs["zero 1"]), abs=5e-6)
        other = weights_of(runs[name].model_folder)
        assert other.keys() == one.keys()
        assert all(torch.allclose(one[weight], other[weight], atol=1e-6) for weight in one)
    started = [
        json.loads((runs[name].folder / "log.jsonl").read_text().split("\n")[0]) for name in ("zero 1", "zero 3")
    ]
    assert started[0] == started[1] and started[0]["parameters"] > 20_000
    validated = json.loads((runs["zero 3"].best_folder / "best.json").read_text())
    encoder = load_encoder(EncoderSettings(model=str(runs["zero 1"].model_folder)))
    metrics = {each.name: evaluate(encoder, each) for each in validation_sets(runs["zero 3"])}
    headlines = metrics["asked"]["ndcg@10"], metrics["alike"]["spearman"]
    assert (validated["step"], validated["mean"]) == (SHORT["steps"], pytest.approx(np.mean(headlines), abs=1e-4))


def test_half_precision_keeps_two_digits_of_all_chunks(runs: dict[str, Job]) -> None:
    """Under ZeRO 3, which releases weights between chunks. Over more steps, the runs would diverge."""
    half, whole = log_of(runs["zero 3, bf16"]), log_of(runs["zero 1"])
    assert len(half) == SHORT["steps"]
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in half[:4]] == pytest.approx([line[key] for line in whole[:4]], rel=0.01), key


def test_layout_and_chunks_change_no_update(runs: dict[str, Job]) -> None:
    """Without dropout, which each rank draws for its own texts."""
    assert losses_of(runs["chunked"]) == pytest.approx(losses_of(runs["zero 1"]), abs=1e-5)


def test_mixed_precision_exports_the_optimizers_weights(runs: dict[str, Job], tiny: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    last = runs["bf16"].checkpoints[-1]
    optimizers = get_fp32_state_dict_from_zero_checkpoint(str(last.parent), last.name)
    exported = dict(load(runs["bf16"].model_folder)[0].named_parameters())
    assert len(optimizers) == len(exported) - 2  # without BERT's pooler, which is not trained
    for name, weights in optimizers.items():
        assert torch.equal(exported[name], weights), name
    trained = optimizers["encoder.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(trained, trained.bfloat16().float())
    assert losses_of(runs["bf16"]) != losses_of(runs["pretrain"])[:3]


def test_what_is_exported_gives_the_trainers_vectors(
    runs: dict[str, Job], tiny: Path, shared_training_corpus: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    scored = pl.read_parquet(shared_training_corpus / "convert" / "sts" / "part-00000.parquet")
    texts = pl.concat([scored["text_a"], scored["text_b"]]).to_list()[:50]
    for name, dimension in (("pretrain", 24), ("finetune", None)):
        model, tokenizer = load(tiny, dimension, "mean", 32)
        saved = torch.load(runs[name].checkpoints[-1] / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        model.load_state_dict(saved)
        expected = vectors(model, tokenizer, texts)
        folder = runs[name].model_folder
        loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        assert np.abs(loaded.encode(texts) - expected).max() < 1e-5
        units = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        encoder = load_encoder(EncoderSettings(model=str(folder)))
        assert np.abs(encode(encoder, texts) - units).max() < 1e-5


def vectors(model: EmbeddingModel, tokenizer: Any, texts: list[str]) -> np.ndarray:
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"]).numpy()
