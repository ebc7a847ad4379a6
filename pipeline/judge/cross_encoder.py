"""Cross-encoders: models that read a query and a passage together and give the pair one score.

The scores are those of sentence-transformers' `CrossEncoder.predict`. As in encoder/model_layout.py, a module or key
that Conan does not follow is refused, because the scores might depend on it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ...schemas.judge_settings import JudgeSettings
from ..encoder.encoder import BATCH_TOKENS, GPU_BATCH_TOKENS, TOKENISED, best_device, best_precision
from ..encoder.model_folder import ModelError, anything, one_of, only_keys, read_json, read_known
from ..encoder.model_layout import ACTIVATIONS, MODULES, TRANSFORMER_FILES, Layout
from ..encoder.onednn import pack_linear_layers
from ..encoder.prompts import FILE as MODEL_FILE
from ..encoder.transformer import is_decoder, load_transformer, refuse_other_kinds

Floats = npt.NDArray[np.float32]
Tokens = dict[str, Tensor]
"""The tokens of a pair, or of a batch: ids and, if the model has token types, which text each is from."""

_SIGMOID = "torch.nn.modules.activation.Sigmoid"
_MODEL = {
    "__version__": anything,
    "model_type": one_of("CrossEncoder"),
    "activation_fn": one_of(None, *ACTIVATIONS),
    "prompts": anything,  # used by name only
    "default_prompt_name": one_of(None),
    "keep_in_fp32_modules": one_of(None, []),
}
_TRANSFORMER = {
    "max_seq_length": lambda value: value is None or (type(value) is int and value > 0),
    "do_lower_case": one_of(None, False, True),
    "transformer_task": one_of("sequence-classification"),
    "modality_config": one_of({"text": {"method": "forward", "method_output_name": "logits"}}),
    "module_output_name": one_of("scores"),
    "processing_kwargs": only_keys(),
    "unpad_inputs": anything,
}


@dataclass(frozen=True)
class CrossEncoder:
    """A loaded cross-encoder. `inputs` are the tensors besides the mask that the model takes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    activation: Callable[[Tensor], Tensor]
    inputs: Sequence[str]
    max_length: int
    batch_tokens: int
    device: torch.device


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder is that of a sequence classifier, or says that it is a cross-encoder."""
    if read_json(folder / MODEL_FILE).get("model_type") == "CrossEncoder":
        return True
    architectures = read_json(folder / "config.json").get("architectures") or []
    return not (folder / "modules.json").exists() and any(
        str(name).endswith("ForSequenceClassification") for name in architectures
    )


def read_cross_encoder(folder: Path, trust_remote_code: bool = False) -> tuple[Layout, str]:
    """Read the layout of a cross-encoder's folder and the name of its activation; no weights are read.

    Raises:
        ModelError: the folder has a module or setting that is not understood, or the model gives a pair several scores.
    """
    layout = Layout(encoder=_find_transformer(folder))
    names = (name for name in TRANSFORMER_FILES if (layout.encoder / name).exists())
    own = read_known(layout.encoder / next(names, TRANSFORMER_FILES[0]), _TRANSFORMER)
    layout.max_length, layout.lower_case = own.get("max_seq_length"), bool(own.get("do_lower_case"))
    refuse_other_kinds(layout, AutoModelForSequenceClassification, trust_remote_code)
    config = read_json(layout.encoder / "config.json")
    labels = len(config.get("id2label") or range(int(config.get("num_labels", 2))))  # transformers' default
    if labels != 1:
        raise ModelError(
            f"{folder}: the classifier has {labels} labels; expected a cross-encoder, which has one: its score"
        )
    if is_decoder(str(config.get("model_type"))):
        raise ModelError(
            f"{folder}: {config.get('model_type')} is a decoder; expected a cross-encoder made of an encoder, such as "
            "BAAI/bge-reranker-v2-m3"
        )
    activation = (
        read_known(folder / MODEL_FILE, _MODEL).get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")  # sentence-transformers before 4.0
        or _SIGMOID
    )
    if activation not in ACTIVATIONS:
        raise ModelError(f"{folder}: the activation must be one of {', '.join(ACTIVATIONS)}, not {activation}")
    return layout, activation


def _find_transformer(folder: Path) -> Path:
    """Return the folder of the transformer: that of the only module, or `folder` itself if it has no modules.json."""
    modules = read_json(folder / "modules.json")
    if not modules:
        return folder
    match modules:
        case [{"type": str(name), "path": str(path)}] if MODULES.get(name) == "Transformer":
            if (folder / path).resolve().is_relative_to(folder.resolve()):
                return folder / path
    raise ModelError(f"{folder}/modules.json: expected a cross-encoder of one Transformer module, found {modules}")


def load_cross_encoder(settings: JudgeSettings, folder: Path, device: str | None = None) -> CrossEncoder:
    """Load a cross-encoder for inference. `device` defaults to the GPU, or to the CPU if there is no GPU.

    Raises:
        ModelError: the model can't be read.
    """
    layout, activation = read_cross_encoder(folder, settings.trust_remote_code)
    place = torch.device(device or best_device())
    model, tokenizer, _ = load_transformer(
        layout,
        settings.max_length,
        AutoModelForSequenceClassification,
        settings.trust_remote_code,
        best_precision(place),
    )
    model = model.eval().to(place)
    inputs = {"input_ids", "token_type_ids"} & set(inspect.signature(model.forward).parameters)
    if settings.compile:
        model.compile(dynamic=True)
    elif place.type == "cpu":
        pack_linear_layers(model)
    return CrossEncoder(
        model,
        tokenizer,
        ACTIVATIONS[activation],
        sorted(inputs & set(tokenizer("a", "b"))),
        tokenizer.model_max_length,
        settings.batch_tokens or BATCH_TOKENS.get(place.type, GPU_BATCH_TOKENS),
        place,
    )


@lru_cache(maxsize=1)
def _load_once(settings: str, folder: Path, weights: str, device: str) -> CrossEncoder:
    return load_cross_encoder(JudgeSettings.model_validate_json(settings), folder, device)


def loaded(settings: JudgeSettings, folder: Path, weights: str, device: str | None = None) -> CrossEncoder:
    """Load a model once per process. `weights` is its fingerprint, so a model that has changed is loaded again."""
    own = settings.model_dump_json(include={"max_length", "batch_tokens", "compile", "trust_remote_code"})
    return _load_once(own, folder, weights, device or best_device())


@torch.inference_mode()
def score_pairs(encoder: CrossEncoder, queries: pl.Series, passages: pl.Series) -> Floats:
    """Score each query with its passage, float32 [pairs]. Pairs longer than the model's length are truncated.

    Batches take as many pairs of like length as fit `batch_tokens`.

    Raises:
        ModelError: a score is NaN or infinite.
    """
    tokens = _tokenise(encoder, queries, passages)
    lengths = np.array([len(each["input_ids"]) for each in tokens])
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    while start < len(order):
        rows = order[start : start + max(1, encoder.batch_tokens // int(lengths[order[start]]))]
        found.append(_score_batch(encoder, [tokens[row] for row in rows]))
        start += len(rows)
    scores = np.empty(len(order), np.float32)
    scores[order] = torch.cat(found).cpu().numpy() if found else []
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        shown = f"{queries[int(bad[0])][:80]!r} and {passages[int(bad[0])][:80]!r}"
        raise ModelError(f"the cross-encoder gives {len(bad)} pairs a score that is NaN or infinite, such as {shown}")
    return scores


def _tokenise(encoder: CrossEncoder, queries: pl.Series, passages: pl.Series) -> list[Tokens]:
    found: list[Tokens] = []
    for start in range(0, len(queries), TOKENISED):
        block: dict[str, Any] = encoder.tokenizer(
            *(texts[start : start + TOKENISED].to_list() for texts in (queries, passages)),
            truncation=True,
            max_length=encoder.max_length,
            return_attention_mask=False,
        )
        found += [
            dict(zip(encoder.inputs, map(torch.tensor, each), strict=True))
            for each in zip(*(block[name] for name in encoder.inputs), strict=True)
        ]
    return found


def _score_batch(encoder: CrossEncoder, pairs: list[Tokens]) -> Tensor:
    """Score the pairs of a batch, float32 [n]."""
    fill = {"input_ids": int(encoder.tokenizer.pad_token_id), "token_type_ids": encoder.tokenizer.pad_token_type_id}
    batch = {name: pad_sequence([each[name] for each in pairs], True, fill[name]) for name in encoder.inputs}
    mask = pad_sequence([torch.ones_like(each["input_ids"]) for each in pairs], True)
    batch = {name: values.to(encoder.device) for name, values in (batch | {"attention_mask": mask}).items()}
    logits: Tensor = encoder.model(**batch).logits
    return encoder.activation(logits.float()).squeeze(1)
