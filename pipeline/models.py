"""Folders of Hugging Face and SentenceTransformer models: what is in them, and their weights."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..schemas.settings import EncoderSettings

Pooling = Literal["mean", "cls"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda vectors: vectors,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.GELU": nn.functional.gelu,
}


BGE_QUERY_PROMPTS = {
    "zh": "为这个句子生成表示以用于检索相关文章：",
    "en": "Represent this sentence for searching relevant passages: ",
}
"""FlagEmbedding's README: of bge's small, base and large models, for queries that search passages."""


class ModelError(ValueError):
    """A folder or a hub name that no embedding model can be read from."""


@dataclass(frozen=True)
class Dense:
    """A linear layer and its activation, as SentenceTransformer folders hold them."""

    weight: Tensor
    bias: Tensor | None
    activation: str


@dataclass
class Layout:
    """What a folder says of a model: where the encoder lies and what follows it. A Normalize at the end is implied."""

    encoder: Path
    pooling: Pooling | None = None
    dense: list[Dense] = field(default_factory=list)
    max_length: int | None = None


def find_model(name: str, trust_remote_code: bool = False) -> Path:
    """The folder of a model: the folder itself, or a hub model downloaded (safetensors, and code only if trusted).

    Raises:
        ModelError: neither a folder nor to be had from the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors", *["*.py"] * trust_remote_code],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except Exception as error:
        raise ModelError(
            f"{name} is no folder here and can't be had from the Hugging Face hub ({type(error).__name__}); give the "
            "path of a model folder, or run where the hub can be reached"
        ) from error


def read_layout(folder: Path) -> Layout:
    """Read modules.json of a SentenceTransformer folder; a plain encoder has none.

    Raises:
        ModelError: a module that is not Transformer, Pooling, Dense or Normalize, or one that can't be honoured.
    """
    layout = Layout(encoder=folder)
    modules = read_json(folder / "modules.json") or []
    for place, module in enumerate(modules, start=1):
        kind, path = module["type"].rsplit(".", 1)[-1], folder / module["path"]
        match kind:
            case "Transformer":
                layout.encoder = path
            case "Pooling":
                layout.pooling = _read_pooling(path)
            case "Dense":
                layout.dense.append(_read_dense(path))
            case "Normalize" if place == len(modules):
                pass
            case _:
                raise ModelError(
                    f"{folder}/modules.json: expected Transformer, Pooling, Dense and Normalize, the last at the end; "
                    f"module {place} is {kind}"
                )
    layout.max_length = read_json(layout.encoder / "sentence_bert_config.json").get("max_seq_length")
    return layout


def _read_pooling(folder: Path) -> Pooling:
    """Both forms of 1_Pooling/config.json: one flag a mode (before sentence-transformers 5.3), or its name."""
    config = read_json(folder / "config.json")
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    on = [flags.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode") or on
    mode = named if isinstance(named, str) else "+".join(named)
    known: dict[str, Pooling] = {"mean": "mean", "cls": "cls"}
    if mode not in known:
        raise ModelError(f"{folder}: pooling must be mean or cls, not {mode or 'nothing'}")
    return known[mode]


def _read_dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{folder}: the activation must be one of {', '.join(ACTIVATIONS)}, not {activation}")
    try:
        weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
        return Dense(weights["linear.weight"], weights.get("linear.bias"), activation)
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{folder}: model.safetensors with linear.weight can't be read: {error}") from error


def read_json(path: Path) -> Any:
    """A JSON file, or an empty object where there is none. Raises ModelError for one that can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file: {error}") from error


def load_transformer(
    layout: Layout, max_length: int | None, kind: type[Any] = AutoModel, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and its tokenizer: float32, safetensors only; code of the model is run only if trusted.

    `tokenizer.model_max_length` becomes the length asked for, else the folder's; never more than the encoder's
    positions. `kind` is the auto class of transformers; another than AutoModel must find all its weights.

    Raises:
        ModelError: no model that transformers can read.
    """
    try:
        model, loading = kind.from_pretrained(
            layout.encoder,
            attn_implementation="sdpa",
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(layout.encoder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{layout.encoder}: no Hugging Face model with safetensors can be read here: {error}"
        ) from error
    if kind is not AutoModel and loading["missing_keys"]:  # transformers makes them of random numbers
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise ModelError(f"{layout.encoder}: the weights lack {missing}")
    positions = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(max_length or layout.max_length or tokenizer.model_max_length, positions)
    return model, tokenizer


def weights_fingerprint(folder: Path) -> str:
    """A 128-bit hash (hex) of a folder's weights, vocabulary and layout."""
    digest = hashlib.blake2b(digest_size=16)
    names = (
        "*.safetensors",
        "modules.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "*.py",
    )
    found = {file for name in (*names, "*.model") for file in [*folder.glob(name), *folder.glob(f"*/{name}")]}
    for file in sorted(found):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_query_prompt(folder: Path, settings: EncoderSettings) -> str:
    """What stands before each query: what the settings say, else the folder, else bge's by its name, else nothing."""
    if settings.query_prompt is not None:
        return settings.query_prompt
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    language = re.search(r"\bbge-(?:small|base|large)-(zh|en)\b", settings.model)
    return str(prompts.get("query") or (BGE_QUERY_PROMPTS[language[1]] if language else ""))
