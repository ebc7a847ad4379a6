"""Linear layers for inference on a CPU by oneDNN, with their weights laid out for it beforehand.

PyTorch's own go to MKL, which on CPUs of other makers than Intel reaches half of what oneDNN does.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

Model = TypeVar("Model", bound=nn.Module)

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
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
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
