"""Exporting a trained model to a folder that `SentenceTransformer(folder)` loads."""

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ...pipeline.encoder.encoder import Vectors
from ...pipeline.encoder.model_layout import POOLING_FLAGS
from .calibration import write_ranges
from .embedding_model import IDENTITY, EmbeddingModel
from .lora import merged_weights
from .onnx_model import is_too_large, write_onnx, write_quantized

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export(
    model: EmbeddingModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    precision: Precision = "fp32",
    onnx: bool = False,
    card: str = "",
    ranges: Mapping[int, Vectors] = {},
) -> Path:
    """Write encoder, tokenizer, pooling and linear layer. The model's vectors are not normalised; compare by cosine.

    The layout can be read by every sentence-transformers release from 2 to 6.2. The folder is written under a temporary
    name and then renamed; only then is an earlier export at `folder` replaced.

    Weights are written in `precision`; the model itself is not changed. Its prompts are put before texts by
    `encode_query`, `encode_document` and `encode`. `onnx` adds the files of onnx_model.py, `card` is the content of
    README.md, `ranges` that of int8_ranges.safetensors (see `find_ranges`).

    Raises:
        FileExistsError: the folder exists and is not an exported model.
        MissingExtraError: `onnx` is set, but the extra `onnx` is not installed.
    """
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "modules.json").exists():
        raise FileExistsError(f"{folder} exists and is not an exported model; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _write(model, tokenizer, temporary, precision)
        if onnx:
            _write_onnx(model, temporary)
        if ranges:
            write_ranges(temporary, ranges)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)  # last, so that the earlier export survives a failed rename
    return folder


def _write(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: Precision) -> None:
    if any(parameter.dtype != DTYPES[precision] for parameter in model.parameters()):
        model = copy.deepcopy(model).to(DTYPES[precision])
    model.encoder.save_pretrained(folder, state_dict=merged_weights(model.encoder))
    length = model.max_length or tokenizer.model_max_length  # not that of training, which may be shorter
    whole = copy.deepcopy(tokenizer)
    whole.model_max_length = length
    whole.save_pretrained(folder)
    # The tokenizer lower-cases by itself if the model's folder said so.
    _json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    flags = {flag: model.pooling == mode for flag, mode in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": model.encoder.config.hidden_size, **flags}
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
    query, passage, sentence = model.prompts.query, model.prompts.passage, model.prompts.sentence
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": query, "document": passage} | ({"sentence": sentence} if sentence else {}),
            "default_prompt_name": "sentence" if sentence else None,
            "similarity_fn_name": "cosine",
        },
    )


def _write_onnx(model: EmbeddingModel, folder: Path) -> None:
    """Write onnx/model.onnx and, unless the model is too large for it, onnx/model_quantized.onnx."""
    file = folder / "onnx" / "model.onnx"
    write_onnx(model, file)
    if is_too_large(model):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        _json(folder / "config.json", config | {"transformers.js_config": {"use_external_data_format": True}})
    else:
        write_quantized(file)


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
