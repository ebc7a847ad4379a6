"""Linear layers for training on a CPU: their three products, one forward and two backward, by oneDNN in float32.

PyTorch's own go to MKL, which on recent CPUs of other makers than Intel reaches half of it. pipeline/encoder/onednn.py
does the same for inference, where weights do not change and are laid out beforehand.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ...pipeline.encoder.onednn import has_onednn


class FastLinear(nn.Linear):
    """nn.Linear, by oneDNN for float32 on a CPU and plain for all else: [..., inputs] to [..., outputs].

    Plain also in what torch.compile and torch.export make of it: they have no such product.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Of the dtype of its inputs."""
        of_cpu = inputs.dtype == self.weight.dtype == torch.float32 and inputs.device.type == "cpu"
        if of_cpu and inputs.numel() and not torch.compiler.is_compiling():
            outputs: Tensor = _Linear.apply(inputs, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return outputs
        return functional.linear(inputs, self.weight, self.bias)


def use_onednn_linear(model: nn.Module) -> None:
    """Make the linear layers of a model FastLinear, in place, where PyTorch has oneDNN; their weights stay theirs."""
    if has_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        rows, input_rows = gradient.flatten(0, -2), inputs.flatten(0, -2)
        return (
            _product(gradient, weight.T) if of_inputs else None,
            _product(rows.T, input_rows.T) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right.T + bias; either side may be a transposed view."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result
