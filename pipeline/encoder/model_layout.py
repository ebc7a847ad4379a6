"""Read what a Hugging Face or SentenceTransformer folder holds: encoder, pooling, dense layers."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from .model_folder import ModelError, read_json

Pooling = Literal["mean", "cls"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda vectors: vectors,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.GELU": nn.functional.gelu,
}

UNUSED = {"missing_keys": re.compile(r"pooler\."), "unexpected_keys": re.compile(r"(cls|lm_head)\.")}
"""Weights that no vector depends on: BERT's pooler, and the heads of masked-language pre-training."""


@dataclass(frozen=True)
class Dense:
    """A linear layer and its activation: the Dense module of a SentenceTransformer folder."""

    weight: Tensor
    bias: Tensor | None
    activation: str


@dataclass
class Layout:
    """The parts of a model: the folder of the encoder, and what follows it.

    Vectors are always normalised at the end, whether or not the folder has a Normalize module.
    """

    encoder: Path
    pooling: Pooling | None = None
    dense: list[Dense] = field(default_factory=list)
    max_length: int | None = None


def read_layout(folder: Path) -> Layout:
    """Read the layout of a folder from its modules.json, or as a plain encoder if it has none.

    Raises:
        ModelError: a module is not Transformer, Pooling, Dense or Normalize, or has settings that Conan can't follow.
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
                    f"{folder}/modules.json: expected Transformer, Pooling, Dense, and Normalize only at the end; "
                    f"module {place} is {kind}"
                )
    layout.max_length = read_json(layout.encoder / "sentence_bert_config.json").get("max_seq_length")
    return layout


def _read_pooling(folder: Path) -> Pooling:
    """Read 1_Pooling/config.json: one flag per mode (before sentence-transformers 5.3), or the name of the mode."""
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
        raise ModelError(f"{folder}: can't read linear.weight from model.safetensors: {error}") from error


def _load_quietly(kind: type[Any], folder: Path, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Call `kind.from_pretrained` without its progress bar; return the model and transformers' loading info.

    The load report, which transformers logs if weights are missing or unexpected, is shown unless UNUSED covers all of
    them, or if loading fails.
    """
    reports: list[logging.LogRecord] = []

    def hold_back(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            reports.append(record)
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    had_progress_bar = is_progress_bar_enabled()
    logger.addFilter(hold_back)
    disable_progress_bar()
    try:
        model, loading = kind.from_pretrained(folder, output_loading_info=True, **options)
        if all(pattern.match(weight) for found, pattern in UNUSED.items() for weight in loading[found]):
            reports.clear()
        return model, loading
    finally:
        logger.removeFilter(hold_back)
        if had_progress_bar:
            enable_progress_bar()
        for report in reports:
            logger.handle(report)


def load_transformer(
    layout: Layout,
    max_length: int | None,
    kind: type[Any] = AutoModel,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the encoder and its tokenizer, from safetensors only; code in the folder runs only if it is trusted.

    `tokenizer.model_max_length` is set to `max_length`, else to the folder's own, and never exceeds the number of the
    encoder's positions. `kind` is the auto class of transformers to load the model with; for any but AutoModel, every
    weight of the model must be in the folder.

    Raises:
        ModelError: transformers can't read the model, or the folder lacks weights that it needs.
    """
    try:
        model, loading = _load_quietly(
            kind, layout.encoder, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(layout.encoder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{layout.encoder}: no Hugging Face model with safetensors can be loaded from here: {error}"
        ) from error
    if kind is not AutoModel and loading["missing_keys"]:  # which transformers has filled with random numbers
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise ModelError(f"{layout.encoder}: the weights lack {missing}")
    positions = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(max_length or layout.max_length or tokenizer.model_max_length, positions)
    return model, tokenizer
