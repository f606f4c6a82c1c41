"""nf4_linear against float64 autograd on the dequantised weight, and torch's own checks of the operators."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, poisoned_empty
from torch import Tensor

from pyft.ops.native import C
from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_linear, nf4_quantize

DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_weight(out_features: int, in_features: int, double_quant: bool = True) -> NF4Weight:
    return nf4_quantize(random(out_features, in_features, seed=1) * 0.1, double_quant=double_quant)


def storage(weight: NF4Weight) -> tuple:
    return weight.parts, weight.shape


def check_against_float64(x: Tensor, weight: NF4Weight, bias: Tensor | None) -> None:
    """Value, dX and d bias of nf4_linear, by the tolerance rule."""
    dense = nf4_dequantize(weight, x.dtype)
    grad_y = random(*x.shape[:-1], weight.shape[0], seed=9, dtype=x.dtype)
    inputs = [x] if bias is None else [x, bias]

    def run(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(dtype))]

    ours = run(lambda *leaves: nf4_linear(leaves[0], weight, *leaves[1:]), x.dtype)
    torchs = run(lambda *leaves: torch.nn.functional.linear(leaves[0], dense, *leaves[1:]), x.dtype)
    exact = run(
        lambda *leaves: torch.nn.functional.linear(leaves[0], dense.double(), *leaves[1:]), torch.float64
    )
    for name, *results in zip(("y", "dx", "dbias"), ours, exact, torchs, strict=False):
        assert_close_to_reference(*results, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [132, 320])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 8, 9, 19, 97, 423])
def test_any_number_of_tokens(num_tokens, in_features, dtype, monkeypatch):
    weight, bias = make_weight(70, in_features), random(70, seed=3, dtype=dtype)
    poisoned_empty(monkeypatch)
    check_against_float64(random(num_tokens, in_features, seed=2, dtype=dtype), weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [2, 40])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(64, 64), (1, 1), (1, 300), (300, 1), (7, 13), (257, 65), (33, 256), (512, 384), (270, 530)],
)
def test_any_size_of_the_weight(out_features, in_features, num_tokens, dtype, monkeypatch):
    weight = make_weight(out_features, in_features)
    poisoned_empty(monkeypatch)
    check_against_float64(random(num_tokens, in_features, seed=2, dtype=dtype), weight, None)


@pytest.mark.parametrize("num_tokens", [1, 4, 19])
@pytest.mark.parametrize("in_features", [1, 63, 65, 127, 257, 511])
@pytest.mark.parametrize("out_features", [1, 63, 65, 127, 257, 511])
def test_odd_sizes(out_features, in_features, num_tokens):
    """Sums of 257 products and more show how long a chain of additions is; 1, 4 and 19 rows, in which tile.

    Several draws are judged together: of a few numbers, torch's may happen to be exact.
    """
    weight = make_weight(out_features, in_features)
    dense = nf4_dequantize(weight)
    y, dx = [], []
    for seed in range(16):
        x, grad_y = (
            random(num_tokens, in_features, seed=seed),
            random(num_tokens, out_features, seed=50 + seed),
        )
        grad_x = torch.ops.pyft.nf4_linear_backward(grad_y, *storage(weight))
        y.append((nf4_linear(x, weight), x.double() @ dense.double().T, x @ dense.T))
        dx.append((grad_x, grad_y.double() @ dense.double(), grad_y @ dense))
    assert_close_to_reference(*map(torch.cat, zip(*y, strict=True)), name="y")
    assert_close_to_reference(*map(torch.cat, zip(*dx, strict=True)), name="dx")


@pytest.mark.parametrize("double_quant", [False, True])
def test_plain_and_nested_scales(double_quant):
    check_against_float64(random(20, 96, seed=2), make_weight(48, 96, double_quant), None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96,), (0, 96), (2, 0, 96), (2, 3, 5, 96)])
def test_leading_dimensions(shape, dtype):
    weight, bias = make_weight(40, 96), random(40, seed=3, dtype=dtype)
    x = random(*shape, seed=2, dtype=dtype).requires_grad_()
    y = nf4_linear(x, weight, bias)
    assert y.shape == (*shape[:-1], 40) and y.dtype == dtype
    y.backward(torch.ones_like(y))
    assert x.grad.shape == x.shape and x.grad.dtype == dtype
    if x.numel():
        check_against_float64(x.detach(), weight, bias)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[::2],
        lambda t: t[:, :96].t().contiguous().t(),
        lambda t: t[:1].expand(30, 96),
    ],
    ids=["transposed", "every second row", "column major", "expanded"],
)
def test_views_of_x_and_of_the_gradient(view):
    x = view(random(96, 96, seed=2))
    weight = make_weight(96, 96)
    assert torch.equal(nf4_linear(x, weight), nf4_linear(x.contiguous(), weight))
    backward = torch.ops.pyft.nf4_linear_backward
    assert torch.equal(backward(x, *storage(weight)), backward(x.contiguous(), *storage(weight)))


def test_an_expanded_gradient_comes_from_sum():
    weight, x = make_weight(40, 96), random(5, 96, seed=2).requires_grad_()
    nf4_linear(x, weight).sum().backward()
    expected = nf4_dequantize(weight).double().sum(dim=0).expand(5, 96)
    assert_close_to_reference(x.grad, expected, nf4_dequantize(weight).sum(dim=0).expand(5, 96), name="dx")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_non_finite_inputs_reach_the_output(num_tokens, dtype):
    weight = make_weight(64, 64)
    backward = torch.ops.pyft.nf4_linear_backward
    for value in (float("nan"), float("inf")):
        x = random(num_tokens, 64, seed=2, dtype=dtype)
        x[0, 5] = value
        dense = nf4_dequantize(weight, dtype).double()
        for found, expected in (
            (nf4_linear(x, weight), x.double() @ dense.T),
            (backward(x, *storage(weight)), x.double() @ dense),
        ):
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found.isinf(), expected.isinf()) and found[1:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_a_weight_that_is_not_finite_reaches_the_output(num_tokens, dtype):
    dense = random(64, 128, seed=1)
    dense[7, 70] = float("nan")
    weight, x = nf4_quantize(dense, double_quant=False), random(num_tokens, 128, seed=2, dtype=dtype)
    y = nf4_linear(x, weight)
    assert y[:, 7].isnan().all() and int(y.isnan().sum()) == num_tokens
    grad_x = torch.ops.pyft.nf4_linear_backward(x[:, :64].contiguous(), *storage(weight))
    assert grad_x[:, :64].isfinite().all() and grad_x[:, 64:].isnan().all()
    weight.absmax[15] = float("inf")
    assert not nf4_linear(x, weight)[:, 7].isfinite().any()
    grad_x = torch.ops.pyft.nf4_linear_backward(x[:, :64].contiguous(), *storage(weight))
    assert grad_x[:, :64].isfinite().all() and not grad_x[:, 64:].isfinite().any()


@pytest.mark.parametrize("double_quant", [False, True])
def test_products_with_the_identity_are_the_weight(double_quant):
    """In bfloat16 the weights that are multiplied may be finer than bfloat16's, not coarser."""
    weight = make_weight(192, 128, double_quant)
    exact = nf4_dequantize(weight).double()
    backward = torch.ops.pyft.nf4_linear_backward
    largest = exact.abs().view(192, 2, 64).amax(dim=2, keepdim=True).expand(192, 2, 64).reshape(192, 128)
    allowed = exact.abs() * 2**-8 + largest * 2.2e-4
    columns = nf4_linear(torch.eye(128, dtype=torch.bfloat16), weight).double().T
    rows = backward(torch.eye(192, dtype=torch.bfloat16), *storage(weight)).double()
    assert ((columns - exact).abs() <= allowed).all() and ((rows - exact).abs() <= allowed).all()


