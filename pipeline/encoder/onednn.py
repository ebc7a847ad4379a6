"""Products of float32 matrices on a CPU by oneDNN, with one side laid out for it beforehand.

PyTorch's own go to MKL and NumPy's to OpenBLAS, which on recent CPUs of other makers than Intel reach half of it.
"""
# ruff: noqa: N803 (capital letters are shapes: rows_MD is [M, D])

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Floats = npt.NDArray[np.float32]

ROWS = 2_048
"""Rows that the layout of the weights is chosen for: the tokens of a batch. Any other number works."""


class PackedLinear(nn.Module):
    """A linear layer, and where asked the exact GELU after it, in one call: [..., inputs] to [..., outputs]."""

    def __init__(self, layer: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        """Float32 in, float32 out; no gradient."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.weight, self.bias, self.activation, [], "none"
        )
        return outputs


def pack_linear_layers(model: Model) -> Model:
    """Replace the linear layers of a float32 model in place; it can infer after this, and nothing else.

    A model stays as it is where PyTorch has no oneDNN.
    """
    from transformers.activations import GELUActivation  # the search, which has no model, does without

    if not has_onednn():
        return model
    for module in list(model.modules()):
        # Of BERT and its kin: the widening half of a layer is followed by its activation.
        widening = getattr(module, "dense", None)
        if isinstance(widening, nn.Linear) and isinstance(getattr(module, "intermediate_act_fn", None), GELUActivation):
            module.dense, module.intermediate_act_fn = PackedLinear(widening, "gelu"), nn.Identity()
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
    return model


def inner_products(rows_MD: Floats) -> Callable[[Floats], Floats]:
    """What gives the inner products [n, M] of any [n, D] with these rows."""
    if not has_onednn():
        return lambda vectors_ND: np.asarray(vectors_ND @ rows_MD.T)
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.from_numpy(rows_MD), ROWS)

    def products(vectors_ND: Floats) -> Floats:
        with torch.inference_mode():
            vectors = torch.from_numpy(vectors_ND)
            return np.asarray(torch.ops.mkldnn._linear_pointwise(vectors, packed, None, "none", [], "").numpy())

    return products


def has_onednn() -> bool:
    """Whether PyTorch has oneDNN and the call that these products go through."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
