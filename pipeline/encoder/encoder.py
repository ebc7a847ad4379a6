"""Batched inference with any Hugging Face or SentenceTransformer model, for filter, score, mine and evaluate."""
# ruff: noqa: N803, N806 (capital letters are shapes: hidden_NLH is [n, L, H])

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ...schemas.prompts import Prompts
from ...schemas.settings import EncoderSettings, Pooling
from .model_folder import find_model, weights_fingerprint
from .model_layout import ACTIVATIONS, Layout, read_layout
from .onednn import pack_linear_layers
from .pooling import pool
from .prompts import read_prompts
from .transformer import default_pooling, load_transformer, refuse_unknown_tokens

Vectors = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

WINDOW = 16_384
"""Chosen here: texts in a window, which is tokenised and sorted by length as a whole."""
TOKENISED = 1_024
"""Chosen here: texts per call of the tokenizer, whose own results take a hundred bytes per token."""
BATCH_TOKENS = {"cpu": 2_048}
"""Chosen here, per type of device: a CPU is fastest while the activations of a layer fit its cache."""
GPU_BATCH_TOKENS = 16_384
"""Chosen here: matrices with this many rows fill a large GPU. Padding is 3 % of a batch, 12 % at 65,536 tokens."""


@dataclass
class Encoder:
    """A model that is ready to encode.

    `fingerprint` is a hash of its weights and layout, never of its name; `truncated` counts the distinct texts so
    far that were longer than `max_length` tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    pooling: Pooling
    max_length: int
    batch_tokens: int
    fingerprint: str
    device: torch.device
    prompts: Prompts
    truncated: int = 0


def load_encoder(settings: EncoderSettings, kind: type[Any] = AutoModel, device: str | None = None) -> Encoder:
    """Load a model for inference.

    `device` defaults to the GPU, or to the CPU if there is no GPU; the precision is that of `best_precision`. `kind` is
    as in `load_transformer`.

    Raises:
        ModelError: the model can't be found or read.
    """
    folder = find_model(settings.model, settings.trust_remote_code)
    layout = read_layout(folder)
    place = torch.device(device or best_device())
    # Not `model.to(dtype)`, which would also round the angles of rotary position embeddings.
    model, tokenizer, _ = load_transformer(
        layout, settings.max_length, kind, settings.trust_remote_code, dtype=best_precision(place)
    )
    pooling = settings.pooling or default_pooling(layout, model.config.model_type)
    model = model.eval().to(place)
    if settings.compile:
        model.compile(dynamic=True)
    elif place.type == "cpu":
        pack_linear_layers(model)
    layout.dense = [
        replace(dense, weight=dense.weight.to(place), bias=None if dense.bias is None else dense.bias.to(place))
        for dense in layout.dense
    ]
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        layout=layout,
        pooling=pooling,
        max_length=tokenizer.model_max_length,
        batch_tokens=settings.batch_tokens or BATCH_TOKENS.get(place.type, GPU_BATCH_TOKENS),
        fingerprint=weights_fingerprint(folder),
        device=place,
        prompts=read_prompts(folder, settings),
    )


def best_device() -> str:
    """Return the name of the GPU, or `cpu` if there is no usable GPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return str(accelerator or "cpu")


def loaded(settings: EncoderSettings, weights: str, device: str | None = None) -> Encoder:
    """Load a model once per process: later calls return the same one. Raises ModelError.

    `settings` may be a subclass, such as the settings of a stage. `weights` is the model's fingerprint, so a model that
    has changed under the same name is loaded again. Pass device="cpu" to check that a model loads without occupying a
    GPU.
    """
    own = EncoderSettings(**settings.model_dump(include=set(EncoderSettings.model_fields)))
    return _load(own, weights, device or best_device())


@lru_cache(maxsize=1)
def _load(settings: EncoderSettings, weights: str, device: str) -> Encoder:
    return load_encoder(settings, device=device)


