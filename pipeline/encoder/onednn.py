"""Fast float32 matrix products on a CPU: oneDNN, with one side repacked for it beforehand.

PyTorch uses MKL and NumPy uses OpenBLAS, which are half as fast on CPUs with AVX-512 that are not Intel's.
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
"""The number of rows (tokens in a batch) that the weights are repacked for. Other numbers work as well."""


class PackedLinear(nn.Module):
    """A linear layer, optionally fused with the exact GELU (`activation="gelu"`): [..., inputs] to [..., outputs]."""

    def __init__(self, layer: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        """Map float32 to float32, without gradients."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.weight, self.bias, self.activation, [], "none"
        )
        return outputs


def pack_linear_layers(model: Model) -> Model:
    """Replace the linear layers of a float32 model in place; after this, the model is for inference only.

    Does nothing where PyTorch's own layers are faster.
    """
    from transformers.activations import GELUActivation  # here, as the search uses this module without it

    if not is_onednn_faster():
        return model
    for module in list(model.modules()):
        # In BERT and similar models, the first linear layer of the feed-forward block is followed by its activation.
        widening = getattr(module, "dense", None)
        if isinstance(widening, nn.Linear) and isinstance(getattr(module, "intermediate_act_fn", None), GELUActivation):
            module.dense, module.intermediate_act_fn = PackedLinear(widening, "gelu"), nn.Identity()
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
    return model


def inner_products(rows_MD: Floats) -> Callable[[Floats], Floats]:
    """Return a function from vectors [n, D] to their inner products [n, M] with these rows."""
    if not has_onednn():
        return lambda vectors_ND: np.asarray(vectors_ND @ rows_MD.T)
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.from_numpy(rows_MD), ROWS)

    def products(vectors_ND: Floats) -> Floats:
        with torch.inference_mode():
            vectors = torch.from_numpy(vectors_ND)
            return np.asarray(torch.ops.mkldnn._linear_pointwise(vectors, packed, None, "none", [], "").numpy())

    return products


def is_onednn_faster() -> bool:
    """Whether linear layers are faster with oneDNN: not on CPUs with AVX2 alone, where MKL is by a quarter (Zen 3)."""
    return has_onednn() and torch.backends.cpu.get_cpu_capability() != "AVX2"


def has_onednn() -> bool:
    """Whether PyTorch has oneDNN and the operator that this module calls."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
