"""What a Hugging Face or SentenceTransformer folder holds: encoder, pooling, linear layers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .model_folder import ModelError, read_json

Pooling = Literal["mean", "cls"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda vectors: vectors,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.GELU": nn.functional.gelu,
}


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


def load_transformer(
    layout: Layout,
    max_length: int | None,
    kind: type[Any] = AutoModel,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and its tokenizer: safetensors only; code of the model is run only if trusted.

    `tokenizer.model_max_length` becomes the length asked for, else the folder's; never more than the encoder's
    positions. `kind` is the auto class of transformers; another than AutoModel must find all its weights.

    Raises:
        ModelError: no model that transformers can read.
    """
    try:
        model, loading = kind.from_pretrained(
            layout.encoder,
            dtype=dtype,
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