def best_precision(device: torch.device) -> torch.dtype:
    """Return the precision for inference: bf16 on a GPU that supports it, fp16 on other GPUs, float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    lacking = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if lacking else torch.bfloat16


def encode(encoder: Encoder, texts: pa.Array | pa.ChunkedArray | Sequence[str], prompt: str = "") -> Vectors:
    """Encode texts, each with `prompt` before it: float32 [n, D]. Duplicates are encoded once.

    Vectors have length 1, unless the model's folder says that they are compared by their dot product as they are.
    """
    infer = partial(_vectors, skipped=_count_skipped(encoder, prompt))
    return in_batches(encoder, texts, dimension(encoder), infer, prompt)


def encode_after(encoder: Encoder, prompts: pl.Series, texts: pl.Series) -> Vectors:
    """Encode texts, each after its own prompt: float32 [n, D]."""
    vectors = np.empty((len(texts), dimension(encoder)), np.float32)
    for prompt in prompts.unique(maintain_order=True):
        rows = (prompts == prompt).arg_true()
        vectors[rows.to_numpy()] = encode(encoder, texts.gather(rows).to_arrow(), prompt)
    return vectors


def _count_skipped(encoder: Encoder, prompt: str) -> int:
    """Count the tokens at the start of a text that are not pooled: those of the prompt, if the folder says so."""
    if encoder.layout.includes_prompt or not prompt:
        return 0
    ids = encoder.tokenizer(prompt, truncation=True, max_length=encoder.max_length)["input_ids"]
    return len(ids) - (ids[-1] in encoder.tokenizer.all_special_ids)


def dimension(encoder: Encoder) -> int:
    """Return the dimension of the vectors."""
    return len(encoder.layout.dense[-1].weight) if encoder.layout.dense else int(encoder.model.config.hidden_size)


Inference = Callable[[Encoder, Tensor, Tensor | None], Tensor]
"""Maps token ids [n, L] and their mask (None if nothing is padded) to rows [n, width], all on the device."""


def in_batches(
    encoder: Encoder,
    texts: pa.Array | pa.ChunkedArray | Sequence[str],
    width: int,
    infer: Inference,
    prompt: str = "",
) -> Vectors:
    """Run `infer` on texts, each with `prompt` before it, and return its rows: float32 [n, width].

    Duplicate texts are run once. A batch takes as many texts from a length-sorted window as fit `batch_tokens`; the
    next window is tokenised while the model works.
    """
    column = texts if isinstance(texts, pa.Array | pa.ChunkedArray) else pa.array(texts, pa.string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    coded = column.dictionary_encode()
    distinct = coded.dictionary
    rows = np.empty((len(distinct), width), np.float32)
    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(_tokenised, encoder, distinct.slice(0, WINDOW), prompt)
        for start in range(0, len(distinct), WINDOW):
            window = following.result()
            following = thread.submit(_tokenised, encoder, distinct.slice(start + WINDOW, WINDOW), prompt)
            rows[start : start + WINDOW] = _infer_window(encoder, window, infer)
            encoder.truncated += window.truncated
    return np.asarray(rows[coded.indices.to_numpy()])


class _Window(NamedTuple):
    """Tokenised texts: all ids in one array, the start and length of each text, and how many texts were truncated."""

    ids: Integers
    starts: Integers
    lengths: Integers
    truncated: int


def _tokenised(encoder: Encoder, texts: pa.Array, prompt: str) -> _Window:
    ids, lengths, truncated = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for start in range(0, len(texts), TOKENISED):
        tokens = encoder.tokenizer(
            [prompt + text for text in texts.slice(start, TOKENISED).to_pylist()],
            truncation=True,
            max_length=encoder.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        each: list[list[int]] = tokens["input_ids"]
        counts = np.fromiter(map(len, each), np.int64, len(each))
        full = np.flatnonzero(counts >= encoder.max_length)
        truncated += sum(bool(tokens.encodings[row].overflowing) for row in full) if tokens.encodings else len(full)
        ids.append(np.concatenate(each, dtype=np.int64))
        refuse_unknown_tokens(encoder.model, encoder.tokenizer, ids[-1])
        lengths.append(counts)
    whole = np.concatenate(lengths)
    return _Window(np.concatenate(ids), np.cumsum(whole) - whole, whole, truncated)


@torch.inference_mode()
def _infer_window(encoder: Encoder, window: _Window, infer: Inference) -> Vectors:
    """Run a window in batches, longest texts first; on a GPU, fetch the results once at the end."""
    order = np.argsort(-window.lengths, kind="stable")
    found = []
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, encoder.batch_tokens // max(1, int(window.lengths[order[start]])))]
        found.append(infer(encoder, *_padded(encoder, window, rows)).float())
        start += len(rows)
    vectors = torch.cat(found).cpu().numpy()
    restored = np.empty_like(vectors)
    restored[order] = vectors
    return restored


def _padded(encoder: Encoder, window: _Window, rows: Integers) -> tuple[Tensor, Tensor | None]:
    """Move some rows of a window to the device: padded ids [n, L] and their mask (None if nothing is padded), int64."""
    lengths = window.lengths[rows, None]
    places = np.arange(max(1, int(lengths.max())))[None]
    there = places < lengths
    ids = np.full(there.shape, encoder.tokenizer.pad_token_id, np.int64)
    ids[there] = window.ids[(window.starts[rows, None] + places)[there]]
    return _on_device(encoder, ids), None if there.all() else _on_device(encoder, there.astype(np.int64))


def _on_device(encoder: Encoder, values: Integers) -> Tensor:
    tensor = torch.from_numpy(values)
    if encoder.device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(encoder.device, non_blocking=True)


def embed(encoder: Encoder, ids_NL: Tensor, mask_NL: Tensor | None, skipped: int = 0) -> Tensor:
    """Compute the raw vectors of a batch, float32 [n, D]: pooled, through the dense layers, not normalised.

    The first `skipped` tokens of each text are not pooled.
    """
    hidden_NLH = encoder.model(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
    vectors_ND = pool(hidden_NLH, mask_NL, encoder.pooling, skipped).float()
    for dense in encoder.layout.dense:
        vectors_ND = ACTIVATIONS[dense.activation](nn.functional.linear(vectors_ND, dense.weight, dense.bias))
    return vectors_ND


def _vectors(encoder: Encoder, ids_NL: Tensor, mask_NL: Tensor | None, skipped: int) -> Tensor:
    vectors_ND = embed(encoder, ids_NL, mask_NL, skipped)
    layout = encoder.layout
    return (
        nn.functional.normalize(vectors_ND, dim=1) if layout.normalizes or layout.similarity == "cosine" else vectors_ND
    )
