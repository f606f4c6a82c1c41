"""lora_linear against float64 autograd on both kinds of base, and what dropout promises."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, poisoned_empty
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyft.ops import native, reference
from pyft.ops.dropout import draw_seed, dropout_mask
from pyft.ops.lora import lora_linear
from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_quantize

DTYPES = [torch.float32, torch.bfloat16]
SCALING = 0.25


def random(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


class Layer:
    """Random inputs of one call: x [T, K], base [N, K] of either kind, A [R, K], B [N, R], bias [N]."""

    def __init__(
        self, num_tokens: int, out_features: int, in_features: int, rank: int = 4, *, base: str = "dense",
        dtype: torch.dtype = torch.float32, bias: bool = True,
    ) -> None:  # fmt: skip
        self.dtype = dtype
        self.x = random(num_tokens, in_features, seed=1, dtype=dtype).requires_grad_()
        dense = random(out_features, in_features, seed=2, scale=in_features**-0.5, dtype=dtype)
        self.base: Tensor | NF4Weight = dense if base == "dense" else nf4_quantize(dense)
        self.dense = dense if base == "dense" else nf4_dequantize(self.base, dtype)
        self.A = random(rank, in_features, seed=3, scale=in_features**-0.5).requires_grad_()
        self.B = random(out_features, rank, seed=4).requires_grad_()
        self.bias = random(out_features, seed=5, dtype=dtype) if bias else None
        self.grad_y = random(num_tokens, out_features, seed=6, dtype=dtype)

    def run(self, dropout: float = 0.0) -> list[Tensor]:
        """Value, dX, dA, dB of the operation."""
        y = lora_linear(self.x, self.base, self.A, self.B, scaling=SCALING, dropout=dropout, bias=self.bias)
        return [y.detach(), *torch.autograd.grad(y, (self.x, self.A, self.B), self.grad_y)]

    def run_reference(self, dtype: torch.dtype | None, dropout: float = 0.0, mask: Tensor | None = None):
        """The same in plain torch, in `dtype` or in the layer's own dtypes."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype or tensor.dtype).requires_grad_()

        x, lora_A, lora_B = leaf(self.x), leaf(self.A), leaf(self.B)
        weight = self.dense.to(dtype or self.dtype)
        bias = None if self.bias is None else self.bias.to(dtype or self.dtype)
        y = reference.lora_linear(
            x, weight, lora_A, lora_B, scaling=SCALING, dropout=dropout, mask=mask, bias=bias
        )
        return [y.detach(), *torch.autograd.grad(y, (x, lora_A, lora_B), self.grad_y.to(y.dtype))]

    def assert_equals_reference(self, dropout: float = 0.0) -> None:
        """Compare value and gradients, with the mask that the call's seed stands for."""
        torch.manual_seed(11)
        mask = dropout_mask(self.x.shape, dropout, draw_seed()) if dropout else None
        torch.manual_seed(11)
        ours = self.run(dropout)
        expected = self.run_reference(torch.float64, dropout, mask)
        torchs = self.run_reference(None, dropout, mask)
        for name, *results in zip(("y", "dX", "dA", "dB"), ours, expected, torchs, strict=True):
            assert_close_to_reference(*results, name=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", ["dense", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "out_features", "in_features", "rank"),
    [(1, 64, 64, 8), (19, 130, 67, 3), (423, 97, 131, 16), (7, 1, 1, 1), (2, 300, 5, 70)],
)
def test_equals_float64(num_tokens, out_features, in_features, rank, dtype, base, dropout):
    Layer(num_tokens, out_features, in_features, rank, base=base, dtype=dtype).assert_equals_reference(
        dropout
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_more_tokens_and_columns_than_one_tile(dropout):
    Layer(1100, 270, 530, 5, base="nf4", bias=False).assert_equals_reference(dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", ["dense", "nf4"])
def test_empty_batch(base, dropout, monkeypatch):
    layer = Layer(0, 40, 24, base=base)
    poisoned_empty(monkeypatch)
    y, grad_x, grad_A, grad_B = layer.run(dropout)
    assert y.shape == (0, 40)
    assert grad_x.shape == (0, 24)
    assert torch.equal(grad_A, torch.zeros_like(grad_A))
    assert torch.equal(grad_B, torch.zeros_like(grad_B))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_output_is_written(dropout, dtype, monkeypatch):
    layer = Layer(19, 130, 67, base="nf4", dtype=dtype)
    torch.manual_seed(0)
    expected = layer.run(dropout)
    poisoned_empty(monkeypatch)
    torch.manual_seed(0)
    for result, clean in zip(layer.run(dropout), expected, strict=True):
        assert torch.equal(result, clean)


def test_leading_dimensions_and_non_contiguous_inputs():
    layer = Layer(30, 64, 48)
    expected = layer.run()
    x = layer.x.detach().view(5, 6, 48).permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    lora_A = layer.A.detach().T.contiguous().T.requires_grad_()
    lora_B = layer.B.detach().T.contiguous().T.requires_grad_()
    weight = layer.base.T.contiguous().T
    assert not any(t.is_contiguous() for t in (x, lora_A, lora_B, weight))
    y = lora_linear(x, weight, lora_A, lora_B, scaling=SCALING, bias=layer.bias)
    grad_y = layer.grad_y.view(5, 6, 64).transpose(0, 1).contiguous().transpose(0, 1)
    results = [y, *torch.autograd.grad(y, (x, lora_A, lora_B), grad_y)]
    for result, clean in zip(results, expected, strict=True):
        assert torch.equal(result.reshape(clean.shape), clean)


@pytest.mark.parametrize("wanted", ["x", "A", "B", "bias"])
def test_only_the_gradients_that_are_wanted(wanted):
    layer = Layer(19, 40, 24)
    expected = dict(zip(("y", "x", "A", "B"), layer.run(), strict=True))
    leaves = {"x": layer.x, "A": layer.A, "B": layer.B, "bias": layer.bias}
    leaves = {name: t.detach().requires_grad_(name == wanted) for name, t in leaves.items()}
    y = lora_linear(leaves["x"], layer.base, leaves["A"], leaves["B"], scaling=SCALING, bias=leaves["bias"])
    y.backward(layer.grad_y)
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name == wanted)
    gradient = leaves[wanted].grad
    if wanted == "bias":
        assert torch.allclose(gradient, layer.grad_y.sum(0), rtol=1e-5)
    else:
        assert torch.equal(gradient, expected[wanted])


def test_zero_B_adds_nothing():
    layer = Layer(19, 40, 24)
    y = lora_linear(layer.x, layer.base, layer.A, torch.zeros_like(layer.B), scaling=SCALING, dropout=0.5)
    plain = lora_linear(layer.x, layer.base, torch.zeros_like(layer.A), layer.B, scaling=SCALING)
    assert torch.equal(y, plain)


def seen_mask(num_tokens: int, width: int, dropout: float) -> Tensor:
    """What the forward lets through: ones through an identity adapter on a zero base."""
    ones, identity = torch.ones(num_tokens, width), torch.eye(width)
    return lora_linear(ones, torch.zeros(width, width), identity, identity, scaling=1.0, dropout=dropout)


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5])
def test_mask_of_the_forward_is_the_defined_one_and_unbiased(dropout):
    torch.manual_seed(3)
    seen = seen_mask(600, 130, dropout)
    torch.manual_seed(3)
    mask = dropout_mask((600, 130), dropout, draw_seed())
    assert torch.equal(seen, mask.float() * (1 / (1 - dropout)))
    assert abs(seen.mean().item() - 1) < 4 * (dropout / (1 - dropout) / seen.numel()) ** 0.5


