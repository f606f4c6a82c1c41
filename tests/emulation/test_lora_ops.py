"""`pyft.ops.lora` as on a GPU, with autograd: the composition in `pyft.ops.cuda.lora`."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, poisoned_empty, random
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyft.ops import reference
from pyft.ops.dropout import draw_seed, dropout_mask
from pyft.ops.lora import lora_linear

DTYPES = [torch.float32, torch.bfloat16]
SCALING = 0.25
NAMES = ("y", "dX", "dA", "dB")


class Layer:
    """Random inputs of one call; `dense` is the base, as numbers."""

    def __init__(
        self, tokens: int, rows: int, columns: int, rank: int, base: str, dtype: torch.dtype
    ) -> None:
        self.x = random(tokens, columns, seed=1, dtype=dtype)
        weight = random(rows, columns, seed=2, scale=columns**-0.5, dtype=dtype).detach()
        self.base, self.dense = weight, weight
        if base != "dense":
            self.base = reference.nf4_quantize(weight.float(), double_quant=base == "nf4 nested")
            self.dense = reference.nf4_dequantize(self.base, dtype)
        self.A = random(rank, columns, seed=3, scale=columns**-0.5)
        self.B = random(rows, rank, seed=4)
        self.bias = random(rows, seed=5, dtype=dtype).detach() if tokens % 2 else None
        self.grad_y = random(tokens, rows, seed=6, dtype=dtype).detach()

    def run(self, dropout: float = 0.0) -> list[Tensor]:
        torch.manual_seed(11)
        y = lora_linear(self.x, self.base, self.A, self.B, scaling=SCALING, dropout=dropout, bias=self.bias)
        return [y.detach(), *torch.autograd.grad(y, (self.x, self.A, self.B), self.grad_y)]

    def run_reference(self, dtype: torch.dtype | None, dropout: float) -> list[Tensor]:
        """In plain torch, in `dtype` or in the layer's own, with the mask of `run`."""
        torch.manual_seed(11)
        mask = dropout_mask(self.x.shape, dropout, draw_seed()) if dropout else None
        x, A, B = (t.detach().to(dtype or t.dtype).requires_grad_() for t in (self.x, self.A, self.B))
        bias = None if self.bias is None else self.bias.to(dtype or x.dtype)
        weight = self.dense.to(dtype or x.dtype)
        y = reference.lora_linear(x, weight, A, B, scaling=SCALING, dropout=dropout, mask=mask, bias=bias)
        return [y.detach(), *torch.autograd.grad(y, (x, A, B), self.grad_y.to(y.dtype))]

    def assert_equals_reference(self, dropout: float) -> None:
        results = (
            self.run(dropout),
            self.run_reference(torch.float64, dropout),
            self.run_reference(None, dropout),
        )
        for name, *values in zip(NAMES, *results, strict=True):
            assert_close_to_reference(*values, name=name)


# (T, N, K, R): one token; few; more than a tile; sizes that NF4's kernel for few tokens takes, and others.
SHAPES = [
    (1, 132, 192, 8),
    (19, 70, 67, 1),
    (70, 130, 64, 16),
    (33, 64, 128, 33),
    (7, 24, 40, 64),
    (2, 9, 5, 70),
]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("base", ["dense", "nf4", "nf4 nested"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "rows", "columns", "rank"), SHAPES)
def test_equals_float64(emulated_ops, tokens, rows, columns, rank, dtype, base, dropout):
    Layer(tokens, rows, columns, rank, base, dtype).assert_equals_reference(dropout)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e3])
def test_an_addition_that_is_nothing_or_nearly_all(emulated_ops, factor):
    layer = Layer(19, 40, 64, 8, "nf4", torch.bfloat16)
    layer.B = (layer.B * factor).detach().requires_grad_()
    layer.assert_equals_reference(0.0)
    layer = Layer(70, 40, 64, 8, "dense", torch.bfloat16)
    layer.B = (layer.B * factor).detach().requires_grad_()
    layer.assert_equals_reference(0.0)


@pytest.mark.parametrize("base", ["dense", "nf4"])
def test_empty_batch(emulated_ops, base, monkeypatch):
    layer = Layer(0, 40, 24, 4, base, torch.bfloat16)
    poisoned_empty(monkeypatch)
    y, grad_x, grad_A, grad_B = layer.run(0.1)
    assert y.shape == (0, 40) and grad_x.shape == (0, 24)
    assert torch.equal(grad_A, torch.zeros(4, 24)) and torch.equal(grad_B, torch.zeros(40, 4))