@pytest.mark.parametrize("num_tokens", [1, 20])
@pytest.mark.parametrize("exponent", [-95, -40, 0, 40, 110])
def test_any_magnitude_in_bfloat16(exponent, num_tokens):
    """Large and small values far apart, in one run of 64 and in different ones, and rows of zeros."""
    weight = make_weight(128, 128)
    x = random(num_tokens, 128, seed=2).double() * 2.0**exponent
    x[:, 64:] *= 2.0**-12
    x[:, ::16] *= 2.0**10
    x[num_tokens // 2] *= num_tokens == 1
    check_against_float64(x.bfloat16(), weight, None)


@pytest.mark.parametrize("num_tokens", [1, 20])
def test_the_smallest_numbers_of_bfloat16(num_tokens):
    """They may keep fewer bits, but are neither lost nor made up.

    AVX512_BF16 cannot hold this bound where it multiplies pairs (more than a few tokens): vdpbf16ps takes
    subnormal operands, products and sums for zero in every mode. Twice the bound holds there.
    """
    weight = make_weight(128, 128)
    x = (random(num_tokens, 128, seed=2).double() * 2.0**-122).bfloat16()
    dense = nf4_dequantize(weight).double()
    flushes = C.cpu_isa() == "avx512_bf16" and num_tokens > 1
    allowed = 2.0 ** (-125 if flushes else -126) * dense.abs()
    y, grad_x = nf4_linear(x, weight), torch.ops.pyft.nf4_linear_backward(x, *storage(weight))
    assert ((y.double() - x.double() @ dense.T).abs() <= allowed.sum(dim=1)).all() and y.any()
    assert ((grad_x.double() - x.double() @ dense).abs() <= allowed.sum(dim=0)).all() and grad_x.any()


@pytest.mark.parametrize("num_tokens", [1, 20])
def test_scales_below_zero(num_tokens):
    """A nested scale may come out so; here they are the largest of their rows and columns of blocks."""
    weight = make_weight(130, 128, double_quant=False)
    weight.absmax[::3] *= -4
    check_against_float64(random(num_tokens, 128, seed=2, dtype=torch.bfloat16), weight, None)


@pytest.mark.parametrize("num_tokens", [1, 20])
def test_tiny_weights_times_large_values(num_tokens):
    weight = nf4_quantize(random(128, 128, seed=1) * 2.0**-119, double_quant=False)
    x = random(num_tokens, 128, seed=2) * 2.0**40
    check_against_float64(x.bfloat16(), weight, None)


@pytest.mark.parametrize("factor", [1, 8, 20, 100, 1000, 1e6])
def test_rows_of_the_weight_far_above_the_others(factor):
    """With a gradient of zero they must not cost the others their precision."""
    dense = random(192, 128, seed=1) * 0.1
    dense[::64] *= factor
    weight, grad_y = nf4_quantize(dense, double_quant=False), random(24, 192, seed=2, dtype=torch.bfloat16)
    grad_y[:, ::64] = 0
    assert_close_to_reference(
        torch.ops.pyft.nf4_linear_backward(grad_y, *storage(weight)),
        grad_y.double() @ nf4_dequantize(weight).double(),
        grad_y @ nf4_dequantize(weight, torch.bfloat16),
        name="dx",
    )


def test_a_feature_far_above_the_others():
    """One feature 1000 times the others, as trained models have."""
    x = random(24, 256, seed=2)
    x[:, 17] *= 1000
    check_against_float64(x.bfloat16(), make_weight(96, 256), None)


def test_only_what_is_asked_gets_a_gradient():
    weight = make_weight(40, 96)
    bias = random(40, seed=3).requires_grad_()
    nf4_linear(random(5, 96, seed=2), weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((40,), 5.0))
    assert not nf4_linear(random(5, 96, seed=2), weight).requires_grad


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_double_backward_is_the_forward_again():
    weight = make_weight(24, 40)
    inputs = (random(3, 40, seed=2).requires_grad_(), random(24, seed=3).requires_grad_())
    # linear in everything, so a wide step is exact and keeps float32's rounding out
    options = {"eps": 0.5, "atol": 1e-4, "rtol": 1e-4}
    with_bias = lambda x, bias: nf4_linear(x, weight, bias)  # noqa: E731
    assert torch.autograd.gradcheck(with_bias, inputs, **options)
    assert torch.autograd.gradgradcheck(with_bias, inputs, **options)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("double_quant", [False, True])
def test_torch_accepts_the_operators(double_quant):
    weight = make_weight(24, 40, double_quant)
    x = random(2, 3, 40, seed=2).requires_grad_()
    bias = random(24, seed=3).requires_grad_()
    ops = torch.ops.pyft
    for op, arguments in (
        (ops.nf4_linear, (x, *storage(weight), bias)),
        (ops.nf4_linear, (x.detach().bfloat16().transpose(0, 1), *storage(weight), None)),
        (ops.nf4_linear_backward, (random(2, 3, 24, seed=4).requires_grad_(), *storage(weight))),
        (ops.nf4_dequantize, (*storage(weight), torch.bfloat16)),
        (ops.nf4_quantize, (random(24, 40, seed=5),)),
        (ops.nf4_quantize_absmax, (random(24, seed=6).abs(), None)),
        (ops.nf4_quantize_absmax, (random(24, seed=6).abs(), torch.ones(()))),
    ):
        torch.library.opcheck(op.default, arguments)


def test_on_the_meta_device_only_shapes_are_computed():
    weight = make_weight(24, 40)
    meta = NF4Weight(*(None if part is None else part.to("meta") for part in weight[:5]), weight.shape)
    y = nf4_linear(torch.empty(2, 3, 40, device="meta", dtype=torch.bfloat16), meta)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 24), torch.bfloat16, "meta")
    assert nf4_dequantize(meta).shape == (24, 40)
    assert nf4_quantize(torch.empty(24, 40, device="meta")).absmax_codes.shape == (15,)
