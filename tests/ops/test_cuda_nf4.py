"""NF4 on a GPU: the public operations, on CUDA tensors, against float64 and in streams and graphs.

Those called `small` are small enough for compute-sanitizer.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close_to_reference
from torch import Tensor

from pyft.ops import reference
from pyft.ops.arguments import nf4_parts
from pyft.ops.cuda import nf4_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, linear_few_tokens
from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_linear, nf4_quantize

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Few tokens and many; a weight of one panel and one of two.
TIERS = {"small": (16, 264, 320), "one panel": (100, 264, 320), "two panels": (100, 4096, 4096)}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to("cuda", dtype)


def make_weight(rows: int, columns: int, double_quant: bool = True) -> NF4Weight:
    return nf4_quantize(random(rows, columns, seed=1, dtype=torch.float32) * 0.02, double_quant=double_quant)


def storage(weight: NF4Weight) -> tuple:
    return weight.parts, weight.shape


def check(tokens: int, weight: NF4Weight, dtype: torch.dtype, *, has_bias: bool) -> None:
    """Value, dX and the bias's gradient, by the tolerance rule."""
    rows, columns = weight.shape
    dense = nf4_dequantize(weight, dtype)
    grad_y = random(tokens, rows, seed=9, dtype=dtype)
    inputs = [random(tokens, columns, seed=2, dtype=dtype)]
    if has_bias:
        inputs.append(random(rows, seed=3, dtype=dtype))

    def run(function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(dtype))]

    ours = run(lambda *leaves: nf4_linear(leaves[0], weight, *leaves[1:]), dtype)
    torchs = run(lambda *leaves: F.linear(leaves[0], dense, *leaves[1:]), dtype)
    exact = run(lambda *leaves: F.linear(leaves[0], dense.double(), *leaves[1:]), torch.float64)
    for name, *results in zip(("y", "dx", "dbias"), ours, exact, torchs, strict=False):
        assert_close_to_reference(*results, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (7, 65), (64, 129), (300, 333)])
def test_small_weights_are_quantised_as_on_the_cpu(shape, dtype):
    dense = random(*shape, seed=5, dtype=dtype)
    for double_quant in (False, True):
        ours = nf4_quantize(dense, double_quant=double_quant)
        theirs = reference.nf4_quantize(dense.cpu(), double_quant=False)
        assert torch.equal(ours.codes.cpu(), theirs.codes)
        if not double_quant:
            assert torch.equal(ours.absmax.cpu(), theirs.absmax)
        on_cpu = NF4Weight(*(None if part is None else part.cpu() for part in ours[:5]), ours.shape)
        for out in (torch.float32, torch.bfloat16):
            assert torch.equal(nf4_dequantize(ours, out).cpu(), reference.nf4_dequantize(on_cpu, out))


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("tokens", [1, 8, 9, 19, 33, 64, 65, 300])
def test_small_products(tokens, double_quant):
    check(tokens, make_weight(264, 320, double_quant), torch.bfloat16, has_bias=True)


@pytest.mark.parametrize("shape", [(1, 1), (7, 65), (20, 64), (37, 192)])
def test_small_sizes_off_every_tile(shape):
    for dtype in (torch.float32, torch.bfloat16):
        check(3, make_weight(*shape), dtype, has_bias=False)


def test_small_products_with_a_low_rank_addend():
    weight = make_weight(264, 320)
    parts, dense = nf4_parts(*storage(weight)), nf4_dequantize(weight, torch.bfloat16)
    for tokens, rank in ((1, 4), (16, 16), (40, 64)):
        projected = random(tokens, rank, seed=4, dtype=torch.float32)
        for product, operand, adapter in (
            (linear_few_tokens, dense.T, random(264, rank, seed=5, dtype=torch.float32)),
            (backward_few_tokens, dense, random(rank, 320, seed=6, dtype=torch.float32)),
        ):
            is_forward = product is linear_few_tokens
            given = random(tokens, operand.shape[0], seed=7)
            out = torch.full((tokens, operand.shape[1]), float("nan"), dtype=torch.bfloat16, device="cuda")
            names = ("projected", "lora_B") if is_forward else ("grad_projected", "lora_A")
            product(given, parts, out, **dict(zip(names, (projected, adapter), strict=True)))
            added = adapter.T if is_forward else adapter
            exact = given.double() @ operand.double() + projected.double() @ added.double()
            torchs = (given.float() @ operand.float() + projected @ added).bfloat16()
            assert_close_to_reference(out, exact, torchs, name=product.__name__)


