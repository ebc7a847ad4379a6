"""The encoder against sentence-transformers, on folders with the layouts found on the hub."""

import functools
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conan_embedding.pipeline.encoder import encoder as module
from conan_embedding.pipeline.encoder.encoder import dimension, encode, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError, find_model, weights_fingerprint
from conan_embedding.pipeline.encoder.model_layout import read_layout
from conan_embedding.pipeline.encoder.onednn import PackedLinear
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.settings import EncoderSettings
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

TEXTS = ["一丁七万", "world 2024", "丈三上下不与", "一", "与丏丐丑专且丕世" * 30, "", "没有见过的龘"]


def load(folder: Path, **settings) -> module.Encoder:
    return load_encoder(EncoderSettings(model=str(folder), **{"max_length": 64} | settings))


def add_dense(folder: Path, activation: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> None:
    """Insert a Dense module after the pooling."""
    (folder / "3_Dense").mkdir()
    config = {"in_features": 32, "out_features": 24, "bias": bias}
    config["activation_function"] = f"torch.nn.modules.{activation}"
    (folder / "3_Dense" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    weights = {"linear.weight": torch.randn(24, 32).to(dtype)} | (
        {"linear.bias": torch.randn(24).to(dtype)} if bias else {}
    )
    save_file(weights, folder / "3_Dense" / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


def without_normalize(folder: Path) -> None:
    modules = [each for each in json.loads((folder / "modules.json").read_text()) if "Normalize" not in each["type"]]
    (folder / "modules.json").write_text(json.dumps(modules))


def use_mean(folder: Path) -> None:
    flags = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "bge": lambda folder: None,
    "no normalize": without_normalize,
    "mean": use_mean,
    "mean, dense": lambda folder: (use_mean(folder), add_dense(folder, "linear.Identity")),
    "dense, tanh, no bias": lambda folder: add_dense(folder, "activation.Tanh", bias=False),
    "dense, gelu, no normalize": lambda folder: (add_dense(folder, "activation.GELU"), without_normalize(folder)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_are_those_of_sentence_transformers(layout: str, bge: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    LAYOUTS[layout](bge)
    expected = sentence_transformers.SentenceTransformer(str(bge), device="cpu").encode(
        TEXTS, normalize_embeddings=True, batch_size=2
    )
    for batch_tokens in (16, 4096):
        found = load(bge, batch_tokens=batch_tokens)
        vectors = encode(found, TEXTS)
        assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), dimension(found))
        assert np.allclose(vectors, expected, rtol=0, atol=1e-5)


def test_a_folder_that_sentence_transformers_saved(bge: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    use_mean(bge)
    add_dense(bge, "linear.Identity")
    model = sentence_transformers.SentenceTransformer(str(bge), device="cpu")
    model.save(str(tmp_path / "saved"))
    expected = model.encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(encode(load(tmp_path / "saved"), TEXTS), expected, rtol=0, atol=1e-5)


def test_pooling_of_a_plain_folder(tiny_model: Path, bge: Path) -> None:
    assert np.array_equal(encode(load(tiny_model, pooling="cls"), TEXTS), encode(load(bge), TEXTS))
    use_mean(bge)
    assert np.array_equal(encode(load(tiny_model), TEXTS), encode(load(bge), TEXTS))  # as sentence-transformers
    (bge / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["mean"]}')
    assert read_layout(bge).pooling == "mean"


def test_order_is_restored_and_each_text_is_encoded_once(bge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(bge, batch_tokens=64)
    alone = {text: encode(found, [text])[0] for text in TEXTS}
    seen: list[int] = []
    whole = module._vectors
    monkeypatch.setattr(
        module,
        "_vectors",
        lambda encoder, ids, *more, **named: seen.append(len(ids)) or whole(encoder, ids, *more, **named),
    )
    monkeypatch.setattr(module, "WINDOW", 3)
    many = [*TEXTS, *TEXTS[::-1], TEXTS[0]]
    expected = np.array([alone[text] for text in many])
    assert np.allclose(encode(found, many), expected, rtol=0, atol=1e-5)
    assert sum(seen) == len(TEXTS)
    column = pa.chunked_array([many[:4], many[4:]], pa.large_string())
    assert np.allclose(encode(found, column), expected, rtol=0, atol=1e-5)
    assert np.allclose(encode(found, pa.array(many).slice(3, 2)), expected[3:5], rtol=0, atol=1e-5)


def test_no_texts(bge: Path) -> None:
    add_dense(bge, "linear.Identity")
    found = load(bge)
    assert encode(found, []).shape == encode(found, pa.chunked_array([], pa.string())).shape == (0, 24)


def test_long_texts_are_cut(bge: Path) -> None:
    """At max_length, special tokens included, and never beyond the encoder's positions."""
    short = load(bge, max_length=10)
    assert np.allclose(encode(short, ["一" * 8]), encode(short, ["一" * 50]), rtol=0, atol=1e-6)
    assert not np.allclose(encode(short, ["一" * 7]), encode(short, ["一" * 50]), rtol=0, atol=1e-6)
    longest = load(bge, max_length=5000)
    assert longest.max_length == 64
    assert np.allclose(encode(longest, ["一" * 62]), encode(longest, ["一" * 500]), rtol=0, atol=1e-6)


def test_half_precision_weights_are_read(bge: Path) -> None:
    add_dense(bge, "linear.Identity", dtype=torch.float16)
    assert encode(load(bge), TEXTS).dtype == np.float32


def test_a_gpu_that_can_not_be_used_is_none(bge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch had CUDA but the machine had no GPU."""
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert load(bge).device.type == "cpu"


def test_angles_of_rotary_positions_are_not_rounded(bge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=1200, intermediate_size=32, head_dim=16, max_position_embeddings=64, **shape)
    shutil.copytree(bge, tmp_path / "rotary")
    Qwen3Model(config).save_pretrained(tmp_path / "rotary")
    monkeypatch.setattr(module, "best_precision", lambda device: torch.bfloat16)
    monkeypatch.setattr(module, "pack_linear_layers", lambda model: None)
    model = load(tmp_path / "rotary").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json: not a JSON file"),
        (
            lambda folder: (folder / "modules.json").write_text(
                (folder / "modules.json").read_text().replace("models.Normalize", "models.LSTM")
            ),
            "module 3, .*models.LSTM.* is not understood; expected Transformer, Pooling, Dense or Normalize",
        ),
        (
            lambda folder: (folder / "modules.json").write_text(
                (folder / "modules.json").read_text().replace("models.Pooling", "models.Transformer")
            ),
            "expected Transformer, Pooling, .* but Transformer follows Transformer",
        ),
        (lambda folder: shutil.rmtree(folder / "1_Pooling"), "1_Pooling/config.json: missing"),
        (
            lambda folder: (folder / "1_Pooling" / "config.json").write_text(
                '{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}'
            ),
            "the pooling must be one of .*, not cls and max",
        ),
        (lambda folder: add_dense(folder, "activation.SELU"), "the activation must be one of .*, not .*SELU"),
        (
            lambda folder: (add_dense(folder, "linear.Identity"), (folder / "3_Dense" / "model.safetensors").unlink()),
            r"3_Dense: can't read linear.weight from model.safetensors",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no Hugging Face model with safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:5000]
            ),
            "no Hugging Face model with safetensors",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no Hugging Face model with safetensors"),
    ],
)
def test_a_folder_that_can_not_be_read_says_why(change: Callable[[Path], object], message: str, bge: Path) -> None:
    change(bge)
    with pytest.raises(ModelError, match=message):
        load(bge)


Weights = dict[str, torch.Tensor]
BIAS = "encoder.layer.0.output.dense.bias"


def without_pooler(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if not name.startswith("pooler.")}


def pretrained(weights: Weights) -> Weights:
    """Name the weights as a pre-training checkpoint does, which has a head but here no pooler."""
    heads = {"cls.predictions.bias": torch.ones(4), "cls.seq_relationship.bias": torch.ones(2)}
    return {f"bert.{name}": value for name, value in without_pooler(weights).items()} | heads


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Return what transformers and others have printed; its log handler was created with an earlier sys.stderr."""
    for handler in logging.getLogger("transformers").handlers:
        if type(handler) is logging.StreamHandler:  # not one of pytest's own
            monkeypatch.setattr(handler, "stream", sys.stderr)
    return lambda: "".join(capsys.readouterr())


@pytest.mark.parametrize("change", [dict, without_pooler, pretrained])
def test_loading_prints_nothing(change: Callable[[Weights], Weights], bge: Path, printed: Callable[[], str]) -> None:
    weights = change(load_file(bge / "model.safetensors"))
    save_file(weights, bge / "model.safetensors", {"format": "pt"})
    load(bge)
    assert printed() == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: None if name == BIAS else name, f"the weights lack {BIAS};"),
        (lambda name: name.replace("layer.0", "layer.7") if name == BIAS else name, "the weights lack"),
        (lambda name: f"module.{name}", r"the weights lack .* and \d+ more"),
        (lambda name: f"model.{name}", r"the weights lack .* and \d+ more"),
        (lambda name: f"encoder.bert.{name}", r"the weights lack .* and \d+ more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[str], str | None], message: str, bge: Path, printed: Callable[[], str]
) -> None:
    weights = without_pooler(load_file(bge / "model.safetensors"))
    renamed = {new: value for name, value in weights.items() if (new := change(name))}
    save_file(renamed, bge / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load(bge)
    assert printed() == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.layer.7.output.dense.bias", "have in excess encoder.layer.7"),
        ("linear.weight", "have in excess linear.weight"),  # of ColBERT
        ("encoder.layer.0.attention.self.query.lora_A.default.weight", "have in excess .*lora_A"),
        ("classifier.bias", None),
        ("cls.predictions.bias", None),
        ("embeddings.position_ids", None),
    ],
)
def test_weights_in_excess(name: str, message: str | None, bge: Path) -> None:
    expected = encode(load(bge), TEXTS)
    weights = load_file(bge / "model.safetensors")
    save_file(weights | {name: torch.ones(32)}, bge / "model.safetensors", {"format": "pt"})
    if message is None:
        assert np.array_equal(encode(load(bge), TEXTS), expected)
    else:
        with pytest.raises(ModelError, match=message):
            load(bge)


def test_a_weight_of_another_shape_is_refused(bge: Path) -> None:
    weights = load_file(bge / "model.safetensors")
    save_file(weights | {BIAS: torch.ones(3)}, bge / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="no Hugging Face model with safetensors"):
        load(bge)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "models/../x y"])
def test_a_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not a folder and can't be downloaded from the Hugging Face hub"):
        find_model(name)


def test_the_fingerprint_is_of_what_decides_the_vectors(bge: Path, tmp_path: Path) -> None:
    before = weights_fingerprint(bge)
    copied = shutil.copytree(bge, tmp_path / "elsewhere")
    assert weights_fingerprint(copied) == before == load(bge).fingerprint
    (copied / "README.md").write_text("bge")
    assert weights_fingerprint(copied) == before
    changes = [copied / "model.safetensors", copied / "tokenizer_config.json", copied / "1_Pooling" / "config.json"]
    found = {before}
    for file in changes:
        file.write_bytes(file.read_bytes() + b" ")
        found.add(weights_fingerprint(copied))
    assert len(found) == 1 + len(changes)


def test_a_prompt_stands_before_each_text(bge: Path) -> None:
    found = load(bge)
    assert np.allclose(encode(found, TEXTS, "问："), encode(found, ["问：" + text for text in TEXTS]), atol=1e-6)
    assert not np.allclose(encode(found, TEXTS, "问："), encode(found, TEXTS), atol=1e-3)


def test_the_prompt_of_queries(bge: Path, tmp_path: Path) -> None:
    """From the settings, else from the folder, else bge's (by its name), else none."""
    assert load(bge).prompts == Prompts()
    named = shutil.copytree(bge, tmp_path / "bge-large-zh-v1.5")
    assert load(named).prompts.query == "为这个句子生成表示以用于检索相关文章："
    assert load(shutil.copytree(bge, tmp_path / "bge-small-en")).prompts.query.startswith("Represent this sentence")
    (named / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: ", "document": "d"}}')
    assert load(named).prompts == Prompts("query: ", "d")
    assert load(named, prompts={"query": ""}).prompts == Prompts("", "d")
    assert load(named, prompts={"query": "问：", "sentence": "句："}).prompts == Prompts("问：", "d", "句：")


def test_truncated_texts_are_counted_once_each(bge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    found = load(bge, max_length=10)
    encode(found, ["一" * 8, "一" * 9, "一" * 50, "一", "一" * 50])
    assert found.truncated == 2
    encode(found, ["一" * 8], "问")
    assert found.truncated == 3


def test_a_cpu_infers_with_packed_layers_that_give_the_same(bge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch._C._has_mkldnn:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    packed = load(bge)
    layers = [layer for layer in packed.model.modules() if isinstance(layer, PackedLinear)]
    assert sorted({layer.activation for layer in layers}) == ["gelu", "none"]
    assert not any(isinstance(layer, torch.nn.Linear) for layer in packed.model.modules())
    with monkeypatch.context() as without:
        without.setattr(torch._C, "_has_mkldnn", False)
        assert not any(isinstance(layer, PackedLinear) for layer in load(bge).model.modules())
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    plain = load(bge)
    assert not any(isinstance(layer, PackedLinear) for layer in plain.model.modules())
    assert np.allclose(encode(packed, TEXTS), encode(plain, TEXTS), rtol=0, atol=1e-6)


def test_a_compiled_model_gives_the_same(bge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but run without a C++ compiler, which would take long."""
    backend = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", backend)
    compiled = load(bge, compile=True)
    assert compiled.model._compiled_call_impl is not None
    assert np.allclose(encode(compiled, TEXTS), encode(load(bge), TEXTS), rtol=0, atol=1e-5)


def test_code_of_a_model_runs_only_where_trusted(bge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    expected = encode(load(bge), TEXTS)
    (bge / "modeling_own.py").write_text(
        "from transformers import BertConfig, BertModel\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    config = json.loads((bge / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (bge / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(bge)
    assert np.allclose(encode(load(bge, trust_remote_code=True), TEXTS), expected, rtol=0, atol=1e-5)
