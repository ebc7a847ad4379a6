"""What --dry-run says, against models that are actually built and the numbers in the papers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conan_embedding.pipeline.corpus.folder import read_footer
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.schemas.outcomes import TrainingPlan
from conan_embedding.schemas.training_settings import FinetuneSettings, LoRASettings, PretrainSettings
from conan_embedding.trainer.dry_run import activation_bytes, count_parameters, plan_training, state_bytes
from conan_embedding.trainer.job import TrainingError, make_job
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.model.lora import add_adapters
from model_folders import write_plain
from tiny_decoders import config_of, untrained
from transformers import AutoConfig, BertConfig


def test_the_papers_model_has_326_million_parameters() -> None:
    """Paper §3.1: BERT-large with a Chinese vocabulary of 21,128 tokens, and a linear layer of width 1,792."""
    config = BertConfig(
        vocab_size=21_128, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    assert round(count_parameters(config, 1792)[0] / 1e6) == 326


@pytest.mark.parametrize("dimension", [None, 24])
def test_parameters_are_those_that_are_trained(dimension: int | None, tmp_path: Path) -> None:
    texts = pa.chunked_array([["一丁七万", "hello"]])
    folder = tiny_bert(tmp_path / "tiny", texts=texts, layers=2, hidden=32, heads=2, intermediate=64)
    model, _ = load(folder, dimension)
    trained = sum(each.numel() for name, each in model.named_parameters() if "pooler" not in name)
    assert count_parameters(AutoConfig.from_pretrained(folder), dimension) == (trained, 0)


def test_of_t5_only_the_encoder_is_counted(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", "t5")
    model, _ = load(folder)
    config = AutoConfig.from_pretrained(folder)
    assert count_parameters(config, None) == (sum(each.numel() for each in model.parameters()), 0)


@pytest.mark.parametrize(("targets", "layers"), [([], 7), (["q_proj", "v_proj"], 2)])
def test_adapters_are_trained_and_all_else_is_frozen(targets: list[str], layers: int) -> None:
    lora, config = LoRASettings(rank=4, targets=targets), config_of("llama", 100)
    encoder = untrained("llama")
    whole = sum(each.numel() for each in encoder.parameters())
    add_adapters(encoder, lora)
    adapters = [each for each in encoder.parameters() if each.requires_grad]
    assert len(adapters) == 2 * config.num_hidden_layers * layers
    trained = sum(each.numel() for each in adapters)
    assert count_parameters(config, 12, lora) == (trained + 12 * 33, whole)


def test_attention_is_refused_before_training(training_corpus: Path, tiny: Path) -> None:
    settings = PretrainSettings(projection_dim=24, matryoshka_dims=[24], attention="soft")
    shards = {"pairs": sorted((training_corpus / "convert" / "pretrain").glob("*.parquet"))}
    with pytest.raises(ModelError, match=r"pretrain.attention: .*of type bert"):
        plan_training(make_job(training_corpus, "pretrain", str(tiny), settings, shards), 1)


def test_widths_beyond_the_vectors_are_refused(training_corpus: Path, tiny: Path) -> None:
    for name, settings in (
        ("pretrain", PretrainSettings(projection_dim=24, matryoshka_dims=[24, 25])),
        ("finetune", FinetuneSettings(matryoshka_dims=[32, 33])),
    ):
        shards = {kind: sorted((training_corpus / "convert" / kind).glob("*.parquet")) for kind in ("retrieval", "sts")}
        shards["pairs"] = sorted((training_corpus / "convert" / "pretrain").glob("*.parquet"))
        job = make_job(training_corpus, name, str(tiny), settings, shards)
        with pytest.raises(TrainingError, match=rf"have (24|32) dimensions, but {name}.matryoshka_dims lists (25|33)"):
            plan_training(job, 1)


def test_states() -> None:
    assert state_bytes(100, False, 1, 1) == sum(
        each.numel() * each.element_size() for each in _adamw_states(torch.zeros(100, requires_grad=True))
    )
    # ZeRO, arXiv 1910.02054, figure 1: 7.5 billion parameters on 64 devices take 120, 31.4, 16.6 and 1.9 GB by stage.
    assert state_bytes(7_500_000_000, True, 0, 64) / 1e9 == pytest.approx(120)
    assert state_bytes(0, True, 2, 64, frozen=640) == 2 * 640
    assert state_bytes(0, False, 3, 64, frozen=640) == 4 * 10
    assert state_bytes(7_500_000_000, True, 1, 64) / 1e9 == pytest.approx(31.4, abs=0.05)
    assert state_bytes(7_500_000_000, True, 2, 64) / 1e9 == pytest.approx(16.6, abs=0.05)
    assert state_bytes(7_500_000_000, True, 3, 64) / 1e9 == pytest.approx(1.9, abs=0.05)


def _adamw_states(weight: torch.Tensor) -> list[torch.Tensor]:
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    assert weight.grad is not None
    averages = [each for each in optimizer.state[weight].values() if each.numel() > 1]
    return [weight, weight.grad, *averages]


def test_activations() -> None:
    config = BertConfig(hidden_size=64, num_hidden_layers=3)
    assert activation_bytes(config, 10, True, False) == 3 * 34 * 10 * 64
    assert activation_bytes(config, 10, False, False) == 2 * 3 * 34 * 10 * 64
    assert activation_bytes(config, 10, True, True) == 3 * 2 * 10 * 64 + 34 * 10 * 64


def test_the_plan_of_a_job(training_corpus: Path, tiny: Path, shards: Callable[[Path, str], list[Path]]) -> None:
    """In pre-training, the batch grows with the number of processes; in fine-tuning, it does not."""
    pairs = {"pairs": shards(training_corpus, "pretrain")}
    records = sum(read_footer(shard).rows_out for shard in pairs["pairs"])
    settings = PretrainSettings(batch_size=2, epochs=3, projection_dim=24, matryoshka_dims=[24], max_length=16)
    alone, two = (
        plan_training(make_job(training_corpus, "pretrain", str(tiny), settings, pairs), count) for count in (1, 2)
    )
    assert (alone.records, alone.steps, alone.texts_per_step) == (records, round(3 * records / 2), 4)
    assert (two.steps, two.texts_per_step) == (round(3 * records / 4), 8)
    assert (alone.draws_per_record, alone.warnings) == (round(2 * alone.steps / records, 2), [])
    assert alone.parameters == two.parameters == count_parameters(AutoConfig.from_pretrained(tiny), 24)[0]
    assert not (training_corpus / "train").exists()

    found = {"retrieval": shards(training_corpus, "retrieval"), "sts": shards(training_corpus, "sts")}
    settings = FinetuneSettings(
        retrieval_batch=3, negatives=5, sts_batch=7, steps=11, max_length=16, matryoshka_dims=[32]
    )
    tuned = plan_training(make_job(training_corpus, "finetune", str(tiny), settings, found), 2)
    assert (tuned.steps, tuned.texts_per_step) == (11, 3 * (1 + 1 + 5) + 2 * 7)


@pytest.mark.parametrize("alternates", [False, True])
def test_a_plan_says_how_often_a_query_is_drawn(
    alternates: bool, training_corpus: Path, tiny: Path, shards: Callable[[Path, str], list[Path]]
) -> None:
    """If tasks alternate, every second step draws no query. DHNM needs two draws, and is warned about below that."""
    found = {"retrieval": shards(training_corpus, "retrieval"), "sts": shards(training_corpus, "sts")}
    queries = sum(read_footer(shard).rows_out for shard in found["retrieval"])
    base = {"retrieval_batch": queries, "alternate_tasks": alternates, "matryoshka_dims": [32]}

    def plan(**changes: Any) -> TrainingPlan:
        settings = FinetuneSettings.model_validate(base | changes)
        return plan_training(make_job(training_corpus, "finetune", str(tiny), settings, found), 1)

    enough = 4 if alternates else 2
    assert (plan(steps=enough).draws_per_record, plan(steps=enough).warnings) == (2.0, [])
    seldom = plan(steps=enough - 1)
    assert seldom.draws_per_record == 2.0 * (enough - 1) / enough
    assert [warning.partition(",")[0] for warning in seldom.warnings] == [
        f"a query is drawn {seldom.draws_per_record:.2g} times on average"
    ]
    assert plan(steps=1, hard_negative_mining={"enabled": False}).warnings == []