@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)])
def test_shapes_of_a_model(shape):
    weight = make_weight(*shape)
    for tokens in (1, 16, 64, 65, 512):
        check(tokens, weight, torch.bfloat16, has_bias=False)
    check(130, weight, torch.float32, has_bias=True)


def run_both(x: Tensor, grad_y: Tensor, weight: NF4Weight) -> tuple[Tensor, Tensor]:
    return nf4_linear(x, weight), torch.ops.pyft.nf4_linear_backward(grad_y, *storage(weight))


@pytest.mark.parametrize("tier", TIERS)
def test_the_same_bits_every_time(tier):
    tokens, rows, columns = TIERS[tier]
    weight = make_weight(rows, columns)
    x, grad_y = random(tokens, columns, seed=2), random(tokens, rows, seed=3)
    first = run_both(x, grad_y, weight)
    for _ in range(10):
        assert all(map(torch.equal, first, run_both(x, grad_y, weight)))


@pytest.mark.parametrize("tier", TIERS)
def test_on_a_stream_behind_a_slow_producer(tier):
    """All that the operations queue, on whatever streams, comes after what theirs had before."""
    tokens, rows, columns = TIERS[tier]
    dense = random(rows, columns, seed=1, dtype=torch.float32) * 0.02
    weight = nf4_quantize(dense)
    x, grad_y = random(tokens, columns, seed=2), random(tokens, rows, seed=3)
    expected = run_both(x, grad_y, weight)
    late_x, late_grad_y = torch.zeros_like(x), torch.zeros_like(grad_y)
    late = weight._replace(codes=torch.zeros_like(weight.codes))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.codes.copy_(weight.codes)
        late_x.copy_(x)
        late_grad_y.copy_(grad_y)
        found = run_both(late_x, late_grad_y, late)
        # What comes next on the stream may take the memory of what has been freed, and change the inputs.
        late.codes.zero_()
        late_x.zero_()
        scratch = [torch.full_like(dense, float("nan")) for _ in range(2)]
    stream.synchronize()
    assert all(map(torch.equal, expected, found)) and len(scratch) == 2


@pytest.mark.parametrize("tier", TIERS)
def test_in_a_cuda_graph(tier):
    tokens, rows, columns = TIERS[tier]
    weight = make_weight(rows, columns)
    x, grad_y = random(tokens, columns, seed=2), random(tokens, rows, seed=3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_both(x, grad_y, weight)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_both(x, grad_y, weight)
    for seed in (11, 12):
        x.copy_(random(*x.shape, seed=seed))
        grad_y.copy_(random(*grad_y.shape, seed=seed + 10))
        for result in captured:
            result.fill_(float("nan"))
        graph.replay()
        assert all(map(torch.equal, captured, run_both(x, grad_y, weight)))


def test_panels_take_no_more_memory_than_two_of_them():
    weight = make_weight(14336, 4096)
    x, grad_y = random(512, 4096, seed=2), random(512, 14336, seed=3)
    results = run_both(x, grad_y, weight)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run_both(x, grad_y, weight)
    taken = torch.cuda.max_memory_allocated() - before
    result_bytes = sum(r.numel() * r.element_size() for r in results)
    assert taken < 2 * nf4_dequantized.PANEL_BYTES + 2 * result_bytes + (1 << 20)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torch_accepts_the_operators():
    weight = make_weight(24, 64)
    x, bias = random(2, 64, seed=2).requires_grad_(), random(24, seed=3).requires_grad_()
    grad_y = random(2, 24, seed=4).requires_grad_()
    for op, arguments in (
        (torch.ops.pyft.nf4_linear, (x, *storage(weight), bias)),
        (torch.ops.pyft.nf4_linear_backward, (grad_y, *storage(weight))),
        (torch.ops.pyft.nf4_dequantize, (*storage(weight), torch.bfloat16)),
        (torch.ops.pyft.nf4_quantize, (random(24, 40, seed=5),)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_tensors_on_two_devices_are_refused():
    weight = make_weight(16, 64)
    on_cpu = NF4Weight(*(None if part is None else part.cpu() for part in weight[:5]), weight.shape)
    for tokens in (2, 100):
        with pytest.raises(ValueError, match="cpu"):
            nf4_linear(random(tokens, 64, seed=2), on_cpu)
