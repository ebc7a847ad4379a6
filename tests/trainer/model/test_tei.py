"""Exported folders as text-embeddings-inference reads them: its rules, written out from its source (release 1.9.3)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from conan_embedding import workflow
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import PromptSettings
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.model.export import export
from conan_embedding.trainer.model.tei import tei_warnings
from model_folders import add_modules, make_tokenizer, write_plain
from safetensors.torch import load_file
from tiny_decoders import save_decoder
from tokenizers import Tokenizer

TEXTS = ["今天天气", "怎样泡绿茶？", "上", "北京上海，" * 20]
MODULES = {f"sentence_transformers.models.{name}" for name in ("Dense", "Normalize", "Pooling", "Transformer")}
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": lambda vector: vector,
    "torch.nn.modules.activation.Tanh": torch.tanh,
}


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


@torch.no_grad()
def serve(folder: Path, text: str, prompt_name: str | None = None) -> npt.NDArray[np.float32]:
    """Answer POST /embed as TEI would: one text, no padding, normalised by default."""
    config = read(folder / "config.json")
    assert not any(name.endswith("Classification") for name in config["architectures"])  # else it is a classifier
    limit = read(folder / "sentence_bert_config.json")["max_seq_length"]
    prompts = read(folder / "config_sentence_transformers.json")["prompts"]
    assert all(isinstance(prompt, str) for prompt in prompts.values())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    ids = tokenizer.encode((prompts[prompt_name] if prompt_name else "") + text).ids

    # The tensors of its BertModel, with or without a prefix; positions of RoBERTa begin after that of padding.
    assert config["model_type"] in ("bert", "xlm-roberta") and config["hidden_act"] in ("gelu", "relu", "silu", "tanh")
    # The longest text takes the last of them.
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    assert isinstance(limit, int) and 0 < limit <= config["max_position_embeddings"] - first
    model = transformers.BertModel(
        transformers.BertConfig(**{key: config[key] for key in REQUIRED}), add_pooling_layer=False
    )
    weights = {key: value for key, value in load_file(folder / "model.safetensors").items() if "pooler" not in key}
    model.load_state_dict({key.removeprefix("roberta.").removeprefix("bert."): value for key, value in weights.items()})
    positions = torch.arange(first, first + len(ids))[None]
    hidden = model.eval()(torch.tensor([ids]), position_ids=positions).last_hidden_state[0]

    flags = read(folder / "1_Pooling" / "config.json")
    if flags["pooling_mode_cls_token"]:
        vector = hidden[0]
    elif flags["pooling_mode_mean_tokens"]:
        vector = hidden.mean(dim=0)
    else:
        assert flags["pooling_mode_lasttoken"]
        vector = hidden[-1]
    for module in read(folder / "modules.json"):
        assert set(module) == {"idx", "name", "path", "type"} and module["type"] in MODULES
        if module["type"].endswith(".Dense"):
            dense = read(folder / module["path"] / "config.json")
            tensors = load_file(folder / module["path"] / "model.safetensors")
            assert tensors["linear.weight"].shape == (dense["out_features"], dense["in_features"])
            bias = tensors["linear.bias"] if dense["bias"] else None
            activation = ACTIVATIONS[dense["activation_function"]]
            vector = activation(torch.nn.functional.linear(vector, tensors["linear.weight"], bias))
    return torch.nn.functional.normalize(vector, dim=0).numpy()


REQUIRED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps"),
    "pad_token_id",
)
"""The fields of its BertConfig that have no default."""


def write_xlm_roberta(folder: Path) -> Path:
    """Write an XLM-RoBERTa, whose positions begin at 2, without modules of sentence-transformers."""
    tokenizer = make_tokenizer("roberta")
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=42, initializer_range=0.3, **shape
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "dimension", "pooling"),
    [("bert", None, "cls"), ("bert", 24, "mean"), ("xlm-roberta", 24, "mean"), ("xlm-roberta", None, "lasttoken")],
)
def test_it_serves_the_vectors_of_an_exported_folder(
    tmp_path: Path, kind: str, dimension: int | None, pooling: Any
) -> None:
    """A folder with Normalize, which export leaves out, gives the same: TEI ignores the module and normalises."""
    base = tmp_path / "base"
    if kind == "bert":
        add_modules(write_plain(base), {"pooling_mode": pooling}, normalize=True)
    else:
        write_xlm_roberta(base)
    model, tokenizer = load(base, dimension, pooling, prompts=PromptSettings(query="问：", passage="答："))
    folder = export(model, tokenizer, tmp_path / "model", precision="fp32")
    for name, prompt in ((None, ""), ("query", "问："), ("document", "答：")):
        for text in TEXTS:
            batch = tokenizer([prompt + text], truncation=True, return_tensors="pt")
            with torch.no_grad():
                (expected,) = torch.nn.functional.normalize(model.eval()(batch["input_ids"], None)).numpy()
            assert serve(folder, text, name) == pytest.approx(expected, abs=1e-5)
    (warning,) = tei_warnings(folder)
    assert 'each request must say "prompt_name": "query" or "prompt_name": "document"' in warning


def changed(folder: Path, file: str, **values: Any) -> Path:
    """Change values of a JSON file; None removes a key."""
    content = read(folder / file) | values
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def test_what_it_does_not_read_as_meant_is_said(tmp_path: Path) -> None:
    write_xlm_roberta(tmp_path / "base")
    folder = export(*load(tmp_path / "base", 24), tmp_path / "model")
    assert tei_warnings(folder) == []
    changed(folder, "config.json", model_type="t5", max_position_embeddings=None)
    changed(folder, "sentence_bert_config.json", max_seq_length=32_768)
    changed(folder, "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    (folder / "tokenizer.json").unlink()
    assert [warning.removeprefix("text-embeddings-inference ") for warning in tei_warnings(folder)] == [
        "can't load the folder: it has no tokenizer.json, so its tokenizer is not a fast one",
        "cuts texts to 16,384 of their 32,768 tokens unless started with --max-batch-tokens 32768",
        "can't load the folder: config.json has no max_position_embeddings",
        "can't load the folder: it does not pool as max_tokens",
        "has no model of type t5; with `export.onnx: true`, its image for CPUs runs onnx/model.onnx instead",
    ]
    changed(folder, "config.json", model_type="bert", max_position_embeddings=42, type_vocab_size=None)
    assert "can't read the config.json of a bert as transformers writes it: it expects type_vocab_size" in str(
        tei_warnings(folder)
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("qwen3", "takes qwen3 as causal, as it reads use_bidirectional_attention instead of `is_causal: false`"),
        ("llama", "runs llama on NVIDIA GPUs only, in float16"),
        ("gemma3_text", "it expects rope_local_base_freq"),
    ],
)
def test_decoders_are_other_models_to_it(tmp_path: Path, kind: str, expected: str) -> None:
    save_decoder(tmp_path / "base", kind, "今天天气")
    changed(tmp_path / "base", "config.json", is_causal=False)
    outcome = workflow.export(
        tmp_path, Recipe.model_validate({"export": {"model": str(tmp_path / "base"), "pooling": "lasttoken"}})
    )
    assert expected in "\n".join(outcome.warnings)
    causal = export(*load(tmp_path / "base", pooling="lasttoken"), tmp_path / "causal")
    assert "as causal" not in str(tei_warnings(changed(causal, "config.json", is_causal=True)))