def test_mask_of_the_backward_is_that_of_the_forward():
    width = 130
    x, identity = torch.ones(600, width, requires_grad=True), torch.eye(width)
    y = lora_linear(x, torch.zeros(width, width), identity, identity, scaling=1.0, dropout=0.4)
    (grad_x,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(grad_x, y.detach())


def test_calls_differ_and_follow_the_generators_state():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = seen_mask(64, 64, 0.5), seen_mask(64, 64, 0.5)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(seen_mask(64, 64, 0.5), first)
    assert torch.equal(seen_mask(64, 64, 0.5), second)


def test_no_dropout_leaves_the_generator_alone():
    state = torch.get_rng_state()
    Layer(3, 8, 8).run(0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpoint_recomputes_the_same_mask():
    layer = Layer(19, 40, 40)

    def two_layers(x: Tensor) -> Tensor:
        for _ in range(2):
            x = lora_linear(x, layer.base, layer.A, layer.B, scaling=SCALING, dropout=0.5).tanh()
        return x

    results = []
    for run in (two_layers, lambda x: checkpoint(two_layers, x, use_reentrant=False)):
        torch.manual_seed(0)
        y = run(layer.x)
        results.append([y.detach(), *torch.autograd.grad(y, (layer.x, layer.A, layer.B), layer.grad_y)])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("base", ["dense", "nf4"])
def test_same_bits_on_any_number_of_threads(base):
    layer = Layer(150, 700, 300, base=base)
    before = torch.get_num_threads()
    runs = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            torch.manual_seed(0)
            runs.append(layer.run(0.1))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for name, result, first in zip(("y", "dX", "dA", "dB"), run, runs[0], strict=True):
            assert torch.equal(result, first), name


def test_errors_name_what_is_wrong():
    layer = Layer(5, 40, 24, rank=4, base="nf4")

    def call(**changed):
        arguments = {
            "x": layer.x,
            "weight": layer.base,
            "lora_A": layer.A,
            "lora_B": layer.B,
            "bias": layer.bias,
        }
        options = {"scaling": 1.0, "dropout": 0.0}
        for name, value in changed.items():
            (arguments if name in arguments else options)[name] = value
        return lora_linear(**arguments, **options)

    with pytest.raises(ValueError, match=r"lora_linear: x.shape\[-1\] is 23, weight expects 24"):
        call(x=layer.x[:, :23])
    with pytest.raises(ValueError, match=r"lora_A.shape\[1\] is 23, weight expects 24"):
        call(lora_A=layer.A[:, :23])
    with pytest.raises(ValueError, match=r"lora_B.shape\[0\] is 39, weight expects 40"):
        call(lora_B=layer.B[:39])
    with pytest.raises(ValueError, match=r"lora_B.shape\[1\] is 3, lora_A expects 4"):
        call(lora_B=layer.B[:, :3])
    with pytest.raises(ValueError, match=r"lora_A.dtype is bfloat16, expected float32"):
        call(lora_A=layer.A.bfloat16())
    with pytest.raises(ValueError, match=r"lora_linear: x.dtype is float64, expected float32 or bfloat16"):
        call(x=layer.x.double())
    with pytest.raises(ValueError, match=r"bias.dtype is bfloat16, expected float32"):
        call(bias=layer.bias.bfloat16())
    with pytest.raises(ValueError, match=r"bias.shape\[0\] is 39, weight expects 40"):
        call(bias=layer.bias[:39])
    for dropout in (1.0, -0.1, float("nan")):
        with pytest.raises(
            ValueError, match=rf"lora_linear: dropout is {dropout}, expected 0 <= dropout < 1"
        ):
            call(dropout=dropout)
    with pytest.raises(
        ValueError, match="lora_linear: weight requires a gradient; the base of an adapter is frozen"
    ):
        call(weight=layer.dense.requires_grad_())


@pytest.mark.parametrize("base", ["dense", "nf4"])
def test_opcheck(base):
    layer = Layer(3, 8, 6, rank=2, base=base)
    if base == "dense":
        weight = (layer.base, None, None, None, None)
    else:
        weight = tuple(layer.base[:5])
    arguments = (layer.x, *weight, *layer.dense.shape, layer.A, layer.B, layer.bias, SCALING, 0.3, 1234)
    torch.library.opcheck(torch.ops.pyft.lora_linear_node, arguments)
    handle = torch.ops.pyft.lora_linear_node(*arguments).detach().requires_grad_()
    torch.library.opcheck(torch.ops.pyft.lora_linear, (handle, *arguments))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_last_product_of_a_checkpoint_is_not_computed_again(dropout, monkeypatch):
    layers = [Layer(5, 8, 8, rank=2, base="nf4"), Layer(5, 8, 8, rank=2, base="nf4")]
    calls = []
    run = native.C.lora_linear

    def counted(**arguments):
        calls.append(arguments["y"].shape[1])
        run(**arguments)

    def block(x):
        for layer in layers:
            x = lora_linear(x, layer.base, layer.A, layer.B, scaling=SCALING, dropout=dropout)
        return x

    leaves = [layers[0].x, *(tensor for layer in layers for tensor in (layer.A, layer.B))]
    torch.manual_seed(0)
    expected = torch.autograd.grad(block(leaves[0]).square().sum(), leaves)
    monkeypatch.setattr(native.C, "lora_linear", counted)
    torch.manual_seed(0)
    loss = checkpoint(block, leaves[0], use_reentrant=False).square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    # both forward, the first again, and in each backward the projection alone
    assert sorted(calls) == [0, 0, 8, 8, 8]
