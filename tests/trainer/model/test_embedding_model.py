import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.schemas.training_settings import FinetuneSettings
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import (
    EmbeddingModel,
    load,
    precision_of,
    warn_of_slow_precision,
)
from conan_embedding.trainer.model.export import export
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertModel, ErnieConfig, MPNetConfig

TEXTS = ["今天天气好", "python", "在"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = pa.chunked_array([TEXTS], pa.string())
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 32}
    return tiny_bert(tmp_path_factory.mktemp("plain"), texts=texts, **shape)


def vectors(model: EmbeddingModel, tokenizer: object, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(batch["input_ids"], batch["attention_mask"])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pools_and_projects_without_padding(plain: Path, pooling: str, packed: bool) -> None:
    model, tokenizer = load(plain, dimension=24, pooling=pooling)
    model.packable = packed
    together = vectors(model, tokenizer, TEXTS)
    assert together.shape == (3, 24)
    for text, vector in zip(TEXTS, together, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model.encoder(input_ids=ids).last_hidden_state[0]
        pooled = hidden.mean(dim=0) if pooling == "mean" else hidden[0]
        expected = pooled @ model.head.weight.T + model.head.bias
        assert torch.allclose(vector, expected, atol=1e-6)


def test_without_a_dimension_the_vector_is_the_encoders(plain: Path) -> None:
    model, tokenizer = load(plain)
    assert model.head is None
    assert model.dimension == 16
    assert vectors(model, tokenizer, TEXTS).shape == (3, 16)


def test_attention_is_sdpa_where_the_encoder_has_it(plain: Path, tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    for config, attention in ((ErnieConfig(**shape), "sdpa"), (MPNetConfig(**shape), "eager")):
        folder = Path(shutil.copytree(plain, tmp_path / attention))
        AutoModel.from_config(config).save_pretrained(folder)
        model, tokenizer = load(folder)
        assert model.encoder.config._attn_implementation == attention
        together = vectors(model, tokenizer, TEXTS)
        for text, vector in zip(TEXTS, together, strict=True):
            assert torch.allclose(vector, vectors(model, tokenizer, [text])[0], atol=1e-6)


def test_a_model_to_train_has_its_dropout_on(plain: Path) -> None:
    model, _ = load(plain, dimension=24)
    assert all(module.training for module in model.modules())


def test_zero_texts_give_zero_rows_with_all_gradients(plain: Path) -> None:
    model, _ = load(plain, dimension=24)
    nothing = torch.zeros(0, 0, dtype=torch.long)
    result = model(nothing, nothing)
    assert result.shape == (0, 24)
    result.sum().backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any()


def test_every_trained_parameter_gets_a_gradient(plain: Path) -> None:
    model, tokenizer = load(plain, dimension=24)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    model(batch["input_ids"], batch["attention_mask"]).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in model.named_parameters()} - trained == {
        "encoder.pooler.dense.weight",
        "encoder.pooler.dense.bias",
    }


def test_the_papers_model_has_326_million_parameters() -> None:
    large = BertConfig(
        vocab_size=21128,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    with torch.device("meta"):
        model = EmbeddingModel(BertModel(large))
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) // 10**6 == 326


def test_a_new_layer_follows_torchs_seed(plain: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(load(plain, dimension=24)[0].head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("dimension", "pooling"), [(24, "mean"), (24, "cls"), (None, "mean")])
def test_what_was_exported_comes_back(plain: Path, tmp_path: Path, dimension: int | None, pooling: str) -> None:
    model, tokenizer = load(plain, dimension, pooling, max_length=9)
    again, tokenizer_again = load(export(model, tokenizer, tmp_path / "model"))
    assert again.pooling == pooling
    assert again.dimension == (dimension or 16)
    assert (tokenizer.model_max_length, tokenizer_again.model_max_length) == (9, 32)
    state, state_again = model.state_dict(), again.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_the_length_never_exceeds_the_positions(plain: Path) -> None:
    assert load(plain, max_length=1000)[1].model_max_length == 32
    assert load(plain, max_length=7)[1].model_max_length == 7
    assert load(plain)[1].model_max_length == 32


def test_a_saved_layer_of_another_width_is_refused(plain: Path, tmp_path: Path) -> None:
    model, tokenizer = load(plain, dimension=24)
    folder = export(model, tokenizer, tmp_path / "model")
    assert load(folder, dimension=24)[0].dimension == 24
    with pytest.raises(ModelError, match="width 24, not 32"):
        load(folder, dimension=32)


def test_later_layouts_are_read_too(plain: Path, tmp_path: Path) -> None:
    """The layout of sentence-transformers 6.2: other module paths, pooling by name, and a Normalize at the end."""
    model, tokenizer = load(plain, dimension=24, pooling="cls")
    folder = export(model, tokenizer, tmp_path / "model")
    modules = [
        ("", "sentence_transformers.base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
        ("2_Dense", "sentence_transformers.base.modules.dense.Dense"),
        ("3_Normalize", "sentence_transformers.sentence_transformer.modules.normalize.Normalize"),
    ]
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    pooling = {"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    again, _ = load(folder)
    assert again.pooling == "cls"
    assert torch.equal(again.head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.LSTM", "path": ""}], "LSTM"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "median"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "mean"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}, "activation"),
    ],
)
def test_layouts_that_cannot_be_read_say_so(
    plain: Path, tmp_path: Path, file: str, content: object, message: str
) -> None:
    model, tokenizer = load(plain, dimension=24)
    folder = export(model, tokenizer, tmp_path / "model")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_pickled_weights_are_not_read(plain: Path, tmp_path: Path) -> None:
    model, tokenizer = load(plain)
    folder = export(model, tokenizer, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(model.encoder.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(folder)


def test_half_precision_weights_are_read_as_float32(plain: Path, tmp_path: Path) -> None:
    model, tokenizer = load(plain, dimension=24)
    expected = model.head.weight.detach().bfloat16().float()
    folder = export(model.bfloat16(), tokenizer, tmp_path / "model")
    again, _ = load(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again.head.weight, expected)
    assert not math.isnan(float(vectors(again, tokenizer, TEXTS).sum()))


def test_a_saved_layer_without_bias_is_refused(plain: Path, tmp_path: Path) -> None:
    model, tokenizer = load(plain, dimension=24)
    folder = export(model, tokenizer, tmp_path / "model")
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    (folder / "2_Dense" / "config.json").write_text(json.dumps({**config, "bias": False}))
    save_file({"linear.weight": model.head.weight.detach()}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(ModelError, match="bias"):
        load(folder)


def test_a_learnt_temperature_moves_in_half_precision(plain: Path) -> None:
    """Even by a ten-thousandth, although log 0.02 and the next number of bf16 are 1.6 % apart."""
    model, _ = load(plain)
    assert model.temperature is None
    model.learn_temperature(0.02)
    model.bfloat16()
    assert model.temperature.item() == pytest.approx(0.02, rel=1e-6)
    model.log_temperature.data += 1e-4
    assert model.temperature.item() == pytest.approx(0.02 * math.exp(1e-4), rel=1e-6)
    model.log_temperature.data -= 5
    assert model.temperature.item() == pytest.approx(0.01)
    model.temperature.backward()
    assert model.log_temperature.grad.item() > 0


@pytest.mark.parametrize(
    ("settings", "device", "has_bf16", "expected"),
    [
        ({}, "cpu", False, "fp32"),
        ({}, "cuda", True, "bf16"),
        ({}, "cuda", False, "fp32"),  # an older GPU, on which bf16 is slow
        ({"zero_stage": 0}, "cuda", True, "fp32"),
        ({"precision": "fp16"}, "cuda", True, "fp16"),
    ],
)
def test_precision(
    settings: dict[str, Any], device: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.trainer.model.embedding_model.best_device", lambda: device)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert precision_of(FinetuneSettings(**settings)) == expected


@pytest.mark.parametrize(
    ("precision", "device", "supported", "warned"),
    [
        ("bf16", "cpu", False, ["this CPU has no instructions for bf16"]),
        ("fp16", "cpu", False, ["this CPU has no instructions for fp16"]),
        ("bf16", "cpu", True, []),
        ("bf16", "cuda", False, []),
        ("fp32", "cpu", False, []),
        ("auto", "cpu", False, []),
    ],
)
def test_a_precision_that_the_cpu_lacks(
    precision: str, device: str, supported: bool, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conan_embedding.trainer.model.embedding_model.best_device", lambda: device)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(f"torch.ops.mkldnn._is_mkldnn_{name}_supported", lambda: supported)
    found = warn_of_slow_precision(FinetuneSettings(precision=precision))
    assert [warning.partition(",")[0] for warning in found] == warned


@pytest.mark.parametrize("packed", [True, False])
def test_texts_without_padding_need_no_mask(plain: Path, packed: bool) -> None:
    model, tokenizer = load(plain, dimension=24)
    model.packable = packed
    ids = torch.tensor([tokenizer("今天天气好")["input_ids"]] * 2)
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids, None), model(ids, torch.ones_like(ids)), atol=1e-6)
