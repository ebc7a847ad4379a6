"""Read the layout of a Hugging Face or SentenceTransformer folder: encoder, pooling, dense layers, similarity.

Reading is a whitelist. A module or key that Conan does not follow is refused, because the vectors might depend on it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...schemas.settings import Pooling
from .model_folder import ModelError, anything, one_of, only_keys, read_json, read_known
from .prompts import read_model_config

Similarity = Literal["cosine", "dot"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda vectors: vectors,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.GELU": nn.functional.gelu,
    "torch.nn.modules.activation.SiLU": nn.functional.silu,
    "torch.nn.modules.activation.Sigmoid": torch.sigmoid,
}

MODULES = {
    name: kind
    for kind in ("Transformer", "Pooling", "Dense", "Normalize")
    for name in (
        f"sentence_transformers.models.{kind}",
        f"sentence_transformers.models.{kind}.{kind}",
        f"sentence_transformers.base.modules.{kind.lower()}.{kind}",
        f"sentence_transformers.sentence_transformer.modules.{kind.lower()}.{kind}",
    )
}
"""Module classes under the names that releases 2 to 6.2 of sentence-transformers save and load."""

ORDER = {"Transformer": ("Pooling",), "Pooling": ("Dense", "Normalize"), "Dense": ("Dense", "Normalize")}
"""Which modules may follow a module; nothing follows Normalize."""

POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of 1_Pooling/config.json, before sentence-transformers 5.3."""

TRANSFORMER_FILES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
"""Names of the Transformer module's configuration; sentence-transformers reads the first that is there."""

