from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conan_embedding.trainer.model.bootstrap import tiny_bert
from conan_embedding.trainer.model.embedding_model import load
from conan_embedding.trainer.model.onednn_linear import FastLinear, use_onednn_linear
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional
from transformers import BertConfig, BertModel

INPUTS, OUTPUTS = 24, 40
SHAPES: dict[str, Callable[[], Tensor]] = {
    "matrix": lambda: torch.randn(7, INPUTS),
    "one row": lambda: torch.randn(1, INPUTS),
    "batch": lambda: torch.randn(3, 5, INPUTS),
    "columns": lambda: torch.randn(INPUTS, 9).T,
    "part": lambda: torch.randn(4, 6, 2 * INPUTS)[:, 1::2, :INPUTS],
    "expanded": lambda: torch.randn(1, 1, INPUTS).expand(3, 4, INPUTS),
}


@pytest.fixture(autouse=True)
def with_avx_512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN on CPUs that are faster without it, too."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")


def test_cpus_with_avx2_alone_keep_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    layer = nn.Linear(INPUTS, OUTPUTS)
    use_onednn_linear(layer)
    assert type(layer) is nn.Linear


def made(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype)
    use_onednn_linear(layer)
    assert type(layer) is FastLinear
    return layer


def loss_of(outputs: Tensor) -> Tensor:
    """A loss in which every entry has a different weight."""
    return (outputs.tanh() * torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)).sum()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_are_those_of_plain_autograd_in_float64(shape: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer, inputs = made(bias), SHAPES[shape]().requires_grad_()
    outputs = layer(inputs)
    found = [outputs, *torch.autograd.grad(loss_of(outputs), [inputs, *layer.parameters()])]
    wide = [each.detach().double().requires_grad_() for each in (inputs, *layer.parameters())]
    expected = functional.linear(*wide)
    for own, exact in zip(found, [expected, *torch.autograd.grad(loss_of(expected), wide)], strict=True):
        assert own.dtype == torch.float32
        assert own.shape == exact.shape
        assert (own - exact).norm() <= 1e-6 * exact.norm()


def test_a_compiled_layer_is_plain() -> None:
    called: list[object] = []

    def backend(graph: GraphModule, _: list[Tensor]) -> Callable[..., object]:
        called.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    layer, inputs = made(), torch.randn(3, 5, INPUTS)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert torch.allclose(compiled(inputs), layer(inputs), atol=1e-6)
    assert torch._C._nn.linear in called


def test_float32_goes_to_onednn_and_all_else_stays_plain() -> None:
    assert "_Linear" in type(made()(torch.randn(2, INPUTS)).grad_fn).__name__
    for layer, inputs in [
        (made(dtype=torch.float64), torch.randn(2, INPUTS, dtype=torch.float64)),
        (made(dtype=torch.bfloat16), torch.randn(2, INPUTS, dtype=torch.bfloat16)),
        (made(), torch.randn(0, INPUTS)),
    ]:
        outputs = layer(inputs)
        assert "_Linear" not in type(outputs.grad_fn).__name__
        assert torch.equal(outputs, functional.linear(inputs, layer.weight, layer.bias))


def test_what_is_frozen_gets_no_gradient() -> None:
    layer = made().requires_grad_(False)
    inputs = torch.randn(2, INPUTS, requires_grad=True)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad, layer.weight.sum(dim=0).expand(2, -1), atol=1e-5)
    assert layer.weight.grad is None and layer.bias.grad is None
    layer.requires_grad_(True)
    layer(inputs.detach()).sum().backward()
    assert layer.weight.grad is not None


def test_a_whole_encoder_learns_the_same_under_the_same_names() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    plain = BertModel(config, add_pooling_layer=False).eval()
    fast = BertModel(config, add_pooling_layer=False).eval()
    fast.load_state_dict(plain.state_dict())
    use_onednn_linear(fast)
    assert {type(each) for each in fast.modules() if isinstance(each, nn.Linear)} == {FastLinear}
    assert list(fast.state_dict()) == list(plain.state_dict())
    ids = torch.randint(50, (3, 9))
    for model in (plain.double(), fast):
        loss_of(model(input_ids=ids).last_hidden_state).backward()
    for (name, own), exact in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert (own.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm() + 1e-7, name


def test_a_model_is_loaded_for_training_with_fast_layers(tmp_path: Path) -> None:
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 32}
    model, _ = load(tiny_bert(tmp_path, texts=pa.chunked_array([["text"]]), **shape), dimension=24)
    assert {type(each) for each in model.modules() if isinstance(each, nn.Linear)} == {FastLinear}
