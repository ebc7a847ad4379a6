"""ONNX files of a model, in the layout that transformers.js reads: onnx/model.onnx and onnx/model_quantized.onnx."""

import copy
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

from ...schemas.errors import MissingExtraError
from .embedding_model import EmbeddingModel

ONNX_LIMIT = 2_000_000_000
"""An ONNX file is a protocol buffer, limited to 2 GiB; weights of more bytes than this go into a separate file."""


def write_onnx(model: EmbeddingModel, file: Path) -> None:
    """Write encoder, pooling and linear layer as one ONNX model for ONNX Runtime.

    Inputs are `input_ids` and `attention_mask`, int64 [texts, length], with any number of texts and any length. The
    output is `sentence_embedding`, float32 [texts, D], not normalised. Weights are always float32, because ONNX
    Runtime has few half-precision operations on a CPU. Above ONNX_LIMIT they are in FILE_data, where transformers.js
    looks for them.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
    """
    if not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise MissingExtraError("an ONNX file", "onnx")
    import onnx_ir

    file.parent.mkdir(parents=True)
    copied = copy.deepcopy(model).float().cpu().eval()
    copied.packable = False  # packing would fix the lengths of the example texts in the traced graph
    ids, mask = (torch.ones(2, 8, dtype=torch.int64) for _ in range(2))  # the same tensor twice would be one input
    axes = {0: "texts", 1: "length"}
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    try:
        exporter.setLevel(logging.ERROR)  # the exporter warns that it can't find torchvision's operations
        with warnings.catch_warnings(action="ignore"):  # torch warns of axis names and of its own pytree code
            program = torch.onnx.export(
                copied,
                (ids, mask),
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
                dynamo=True,
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    assert program is not None  # so it is with dynamo
    onnx_ir.save(program.model, file, external_data=f"{file.name}_data" if is_too_large(model) else None)


def is_too_large(model: EmbeddingModel) -> bool:
    """Return whether the weights don't fit into an ONNX file."""
    return sum(parameter.numel() * 4 for parameter in model.parameters()) > ONNX_LIMIT


def write_quantized(file: Path) -> None:
    """Write an ONNX model with int8 weights, a third to a quarter of its size, next to it as model_quantized.onnx.

    Activations become bytes while it runs (dynamic quantisation), so nothing is calibrated.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(file)
    del model.graph.value_info[:]  # shapes of weights before the quantiser transposes them
    add_pre_process_metadata(model)  # or it advises to fuse operations first, which torch's exporter has done
    quantize_dynamic(
        model,
        file.with_name(f"{file.stem}_quantized.onnx"),
        weight_type=QuantType.QInt8,
        per_channel=True,
        # 7 bits: on CPUs without VNNI, sums of 8-bit products overflow (onnxruntime's guide to quantisation).
        reduce_range=True,
        # Products of two activations, as in attention, stay in float32, as in the models of transformers.js.
        extra_options={"MatMulConstBOnly": True},
    )
