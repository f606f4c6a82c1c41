"""`pyft.ops.nf4` as on a GPU: what `pyft.ops.cuda` makes of kernels and matrix products, with autograd."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference
from torch import Tensor

from pyft.ops import reference
from pyft.ops.cuda import nf4_dequantized
from pyft.ops.cuda.nf4_few_tokens import takes_few_tokens
from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_linear, nf4_quantize


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_weight(rows: int, columns: int, double_quant: bool = True) -> NF4Weight:
    return reference.nf4_quantize(random(rows, columns, seed=1) * 0.1, double_quant=double_quant)


def storage(weight: NF4Weight) -> tuple:
    return weight.parts, weight.shape


def check(x: Tensor, weight: NF4Weight, bias: Tensor | None) -> None:
    """Value, dX and the bias's gradient, by the tolerance rule."""
    dense = reference.nf4_dequantize(weight, x.dtype)
    grad_y = random(*x.shape[:-1], weight.shape[0], seed=9, dtype=x.dtype)
    inputs = [x] if bias is None else [x, bias]

    def run(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(dtype))]

    linear = torch.nn.functional.linear
    ours = run(lambda *leaves: nf4_linear(leaves[0], weight, *leaves[1:]), x.dtype)
    # In float32, rounded at the end: on the CPU, torch's bfloat16 may be better than that or much worse.
    torchs = run(lambda *leaves: linear(leaves[0], dense.float(), *leaves[1:]), torch.float32)
    exact = run(lambda *leaves: linear(leaves[0], dense.double(), *leaves[1:]), torch.float64)
    for name, mine, wide, plain in zip(("y", "dx", "dbias"), ours, exact, torchs, strict=False):
        assert_close_to_reference(mine, wide, plain.to(x.dtype), name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 19, 64, 65])
def test_any_number_of_tokens(emulated_ops, monkeypatch, tokens, dtype):
    monkeypatch.setattr(nf4_dequantized, "PANEL_BYTES", 1)
    check(random(tokens, 128, seed=2, dtype=dtype), make_weight(72, 128), random(72, seed=3, dtype=dtype))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 65), (20, 64), (37, 192)])
def test_sizes_that_no_kernel_takes_whole(emulated_ops, shape, double_quant):
    check(random(3, shape[1], seed=2, dtype=torch.bfloat16), make_weight(*shape, double_quant), None)


def test_blocks_that_share_tiles(emulated_ops):
    check(random(2, 640, seed=2, dtype=torch.bfloat16), make_weight(264, 640), None)


@pytest.mark.parametrize("shape", [(64,), (0, 64), (2, 0, 64), (2, 3, 64)])
def test_leading_dimensions(emulated_ops, shape):
    weight = make_weight(16, 64)
    x = random(*shape, seed=2, dtype=torch.bfloat16).requires_grad_()
    y = nf4_linear(x, weight)
    assert y.shape == (*shape[:-1], 16) and y.dtype == x.dtype
    y.backward(torch.ones_like(y))
    assert x.grad.shape == x.shape and x.grad.dtype == x.dtype


def test_views_and_tensors_that_are_not_aligned(emulated_ops):
    weight = make_weight(16, 64)
    x = random(6, 65, seed=2, dtype=torch.bfloat16)
    for view in (x[:, 1:], x[:, :64].T.contiguous().T, x.flatten()[1:385].view(6, 64)):
        check(view, weight, None)
    shifted = torch.cat([weight.codes[:3], weight.codes])[3:]
    assert torch.equal(nf4_linear(x[:, 1:], weight._replace(codes=shifted)), nf4_linear(x[:, 1:], weight))


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_double_backward_is_the_forward_again(emulated_ops):
    weight = make_weight(4, 8)
    inputs = (random(2, 8, seed=2).requires_grad_(), random(4, seed=3).requires_grad_())
    options = {"eps": 0.5, "atol": 1e-4, "rtol": 1e-4}
    with_bias = lambda x, bias: nf4_linear(x, weight, bias)  # noqa: E731
    assert torch.autograd.gradcheck(with_bias, inputs, **options)
    assert torch.autograd.gradgradcheck(with_bias, inputs, **options)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_accepts_the_operators(emulated_ops, dtype):
    weight = make_weight(24, 64)
    x = random(2, 64, seed=2, dtype=dtype).requires_grad_()
    bias = random(24, seed=3, dtype=dtype).requires_grad_()
    grad_y = random(2, 24, seed=4, dtype=dtype).requires_grad_()
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for op, arguments in (
        (torch.ops.pyft.nf4_linear, (x, *storage(weight), bias)),
        (torch.ops.pyft.nf4_linear_backward, (grad_y, *storage(weight))),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=checks)


@pytest.mark.parametrize("double_quant", [True, False])
def test_quantize_and_dequantize(emulated_ops, double_quant):
    dense = random(20, 130, seed=5)
    weight = nf4_quantize(dense, double_quant=double_quant)
    expected = reference.nf4_quantize(dense, double_quant=double_quant)
    assert torch.equal(weight.codes, expected.codes)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(nf4_dequantize(weight, dtype), reference.nf4_dequantize(weight, dtype))


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.ones(2, 31), None, r"nf4_linear: x.shape\[-1\] is 31, weight expects 64"),
        (torch.ones(()), None, r"nf4_linear: x has shape \[\], expected \[\.\.\., K\]"),
        (torch.ones(2, 64).half(), None, "nf4_linear: x.dtype is float16, expected float32 or bfloat16"),
        (torch.ones(2, 64), torch.ones(63), r"nf4_linear: bias.shape\[0\] is 63, weight expects 16"),
        (torch.ones(2, 64).bfloat16(), torch.ones(16), "bias.dtype is float32, expected bfloat16"),
    ],
)
def test_wrong_arguments_are_named(emulated_ops, x, bias, message):
    with pytest.raises(ValueError, match=message):
        nf4_linear(x, make_weight(16, 64), bias)


def test_the_choice_of_a_tier():
    def takes(dtype=torch.bfloat16, tokens=16, rows=96, columns=128, is_backward=False, is_aligned=True):
        return takes_few_tokens(dtype, tokens, rows, columns, is_backward=is_backward, is_aligned=is_aligned)

    assert takes() and takes(tokens=64) and takes(rows=7) and takes(is_backward=True)
    assert not takes(dtype=torch.float32) and not takes(tokens=65) and not takes(tokens=0)
    assert not takes(columns=96) and not takes(is_aligned=False)
    assert not takes(rows=100, is_backward=True) and not takes(rows=0) and not takes(columns=0)
