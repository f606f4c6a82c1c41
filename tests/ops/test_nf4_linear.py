"""nf4_linear against float64 autograd on the dequantised weight, and torch's own checks of the operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backends import CPU, GPU, Backend, capture, on_backends, on_gpu, run_late
from numerics import assert_close_to_reference, poisoned_empty
from torch import Tensor

from pyft.ops import reference
from pyft.ops.arguments import nf4_parts
from pyft.ops.cuda import nf4_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, linear_few_tokens, takes_few_tokens
from pyft.ops.native import C
from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_linear, nf4_quantize

DTYPES = [torch.float32, torch.bfloat16]
# (T, N, K) on a GPU: few tokens and many; a weight of one panel and one of two.
TIERS = {"few tokens": (16, 264, 320), "one panel": (100, 264, 320), "two panels": (100, 4096, 4096)}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32, backend: Backend = CPU) -> Tensor:
    return backend.random(*shape, seed=seed, dtype=dtype, trained=False)


def on_device(weight: NF4Weight, device: str) -> NF4Weight:
    return NF4Weight(*(None if part is None else part.to(device) for part in weight[:5]), weight.shape)


def make_weight(
    out_features: int,
    in_features: int,
    double_quant: bool = True,
    *,
    scale: float = 0.1,
    backend: Backend = CPU,
) -> NF4Weight:
    """Quantised by plain torch."""
    dense = random(out_features, in_features, seed=1) * scale
    return on_device(reference.nf4_quantize(dense, double_quant=double_quant), backend.device)


def storage(weight: NF4Weight) -> tuple:
    return weight.parts, weight.shape


def check_against_float64(x: Tensor, weight: NF4Weight, bias: Tensor | None, backend: Backend = CPU) -> None:
    """Value, dX and d bias of nf4_linear, by the tolerance rule."""
    dense = reference.nf4_dequantize(on_device(weight, "cpu"), x.dtype).to(x.device)
    grad_y = random(*x.shape[:-1], weight.shape[0], seed=9, dtype=x.dtype, backend=backend)
    inputs = [x] if bias is None else [x, bias]

    def run(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(dtype))]

    ours = run(lambda *leaves: nf4_linear(leaves[0], weight, *leaves[1:]), x.dtype)
    # Beside emulated kernels torch works in float32, rounded at the end: its bfloat16 on the CPU may be
    # better than that or much worse.
    own = torch.float32 if backend.name == "emulated" else x.dtype
    torchs = run(lambda *leaves: F.linear(leaves[0], dense.to(own), *leaves[1:]), own)
    exact = run(lambda *leaves: F.linear(leaves[0], dense.double(), *leaves[1:]), torch.float64)
    for name, mine, wide, plain in zip(("y", "dx", "dbias"), ours, exact, torchs, strict=False):
        assert_close_to_reference(mine, wide, plain.to(x.dtype), name=name)


@pytest.fixture
def small_panels(monkeypatch):
    """On CUDA kernels the smallest panels, so that a small weight has several."""
    monkeypatch.setattr(nf4_dequantized, "PANEL_BYTES", 1)


@on_backends(
    "num_tokens, out_features, in_features",
    *((num_tokens, 72, 128) for num_tokens in (1, 19, 64, 65)),
    cpu=[(t, 70, k) for t in (1, 2, 3, 4, 5, 8, 9, 19, 97, 423) for k in (132, 320)],
    cuda=[(t, 264, 320) for t in (1, 8, 9, 19, 33, 64, 65, 300)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_tokens(
    backend, small_panels, num_tokens, out_features, in_features, dtype, monkeypatch
):
    weight = make_weight(out_features, in_features, backend=backend)
    bias = random(out_features, seed=3, dtype=dtype, backend=backend)
    x = random(num_tokens, in_features, seed=2, dtype=dtype, backend=backend)
    poisoned_empty(monkeypatch)
    check_against_float64(x, weight, bias, backend)


@on_backends(
    "num_tokens, out_features, in_features",
    *((3, *shape) for shape in ((1, 1), (7, 65), (20, 64), (37, 192))),
    (2, 264, 640),  # blocks that share tiles
    cpu=[
        (num_tokens, *shape)
        for num_tokens in (2, 40)
        for shape in (
            *((64, 64), (1, 1), (1, 300), (300, 1), (7, 13)),
            *((257, 65), (33, 256), (512, 384), (270, 530)),
        )
    ],
)
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_size_of_the_weight(
    backend, num_tokens, out_features, in_features, dtype, double_quant, monkeypatch
):
    weight = make_weight(out_features, in_features, double_quant, backend=backend)
    x = random(num_tokens, in_features, seed=2, dtype=dtype, backend=backend)
    poisoned_empty(monkeypatch)
    check_against_float64(x, weight, None, backend)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96,), (0, 96), (2, 0, 96), (2, 3, 5, 96), (2, 3, 64)])
def test_leading_dimensions(backend, shape, dtype):
    weight = make_weight(40, shape[-1], backend=backend)
    bias = random(40, seed=3, dtype=dtype, backend=backend)
    x = random(*shape, seed=2, dtype=dtype, backend=backend).requires_grad_()
    y = nf4_linear(x, weight, bias)
    assert y.shape == (*shape[:-1], 40) and y.dtype == dtype
    y.backward(torch.ones_like(y))
    assert x.grad.shape == x.shape and x.grad.dtype == dtype
    if x.numel():
        check_against_float64(x.detach(), weight, bias, backend)


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
def test_views_of_x_and_of_the_gradient(backend, view):
    x = view(random(96, 96, seed=2, backend=backend))
    weight = make_weight(96, 96, backend=backend)
    assert torch.equal(nf4_linear(x, weight), nf4_linear(x.contiguous(), weight))
    backward = torch.ops.pyft.nf4_linear_backward
    assert torch.equal(backward(x, *storage(weight)), backward(x.contiguous(), *storage(weight)))


def test_tensors_that_are_not_aligned(backend):
    weight = make_weight(16, 64, backend=backend)
    x = random(6, 65, seed=2, dtype=torch.bfloat16, backend=backend)
    for view in (x[:, 1:], x[:, :64].T.contiguous().T, x.flatten()[1:385].view(6, 64)):
        check_against_float64(view, weight, None, backend)
    shifted = torch.cat([weight.codes[:3], weight.codes])[3:]
    assert torch.equal(nf4_linear(x[:, 1:], weight._replace(codes=shifted)), nf4_linear(x[:, 1:], weight))


def test_an_expanded_gradient_comes_from_sum(backend):
    weight = make_weight(40, 96, backend=backend)
    x = random(5, 96, seed=2, backend=backend).requires_grad_()
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


def test_only_what_is_asked_gets_a_gradient(backend):
    weight, x = make_weight(40, 96, backend=backend), random(5, 96, seed=2, backend=backend)
    bias = random(40, seed=3, backend=backend).requires_grad_()
    nf4_linear(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 5.0))
    assert not nf4_linear(x, weight).requires_grad


@on_backends("shape", ((4, 8),), cpu=[((24, 40),)])
@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_double_backward_is_the_forward_again(backend, shape):
    weight = make_weight(*shape, backend=backend)
    inputs = (backend.random(3, shape[1], seed=2), backend.random(shape[0], seed=3))
    # linear in everything, so a wide step is exact and keeps float32's rounding out
    options = {"eps": 0.5, "atol": 1e-4, "rtol": 1e-4}
    with_bias = lambda x, bias: nf4_linear(x, weight, bias)  # noqa: E731
    assert torch.autograd.gradcheck(with_bias, inputs, **options)
    assert torch.autograd.gradgradcheck(with_bias, inputs, **options)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True])
def test_torch_accepts_the_operators(backend, double_quant, dtype):
    weight, ops = make_weight(24, 64, double_quant, backend=backend), torch.ops.pyft
    x, bias = (backend.random(*shape, seed=2, dtype=dtype) for shape in ((2, 3, 64), (24,)))
    grad_y = backend.random(2, 3, 24, seed=4, dtype=dtype)
    for op, arguments in (
        (ops.nf4_linear, (x, *storage(weight), bias)),
        (ops.nf4_linear, (x.detach().transpose(0, 1), *storage(weight), None)),
        (ops.nf4_linear_backward, (grad_y, *storage(weight))),
    ):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torch_accepts_the_operators_of_storage(backend):
    weight, ops = make_weight(24, 40, backend=backend), torch.ops.pyft
    absmax = random(24, seed=6, backend=backend).abs()
    for op, arguments in (
        (ops.nf4_dequantize, (*storage(weight), torch.bfloat16)),
        (ops.nf4_quantize, (random(24, 40, seed=5, backend=backend),)),
        (ops.nf4_quantize_absmax, (absmax, None)),
        (ops.nf4_quantize_absmax, (absmax, torch.ones((), device=backend.device))),
    ):
        torch.library.opcheck(op.default, arguments)


def test_wrong_arguments_are_named(backend):
    weight, ones = make_weight(16, 64, backend=backend), torch.ones(2, 64, device=backend.device)
    for x, bias, message in (
        (ones[:, :31], None, r"x.shape\[-1\] is 31, weight expects 64"),
        (ones[0, 0], None, r"x has shape \[\], expected \[\.\.\., K\]"),
        (ones.half(), None, "x.dtype is float16, expected float32 or bfloat16"),
        (ones.double(), None, "x.dtype is float64, expected float32 or bfloat16"),
        (ones, ones[0, :63], r"bias.shape\[0\] is 63, weight expects 16"),
        (ones.bfloat16(), ones[0, :16], "bias.dtype is float32, expected bfloat16"),
    ):
        with pytest.raises(ValueError, match=f"nf4_linear: {message}"):
            nf4_linear(x, weight, bias)


def test_on_the_meta_device_only_shapes_are_computed():
    weight = make_weight(24, 40)
    meta = NF4Weight(*(None if part is None else part.to("meta") for part in weight[:5]), weight.shape)
    y = nf4_linear(torch.empty(2, 3, 40, device="meta", dtype=torch.bfloat16), meta)
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 24), torch.bfloat16, "meta")
    assert nf4_dequantize(meta).shape == (24, 40)
    assert nf4_quantize(torch.empty(24, 40, device="meta")).absmax_codes.shape == (15,)


# ---- on CUDA kernels -------------------------------------------------------------------------------------


def test_the_choice_of_a_tier():
    def takes(dtype=torch.bfloat16, tokens=16, rows=96, columns=128, is_backward=False, is_aligned=True):
        return takes_few_tokens(dtype, tokens, rows, columns, is_backward=is_backward, is_aligned=is_aligned)

    assert takes() and takes(tokens=64) and takes(rows=7) and takes(is_backward=True)
    assert not takes(dtype=torch.float32) and not takes(tokens=65) and not takes(tokens=0)
    assert not takes(columns=96) and not takes(is_aligned=False)
    assert not takes(rows=100, is_backward=True) and not takes(rows=0) and not takes(columns=0)


@on_gpu
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("tokens", [1, 8, 9, 19, 33, 64, 65, 300])
def test_small_products(tokens, double_quant):
    """Small enough for compute-sanitizer."""
    weight = make_weight(264, 320, double_quant, scale=0.02, backend=GPU)
    x = random(tokens, 320, seed=2, dtype=torch.bfloat16, backend=GPU)
    bias = random(264, seed=3, dtype=torch.bfloat16, backend=GPU)
    check_against_float64(x, weight, bias, GPU)


@on_gpu
def test_small_products_with_a_low_rank_addend():
    weight = make_weight(264, 320, scale=0.02, backend=GPU)
    parts, dense = nf4_parts(*storage(weight)), nf4_dequantize(weight, torch.bfloat16)
    for tokens, rank in ((1, 4), (16, 16), (40, 64)):
        projected = random(tokens, rank, seed=4, backend=GPU)
        for product, operand, adapter in (
            (linear_few_tokens, dense.T, random(264, rank, seed=5, backend=GPU)),
            (backward_few_tokens, dense, random(rank, 320, seed=6, backend=GPU)),
        ):
            is_forward = product is linear_few_tokens
            given = random(tokens, operand.shape[0], seed=7, dtype=torch.bfloat16, backend=GPU)
            out = GPU.full(tokens, operand.shape[1], dtype=torch.bfloat16)
            names = ("projected", "lora_B") if is_forward else ("grad_projected", "lora_A")
            product(given, parts, out, **dict(zip(names, (projected, adapter), strict=True)))
            added = adapter.T if is_forward else adapter
            exact = given.double() @ operand.double() + projected.double() @ added.double()
            torchs = (given.float() @ operand.float() + projected @ added).bfloat16()
            assert_close_to_reference(out, exact, torchs, name=product.__name__)


@on_gpu
@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)])
def test_shapes_of_a_model(shape):
    weight = make_weight(*shape, scale=0.02, backend=GPU)
    for tokens in (1, 16, 64, 65, 512):
        x = random(tokens, shape[1], seed=2, dtype=torch.bfloat16, backend=GPU)
        check_against_float64(x, weight, None, GPU)
    bias = random(shape[0], seed=3, backend=GPU)
    check_against_float64(random(130, shape[1], seed=2, backend=GPU), weight, bias, GPU)


def make_tier(tier: str) -> tuple[Tensor, Tensor, NF4Weight]:
    """x, the gradient of y, and the weight."""
    tokens, rows, columns = TIERS[tier]
    x = random(tokens, columns, seed=2, dtype=torch.bfloat16, backend=GPU)
    grad_y = random(tokens, rows, seed=3, dtype=torch.bfloat16, backend=GPU)
    return x, grad_y, make_weight(rows, columns, scale=0.02, backend=GPU)


def run_both(x: Tensor, grad_y: Tensor, weight: NF4Weight) -> tuple[Tensor, Tensor]:
    return nf4_linear(x, weight), torch.ops.pyft.nf4_linear_backward(grad_y, *storage(weight))


@on_gpu
@pytest.mark.parametrize("tier", TIERS)
def test_the_same_bits_every_time(tier):
    given = make_tier(tier)
    first = run_both(*given)
    for _ in range(10):
        assert all(map(torch.equal, first, run_both(*given)))


@on_gpu
@pytest.mark.parametrize("tier", TIERS)
def test_on_a_side_stream_behind_a_slow_producer(tier):
    """All that the operations queue, on whatever streams, comes after what theirs had before."""
    x, grad_y, weight = make_tier(tier)
    expected = run_both(x, grad_y, weight)
    found = run_late(
        lambda x, grad_y, codes: run_both(x, grad_y, weight._replace(codes=codes)),
        *(x, grad_y, weight.codes),
        num_scratch=weight.shape[0] * weight.shape[1],
    )
    assert all(map(torch.equal, expected, found))


@on_gpu
@pytest.mark.parametrize("tier", TIERS)
def test_in_a_cuda_graph(tier):
    x, grad_y, weight = make_tier(tier)
    graph, captured = capture(lambda: run_both(x, grad_y, weight))
    for seed in (11, 12):
        x.copy_(random(*x.shape, seed=seed))
        grad_y.copy_(random(*grad_y.shape, seed=seed + 10))
        for result in captured:
            result.fill_(float("nan"))
        graph.replay()
        assert all(map(torch.equal, captured, run_both(x, grad_y, weight)))


@on_gpu
def test_panels_take_no_more_memory_than_two_of_them():
    weight = make_weight(14336, 4096, scale=0.02, backend=GPU)
    x, grad_y = (
        random(512, width, seed=2, dtype=torch.bfloat16, backend=GPU) for width in reversed(weight.shape)
    )
    results = run_both(x, grad_y, weight)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run_both(x, grad_y, weight)
    taken = torch.cuda.max_memory_allocated() - before
    result_bytes = sum(r.numel() * r.element_size() for r in results)
    assert taken < 2 * nf4_dequantized.PANEL_BYTES + 2 * result_bytes + (1 << 20)


@on_gpu
def test_tensors_on_two_devices_are_refused():
    weight = make_weight(16, 64)
    for tokens in (2, 100):
        with pytest.raises(ValueError, match="cpu"):
            nf4_linear(random(tokens, 64, seed=2, backend=GPU), weight)
