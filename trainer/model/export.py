"""Write a trained model as a folder that `SentenceTransformer(folder)` loads."""

import copy
import json
import logging
import os
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ...schemas.errors import MissingExtraError
from .embedding_model import IDENTITY, EmbeddingModel

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

ONNX_LIMIT = 2_000_000_000
"""An ONNX file is one protocol buffer, which has less than 2 GiB: weights of more bytes stand in a file beside it."""


def export(
    model: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    precision: Precision = "fp32",
    query_prompt: str = "",
    onnx: bool = False,
    card: str = "",
) -> Path:
    """Write encoder, tokenizer, pooling and linear layer; vectors are raw and compared by cosine.

    The layout is the one that every sentence-transformers release since 2 reads, 6.2 included. It is written
    beside its place and renamed there whole; an earlier export of that name gives way only then.

    Weights are written in `precision`, and the model is left as it is. `query_prompt` is what queries begin with:
    training puts nothing before them, so a model that was trained here has none. `onnx` adds onnx/model.onnx (see
    `write_onnx`), `card` a README.md.

    Raises:
        FileExistsError: the place holds anything else.
        MissingExtraError: an ONNX file is asked for and the extra `onnx` is not installed.
    """
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "modules.json").exists():
        raise FileExistsError(f"{folder} holds something that is not an exported model; choose another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _write(model, tokenizer, temporary, precision, query_prompt)
        if onnx:
            write_onnx(model, temporary / "onnx" / "model.onnx")
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)  # last: should a rename fail, the earlier export is still there
    return folder


def write_onnx(model: EmbeddingModel, file: Path) -> None:
    """Write encoder, pooling and linear layer for ONNX Runtime.

    `input_ids` and `attention_mask`, int64 [texts, length], give `sentence_embedding`, float32 [texts, D], raw; texts
    and length may be any. Always in float32: ONNX Runtime's CPU has few operations in half precision.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
    """
    if not find_spec("onnxscript"):
        raise MissingExtraError("an ONNX file", "onnx")
    file.parent.mkdir(parents=True)
    copied = copy.deepcopy(model).float().cpu().eval()
    copied.packable = False  # what is packed depends on the lengths of the texts traced
    ids, mask = (torch.ones(2, 8, dtype=torch.int64) for _ in range(2))  # one tensor twice would be one input
    axes = {0: "texts", 1: "length"}
    size = sum(parameter.numel() * 4 for parameter in copied.parameters())
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    try:
        exporter.setLevel(logging.ERROR)  # it tells of operations of torchvision that it has not found
        with warnings.catch_warnings(action="ignore"):  # torch's own, of names of axes and of trees
            torch.onnx.export(
                copied,
                (ids, mask),
                file,
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
                external_data=size > ONNX_LIMIT,
                dynamo=True,
                verbose=False,
            )
    finally:
        exporter.setLevel(level)


def _write(
    model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: Precision, query_prompt: str
) -> None:
    if any(parameter.dtype != DTYPES[precision] for parameter in model.parameters()):
        model = copy.deepcopy(model).to(DTYPES[precision])
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    length = tokenizer.model_max_length
    _json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    pooling = {
        "word_embedding_dimension": model.encoder.config.hidden_size,
        "pooling_mode_cls_token": model.pooling == "cls",
        "pooling_mode_mean_tokens": model.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    _json(folder / "1_Pooling" / "config.json", pooling)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if (head := model.head) is not None:
        modules.append(("2_Dense", "Dense"))
        dense = {"in_features": head.in_features, "out_features": head.out_features, "bias": True}
        _json(folder / "2_Dense" / "config.json", {**dense, "activation_function": IDENTITY})
        weights = {f"linear.{key}": value.contiguous() for key, value in head.state_dict().items()}
        save_file(weights, folder / "2_Dense" / "model.safetensors")
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(modules)
    ]
    _json(folder / "modules.json", listed)
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": query_prompt, "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