@pytest.mark.parametrize("base", ["dense", "nf4"])
@pytest.mark.parametrize("tokens", [19, 70])
def test_every_output_is_written_and_the_bits_are_fixed(emulated_ops, tokens, base, monkeypatch):
    layer = Layer(tokens, 130, 64, 16, base, torch.bfloat16)
    expected = layer.run(0.1)
    poisoned_empty(monkeypatch)
    for seed in range(2):
        emulated_ops.set_seed(seed + 10)
        for name, result, first in zip(NAMES, layer.run(0.1), expected, strict=True):
            assert torch.equal(result, first), name


@pytest.mark.parametrize("wanted", [{"x"}, {"A"}, {"B"}, {"bias"}, {"x", "B"}, {"A", "B"}])
def test_only_the_gradients_that_are_wanted(emulated_ops, wanted):
    layer = Layer(19, 40, 24, 4, "dense", torch.float32)
    expected = dict(zip(("y", "x", "A", "B"), layer.run(), strict=True)) | {"bias": layer.grad_y.sum(0)}
    leaves = {"x": layer.x, "A": layer.A, "B": layer.B, "bias": layer.bias}
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in leaves.items()}
    y = lora_linear(leaves["x"], layer.base, leaves["A"], leaves["B"], scaling=SCALING, bias=leaves["bias"])
    y.backward(layer.grad_y)
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in wanted)
        if name in wanted:  # dS alone is summed in other parts than together with dB
            torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", ["dense", "nf4"])
def test_checkpoint_recomputes_the_same_mask(emulated_ops, base):
    layer = Layer(19, 64, 64, 4, base, torch.bfloat16)

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


def test_leading_dimensions_and_non_contiguous_inputs(emulated_ops):
    layer = Layer(30, 64, 48, 4, "dense", torch.float32)
    expected = layer.run()
    x = layer.x.detach().view(5, 6, 48).permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    lora_A, lora_B = (t.detach().T.contiguous().T.requires_grad_() for t in (layer.A, layer.B))
    weight = layer.base.T.contiguous().T
    y = lora_linear(x, weight, lora_A, lora_B, scaling=SCALING)
    results = [y, *torch.autograd.grad(y, (x, lora_A, lora_B), layer.grad_y.view(5, 6, 64))]
    for result, clean in zip(results, expected, strict=True):
        torch.testing.assert_close(result.reshape(clean.shape), clean, rtol=1e-6, atol=1e-6)


def test_a_base_of_another_dtype(emulated_ops):
    layer = Layer(5, 40, 24, 4, "dense", torch.bfloat16)
    expected = layer.run()
    layer.base = layer.base.float()
    for name, result, first in zip(NAMES, layer.run(), expected, strict=True):
        assert torch.equal(result, first), name


def test_errors_name_what_is_wrong(emulated_ops):
    layer = Layer(5, 40, 24, 4, "nf4", torch.float32)

    def call(**changed) -> Tensor:
        given = {"x": layer.x, "weight": layer.base, "lora_A": layer.A, "lora_B": layer.B, "bias": layer.bias}
        return lora_linear(**(given | changed), scaling=1.0)

    for changed, message in (
        ({"x": layer.x[:, :23]}, r"lora_linear: x.shape\[-1\] is 23, weight expects 24"),
        ({"lora_A": layer.A[:, :23]}, r"lora_linear: lora_A.shape\[1\] is 23, weight expects 24"),
        ({"lora_B": layer.B[:, :3]}, r"lora_linear: lora_B.shape\[1\] is 3, lora_A expects 4"),
        ({"lora_A": layer.A.bfloat16()}, r"lora_linear: lora_A.dtype is bfloat16, expected float32"),
        ({"x": layer.x.double()}, r"lora_linear: x.dtype is float64, expected float32 or bfloat16"),
        ({"bias": layer.bias.bfloat16()}, r"lora_linear: bias.dtype is bfloat16, expected float32"),
        ({"bias": layer.bias[:39]}, r"lora_linear: bias.shape\[0\] is 39, weight expects 40"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**changed)
