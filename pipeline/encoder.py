"""Batched inference with any Hugging Face or SentenceTransformer model: used by score, mine and evaluate."""
# ruff: noqa: N803, N806 (capital letters are shapes: hidden_NLH is [n, L, H])

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..schemas.settings import EncoderSettings

Pooling = Literal["mean", "cls"]
Vectors = npt.NDArray[np.float32]

WINDOW = 8_192
"""Ours: texts that are tokenised and sorted by length together."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda vectors: vectors,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.GELU": nn.functional.gelu,
}


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


@dataclass
class Encoder:
    """A model ready to encode. `fingerprint` is a hash of its weights and layout, never of its name."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    pooling: Pooling
    max_length: int
    batch_tokens: int
    fingerprint: str
    device: torch.device


def find_model(name: str) -> Path:
    """The folder of a model: the folder itself, or a hub model downloaded (safetensors only).

    Raises:
        ModelError: neither a folder nor to be had from the hub.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
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
    if activation not in _ACTIVATIONS:
        raise ModelError(f"{folder}: the activation must be one of {', '.join(_ACTIVATIONS)}, not {activation}")
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
    layout: Layout, max_length: int | None, kind: type[Any] = AutoModel
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder and its tokenizer: float32, safetensors only, no code of the model is run.

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
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(layout.encoder, trust_remote_code=False)
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


def pool(hidden_NLH: Tensor, attention_mask_NL: Tensor, pooling: Pooling) -> Tensor:
    """One vector [n, H] a text: of its first token, or the mean over its tokens."""
    if pooling == "cls":
        return hidden_NLH[:, 0]
    mask_NL1 = attention_mask_NL.unsqueeze(-1).to(hidden_NLH.dtype)
    return (hidden_NLH * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1).clamp(min=1)


def load_encoder(settings: EncoderSettings, kind: type[Any] = AutoModel) -> Encoder:
    """Load a model for inference, on the GPU where there is one (bf16 there where it can), else on the CPU.

    A folder that names no pooling is taken as CLS, as bge's models are meant. `kind` is as in load_transformer.

    Raises:
        ModelError: the model can't be had or read.
    """
    folder = find_model(settings.model)
    layout = read_layout(folder)
    model, tokenizer = load_transformer(layout, settings.max_length, kind)
    device = torch.device(torch.accelerator.current_accelerator() or "cpu")
    dtype = torch.bfloat16 if device.type != "cpu" else torch.float32
    layout.dense = [
        replace(dense, weight=dense.weight.to(device), bias=None if dense.bias is None else dense.bias.to(device))
        for dense in layout.dense
    ]
    return Encoder(
        model=model.eval().to(device, dtype),
        tokenizer=tokenizer,
        layout=layout,
        pooling=settings.pooling or layout.pooling or "cls",
        max_length=tokenizer.model_max_length,
        batch_tokens=settings.batch_tokens,
        fingerprint=weights_fingerprint(folder),
        device=device,
    )


def weights_fingerprint(folder: Path) -> str:
    """A 128-bit hash (hex) of a folder's weights, vocabulary and layout."""
    digest = hashlib.blake2b(digest_size=16)
    names = ("*.safetensors", "modules.json", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    found = {file for name in (*names, "*.model") for file in [*folder.glob(name), *folder.glob(f"*/{name}")]}
    for file in sorted(found):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def encode(encoder: Encoder, texts: pa.Array | pa.ChunkedArray | Sequence[str]) -> Vectors:
    """Unit vectors of texts, float32 [n, D]. Each distinct text is encoded once."""
    return in_batches(encoder, texts, dimension(encoder), _encode_batch)


def dimension(encoder: Encoder) -> int:
    """The width of the vectors."""
    return len(encoder.layout.dense[-1].weight) if encoder.layout.dense else int(encoder.model.config.hidden_size)


TokenIds = list[list[int]]


def in_batches(
    encoder: Encoder,
    texts: pa.Array | pa.ChunkedArray | Sequence[str],
    width: int,
    infer: Callable[[Encoder, TokenIds], Vectors],
) -> Vectors:
    """What `infer` makes of the texts, float32 [n, width]: it is given batches of token ids, long texts first.

    Each distinct text is inferred once. A batch holds as many texts of a length-sorted window as fit `batch_tokens`.
    """
    column = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    coded = column.dictionary_encode()
    distinct = coded.dictionary.to_pylist()
    rows = np.empty((len(distinct), width), np.float32)
    for start in range(0, len(distinct), WINDOW):
        window = slice(start, start + WINDOW)
        rows[window] = _infer_window(encoder, distinct[window], width, infer)
    return np.asarray(rows[coded.indices.to_numpy()])


def _infer_window(
    encoder: Encoder, texts: list[str], width: int, infer: Callable[[Encoder, TokenIds], Vectors]
) -> Vectors:
    tokens = encoder.tokenizer(texts, truncation=True, max_length=encoder.max_length, return_attention_mask=False)
    ids: TokenIds = tokens["input_ids"]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    order = np.argsort(-lengths, kind="stable")
    found = np.empty((len(texts), width), np.float32)
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, encoder.batch_tokens // max(1, int(lengths[order[start]])))]
        found[rows] = infer(encoder, [ids[row] for row in rows])
        start += len(rows)
    return found


def padded(encoder: Encoder, ids: TokenIds) -> dict[str, Tensor]:
    """A batch as the model takes it: input_ids and attention_mask, int64 [n, L]."""
    batch = encoder.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(encoder.device)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def embed(encoder: Encoder, ids: TokenIds) -> Tensor:
    """Raw vectors of a batch, float32 [n, D]: pooled and through the dense layers, not normalised."""
    batch = padded(encoder, ids)
    hidden_NLH = encoder.model(**batch).last_hidden_state
    vectors_ND = pool(hidden_NLH, batch["attention_mask"], encoder.pooling).float()
    for dense in encoder.layout.dense:
        vectors_ND = _ACTIVATIONS[dense.activation](nn.functional.linear(vectors_ND, dense.weight, dense.bias))
    return vectors_ND


@torch.inference_mode()
def _encode_batch(encoder: Encoder, ids: TokenIds) -> Vectors:
    return np.asarray(nn.functional.normalize(embed(encoder, ids), dim=1).cpu().numpy(), np.float32)
