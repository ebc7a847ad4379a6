"""Linear layers for training on a CPU that compute their float32 products (one forward, two backward) with oneDNN.

PyTorch uses MKL for these, which is half as fast on CPUs with AVX-512 of makers other than Intel.
pipeline/encoder/onednn.py uses oneDNN for inference, where weights are constant and can be reordered in advance.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ...pipeline.encoder.onednn import is_onednn_faster


class FastLinear(nn.Linear):
    """nn.Linear that uses oneDNN for float32 on a CPU, and PyTorch's own product otherwise: [..., in] to [..., out].

    torch.compile and torch.export also get PyTorch's own product, because they don't support oneDNN's.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer; the result has the dtype of `inputs`."""
        of_cpu = inputs.dtype == self.weight.dtype == torch.float32 and inputs.device.type == "cpu"
        if of_cpu and inputs.numel() and not torch.compiler.is_compiling():
            outputs: Tensor = _Linear.apply(inputs, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return outputs
        return functional.linear(inputs, self.weight, self.bias)


def use_onednn_linear(model: nn.Module) -> None:
    """Turn the linear layers of a model into FastLinear, in place, where that is faster. Weights are kept."""
    if is_onednn_faster():
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
    """Return left @ right.T + bias; either side may be a transposed view."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result
