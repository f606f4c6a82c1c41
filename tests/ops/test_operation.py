"""What `Operation` makes of one declaration: schema, kernels, fake and gradients, all by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyft.ops.cross_entropy import cross_entropy
from pyft.ops.linear_cross_entropy import linear_cross_entropy
from pyft.ops.lora import lora_linear
from pyft.ops.operation import Operation
from pyft.ops.rms_norm import rms_norm
from pyft.ops.swiglu import swiglu


class Arguments(NamedTuple):
    """Of a weighted sum of rows."""

    x: Tensor
    parts: list[Tensor | None]
    bias: Tensor | None
    factor: float
    count: int


class Result(NamedTuple):
    """The sum, and what its gradient needs."""

    y: Tensor
    scale: Tensor


calls: list[tuple[list[str], set[str]]] = []


def empty(arguments: Arguments) -> Result:
    return Result(torch.empty_like(arguments.x), torch.empty_like(arguments.x))


def run(arguments: Arguments) -> Result:
    scale = arguments.parts[0] * arguments.factor * arguments.count
    y = arguments.x * scale
    return Result(y if arguments.bias is None else y + arguments.bias, scale)


def gradients(kept: SimpleNamespace, wanted: set[str], grad_y: Tensor) -> dict[str, Tensor]:
    calls.append((sorted(vars(kept)), wanted))
    return {"x": grad_y * kept.parts[0] * kept.factor * kept.count, "bias": grad_y.clone()}


SCALED = Operation(
    "scaled_in_a_test", Arguments, empty, cpu=run, gradients=gradients, keeps=("parts", "scale")
)


def make(**changed) -> Arguments:
    given = {
        "x": torch.ones(3),
        "parts": [torch.full((3,), 2.0), None],
        "bias": None,
        "factor": 0.5,
        "count": 4,
    }
    return Arguments(**(given | changed))


def test_the_schema_is_the_tuple():
    assert str(torch.ops.pyft.scaled_in_a_test.default._schema) == (
        "pyft::scaled_in_a_test(Tensor x, Tensor?[] parts, Tensor? bias, float factor, SymInt count)"
        " -> (Tensor y, Tensor scale)"
    )


def test_results_and_gradients_go_by_name():
    calls.clear()
    x, bias = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    found = SCALED(make(x=x, bias=bias))
    assert torch.equal(found.y, torch.full((3,), 5.0)) and not found.scale.requires_grad
    found.y.backward(torch.arange(3.0))
    assert torch.equal(x.grad, torch.arange(3.0) * 4) and torch.equal(bias.grad, torch.arange(3.0))
    SCALED(make(bias=bias)).y.sum().backward()
    SCALED(make(x=x, bias=bias.detach())).y.sum().backward()
    kept = ["count", "factor", "parts", "scale"]
    assert calls == [(kept, {"x", "bias"}), (kept, {"bias"}), (kept, {"x"})]


def test_nothing_is_recorded_where_nothing_trains():
    assert SCALED(make()).y.grad_fn is None
    with torch.no_grad():
        assert SCALED(make(x=torch.ones(3, requires_grad=True))).y.grad_fn is None


def test_on_the_meta_device_the_fake_answers():
    found = SCALED(make(x=torch.ones(7, device="meta", requires_grad=True)))
    assert found.y.shape == (7,) and found.y.requires_grad


def test_torch_accepts_it():
    for x in (torch.ones(3), torch.ones(3, requires_grad=True)):
        torch.library.opcheck(torch.ops.pyft.scaled_in_a_test.default, tuple(make(x=x)))


@pytest.mark.parametrize("changed", ["parts", "scale"])
def test_what_is_kept_may_not_change(changed):
    x, parts = torch.ones(3, requires_grad=True), [torch.ones(3), None]
    found = SCALED(make(x=x, parts=parts))
    {"parts": parts[0], "scale": found.scale}[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.y.sum().backward()


TARGETS = torch.tensor([1, -100, 3])
CALLS = {
    "scaled_in_a_test": lambda x: SCALED(make(x=x, parts=[torch.ones(3, 8)])).y,
    "lora_linear": lambda x: lora_linear(x, torch.eye(8), x[:2], x.new_ones(8, 2), scaling=0.5),
    "rms_norm": lambda x: rms_norm(x, torch.ones(8), eps=1e-6),
    "swiglu": lambda x: swiglu(x, x.detach()),
    "cross_entropy": lambda x: cross_entropy(x, TARGETS),
    "linear_cross_entropy": lambda x: linear_cross_entropy(x, torch.ones(5, 8), TARGETS),
    "linear_cross_entropy_forward": lambda x: linear_cross_entropy(
        x, torch.ones(16411, 8, requires_grad=True), TARGETS
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_that_would_be_a_constant_to_autograd_is_refused(name):
    x = torch.randn(3, 8, requires_grad=True)
    y = CALLS[name](x).sum()
    with pytest.raises(RuntimeError, match=f"^{name}: its gradients have no gradient of their own"):
        torch.autograd.grad(y, x, create_graph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_compiled_layers_give_the_same_bits(dropout):
    x, A, B = (torch.randn(shape, requires_grad=True) for shape in ((5, 8), (2, 8), (8, 2)))
    weight = torch.randn(8, 8)

    def layer(x: Tensor) -> Tensor:
        return lora_linear(x, weight, A, B, scaling=0.5, dropout=dropout).tanh()

    results = []
    for call in (layer, torch.compile(layer, backend="aot_eager")):
        torch.manual_seed(0)
        y = call(x)
        results.append([y.detach(), *torch.autograd.grad(y, (x, A, B), torch.ones_like(y))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_there_are_two_nodes_where_a_checkpoint_watches_and_one_elsewhere():
    x, A, B = (torch.randn(shape, requires_grad=True) for shape in ((5, 8), (2, 8), (8, 2)))

    def layer(x: Tensor) -> Tensor:
        y = lora_linear(x, torch.eye(8), A, B, scaling=0.5)
        names.append(type(y.grad_fn).__name__)
        return y

    names: list[str] = []
    layer(x)
    checkpoint(layer, x, use_reentrant=False)
    assert names == ["lora_linearBackward", "lora_linear_productBackward"]
