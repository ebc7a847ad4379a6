"""Adapters: what is trained, what is exported, and the check that something was learnt."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conan_embedding.schemas.errors import MissingExtraError, RecipeError
from conan_embedding.schemas.training_settings import LoRASettings
from conan_embedding.trainer.job import TrainingError
from conan_embedding.trainer.model import lora as module
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import EmbeddingModel, load
from conan_embedding.trainer.model.export import export
from conan_embedding.trainer.model.lora import add_adapters, check_export, find_targets, merged_weights
from tiny_decoders import save_decoder, untrained
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

TEXTS = ["今天天气好", "天气", "好天"]
LORA = LoRASettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder"), "gemma3_text", "".join(TEXTS))


def learn(encoder: PreTrainedModel) -> None:
    """Give each adapter something to add."""
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def hidden(encoder: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = encoder(input_ids=torch.arange(3, 11)[None]).last_hidden_state
    return states


def test_adapters_are_trained_and_nothing_else(tmp_path: Path) -> None:
    encoder = untrained("llama")
    names, before = dict(encoder.named_parameters()), hidden(encoder)
    add_adapters(encoder, LORA)
    assert torch.equal(hidden(encoder), before)
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 2 * 7  # two matrices for each of the seven linear layers of both layers
    assert all("lora_" in name for name in trained)
    assert sum(each.numel() for each in trained.values()) == 2 * 4 * (64 + 48 + 48 + 64 + 3 * 80)

    learn(encoder)
    merged = merged_weights(encoder)
    assert set(merged) == set(names)
    layer = encoder.get_submodule("layers.0.mlp.up_proj")
    added = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (8 / 4)
    assert torch.allclose(merged["layers.0.mlp.up_proj.weight"], names["layers.0.mlp.up_proj.weight"] + added)
    encoder.save_pretrained(tmp_path, state_dict=merged)
    found = hidden(AutoModel.from_pretrained(tmp_path).eval())
    assert torch.allclose(found, hidden(encoder), rtol=0, atol=1e-5)
    assert not torch.allclose(found, before, rtol=0, atol=1e-2)


def test_targets_are_ends_of_names() -> None:
    encoder = untrained("qwen2")
    assert find_targets(encoder, ["q_proj", "1.mlp.up_proj"], "lora") == [
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.up_proj",
    ]
    with pytest.raises(RecipeError, match=r"pretrain.lora.targets: no linear .* 'proj'.*; did you mean '\w_proj'"):
        add_adapters(encoder, LoRASettings(targets=["q_proj", "proj"]), "pretrain.lora.targets")


def test_berts_pooler_gets_no_adapter() -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    targets = find_targets(BertModel(BertConfig(**shape)), [], "lora")
    assert len(targets) == 6
    assert not any("pooler" in name for name in targets)


def test_without_peft_there_is_no_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'conan-embedding\[lora\]'"):
        add_adapters(untrained("llama"), LORA)


@pytest.fixture
def models(folder: Path) -> tuple[EmbeddingModel, EmbeddingModel, PreTrainedTokenizerBase]:
    """A model whose adapters have learnt something, the same model as it began, and their tokenizer."""
    pair = []
    for _ in range(2):
        model, tokenizer = load(folder, 12, "mean")
        add_adapters(model.encoder, LORA)
        pair.append(model)
    learn(pair[0].encoder)
    return pair[0], pair[1], tokenizer


def test_an_export_has_the_trained_vectors(
    models: tuple[EmbeddingModel, EmbeddingModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    trained, untouched, tokenizer = models
    exported = export(trained, tokenizer, tmp_path / "model")
    assert not list(exported.glob("adapter*"))
    check_export(exported, trained, untouched, tokenizer, TEXTS)


def test_adapters_that_learnt_nothing_are_an_error(
    models: tuple[EmbeddingModel, EmbeddingModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    trained, untouched, tokenizer = models
    for parameter in trained.head.parameters():  # which a plain comparison with the base would take for learning
        torch.nn.init.normal_(parameter)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    with pytest.raises(TrainingError, match="changed no vector"):
        check_export(export(trained, tokenizer, tmp_path / "model"), trained, untouched, tokenizer, TEXTS)


def test_adapters_that_were_not_merged_are_an_error(
    models: tuple[EmbeddingModel, EmbeddingModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    trained, untouched, tokenizer = models
    exported = export(untouched, tokenizer, tmp_path / "model")
    with pytest.raises(TrainingError, match="differ from the trained ones"):
        check_export(exported, trained, untouched, tokenizer, TEXTS)


def test_an_encoder_learns_by_adapters_too(tmp_path: Path) -> None:
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 32}
    plain = tiny_bert(tmp_path / "plain", texts=pa.chunked_array([TEXTS], pa.string()), **shape)
    model, tokenizer = load(plain, 12, "cls")
    add_adapters(model.encoder, LORA)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model(batch["input_ids"], batch["attention_mask"]).square().sum().backward()
    assert all((each.grad is not None) == each.requires_grad for each in model.parameters())
    assert all(each.grad.any() for name, each in model.named_parameters() if "lora_B" in name)