_ARGUMENTS = only_keys("attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "padding_side", "use_fast")
"""Arguments for transformers on which vectors don't depend (precision is Conan's own choice), or which never apply."""


def _reads_text(value: Any) -> bool:
    """Whether a module's modality_config runs texts through the encoder as usual."""
    text = value.get("text") if isinstance(value, dict) else None
    return text == {"method": "forward", "method_output_name": "last_hidden_state"}


_TRANSFORMER = {
    "max_seq_length": lambda value: value is None or (type(value) is int and value > 0),
    "do_lower_case": one_of(None, False, True),
    "transformer_task": one_of("feature-extraction"),
    "modality_config": _reads_text,
    "module_output_name": one_of("token_embeddings"),
    "processing_kwargs": only_keys(),
    "unpad_inputs": anything,
    "query_length": one_of(None),
    "document_length": one_of(None),
    "query_expansion": one_of(None),
    **dict.fromkeys(("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs"), _ARGUMENTS),
    **dict.fromkeys(("config_args", "config_kwargs"), only_keys("trust_remote_code")),
}
_POOLING = {
    "word_embedding_dimension": anything,
    "embedding_dimension": anything,
    "pooling_mode": anything,
    "include_prompt": one_of(None, True, False),
    **dict.fromkeys(POOLING_FLAGS, one_of(None, True, False)),
}
_OF_VECTORS = {
    "module_input_name": one_of("sentence_embedding"),
    "module_output_name": one_of(None, "sentence_embedding"),
}
_DENSE = {
    "in_features": anything,
    "out_features": anything,
    "bias": one_of(True, False),
    "activation_function": anything,
    "use_residual": one_of(False),
    **_OF_VECTORS,
}


@dataclass(frozen=True)
class Dense:
    """A linear layer and its activation: the Dense module of a SentenceTransformer folder."""

    weight: Tensor
    bias: Tensor | None
    activation: str


@dataclass
class Layout:
    """The parts of a model: the folder of the encoder, and what follows it.

    `pooling` is None for a folder without modules.json. `includes_prompt` is whether the prompt's tokens are pooled.
    Vectors are normalised if they are compared by cosine or the folder has a Normalize module.
    """

    encoder: Path
    pooling: Pooling | None = None
    includes_prompt: bool = True
    dense: list[Dense] = field(default_factory=list)
    normalizes: bool = False
    similarity: Similarity = "cosine"
    max_length: int | None = None
    lower_case: bool = False


def read_layout(folder: Path) -> Layout:
    """Read the layout of a folder from its modules.json, or as a plain encoder if it has none.

    Raises:
        ModelError: a module or one of its settings is not known, or the order of the modules is not Transformer,
            Pooling, any number of Dense, Normalize.
    """
    layout = Layout(encoder=folder, similarity=read_model_config(folder).get("similarity_fn_name") or "cosine")
    before = None
    for kind, path in _read_modules(folder):
        match kind:
            case "Transformer":
                _read_transformer(path, layout)
            case "Pooling":
                _read_pooling(path, layout)
            case "Dense":
                layout.dense.append(_read_dense(path))
            case "Normalize":
                read_known(path / "config.json", _OF_VECTORS)
                layout.normalizes = True
        if kind not in (ORDER.get(before, ()) if before else ("Transformer",)):
            raise ModelError(
                f"{folder}/modules.json: expected Transformer, Pooling, any number of Dense and at most one Normalize, "
                f"in this order, but {kind} follows {before or 'nothing'}"
            )
        before = kind
    if before == "Transformer":
        raise ModelError(f"{folder}/modules.json: no Pooling follows the Transformer, so texts have no vectors")
    if before is None:
        _read_transformer(folder, layout)
    return layout


def _read_modules(folder: Path) -> list[tuple[str, Path]]:
    """Read modules.json: the kind and the folder of each module; none if there is no such file."""
    file, found = folder / "modules.json", []
    modules = read_json(file)
    if not isinstance(modules, list) and modules != {}:
        raise ModelError(f"{file}: expected a list of modules")
    for place, module in enumerate(modules or [], start=1):
        name, path = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if name not in MODULES or not isinstance(path, str) or module.get("kwargs"):
            raise ModelError(
                f"{file}: module {place}, {json.dumps(module, ensure_ascii=False)[:160]}, is not understood; expected "
                f"Transformer, Pooling, Dense or Normalize of sentence-transformers, with `type` and `path`, and no "
                "`kwargs`; classes of the model's own, token-level (ColBERT) and sparse models can't be used"
            )
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{file}: module {place} is outside the model's folder: {path}")
        found.append((MODULES[name], folder / path))
    return found


def _read_transformer(folder: Path, layout: Layout) -> None:
    layout.encoder = folder
    file = next(
        (folder / name for name in TRANSFORMER_FILES if (folder / name).exists()), folder / TRANSFORMER_FILES[0]
    )
    config = read_known(file, _TRANSFORMER)
    layout.max_length = config.get("max_seq_length")
    layout.lower_case = bool(config.get("do_lower_case"))


def _read_pooling(folder: Path, layout: Layout) -> None:
    """Read 1_Pooling/config.json: one flag per mode (before sentence-transformers 5.3), or the name of the mode."""
    file = folder / "config.json"
    if not file.exists():
        raise ModelError(f"{file}: missing, so how token vectors become one vector is not known")
    config = read_known(file, _POOLING)
    named = config.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)] or "mean"
    modes = [named] if isinstance(named, str) else list(named)
    known = {mode: mode for mode in get_args(Pooling)} | {"mean_sqrt_len_tokens": "mean_sqrt_len"}
    if len(modes) != 1 or modes[0] not in known:
        raise ModelError(
            f"{file}: the pooling must be one of {', '.join(get_args(Pooling))}, not {' and '.join(map(str, modes))}"
        )
    layout.pooling = known[modes[0]]
    layout.includes_prompt = config.get("include_prompt") is not False


def _read_dense(folder: Path) -> Dense:
    config = read_known(folder / "config.json", _DENSE)
    # sentence-transformers' own defaults: Tanh where the key is missing, no activation where it is null.
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = activation or "torch.nn.modules.linear.Identity"
    if activation not in ACTIVATIONS:
        raise ModelError(f"{folder}: the activation must be one of {', '.join(ACTIVATIONS)}, not {activation}")
    try:
        weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
        weight, bias = weights.pop("linear.weight"), weights.pop("linear.bias", None)
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{folder}: can't read linear.weight from model.safetensors: {error}") from error
    shape = [config.get("out_features", len(weight)), config.get("in_features", weight.shape[1])]
    if weights or list(weight.shape) != shape or (bias is None) == config.get("bias", True):
        raise ModelError(f"{folder}: model.safetensors does not hold the layer that config.json describes: {config}")
    return Dense(weight, bias, activation)
