"""lora_linear on a GPU: against float64, on a side stream, in a CUDA graph, always the same bits."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close_to_reference, random
from torch import Tensor

from pyft.ops import reference
from pyft.ops.dropout import draw_seed, dropout_mask
from pyft.ops.lora import lora_linear
from pyft.ops.nf4 import nf4_dequantize, nf4_quantize

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

DTYPES = [torch.float32, torch.bfloat16]
SCALING = 0.25
NAMES = ("y", "dX", "dA", "dB")


class Layer:
    """Random inputs of one call on the GPU; `dense` is the base, as numbers."""

    def __init__(
        self, tokens: int, rows: int, columns: int, rank: int, base: str, dtype: torch.dtype
    ) -> None:
        def draw(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
            return random(*shape, seed=seed, scale=scale, dtype=dtype).detach().cuda()

        self.x = draw(tokens, columns, seed=1).requires_grad_()
        weight = draw(rows, columns, seed=2, scale=columns**-0.5)
        self.base = weight if base == "dense" else nf4_quantize(weight, double_quant=base == "nf4 nested")
        self.dense = weight if base == "dense" else nf4_dequantize(self.base, dtype)
        self.A = draw(rank, columns, seed=3, scale=columns**-0.5, dtype=torch.float32).requires_grad_()
        self.B = draw(rows, rank, seed=4, dtype=torch.float32).requires_grad_()
        self.bias = draw(rows, seed=5) if tokens % 2 else None
        self.grad_y = draw(tokens, rows, seed=6)

    def run(self, dropout: float = 0.0, seed: int = 11) -> list[Tensor]:
        torch.manual_seed(seed)
        y = lora_linear(self.x, self.base, self.A, self.B, scaling=SCALING, dropout=dropout, bias=self.bias)
        return [y.detach(), *torch.autograd.grad(y, (self.x, self.A, self.B), self.grad_y)]

    def run_reference(self, dtype: torch.dtype, dropout: float) -> list[Tensor]:
        """In plain torch, all of it in `dtype`, with the mask of `run`."""
        torch.manual_seed(11)
        mask = dropout_mask(self.x.shape, dropout, draw_seed()).cuda() if dropout else None
        x, A, B = (t.detach().to(dtype).requires_grad_() for t in (self.x, self.A, self.B))
        bias = None if self.bias is None else self.bias.to(dtype)
        y = reference.lora_linear(
            x, self.dense.to(dtype), A, B, scaling=SCALING, dropout=dropout, mask=mask, bias=bias
        )
        return [y.detach(), *torch.autograd.grad(y, (x, A, B), self.grad_y.to(dtype))]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("base", ["dense", "nf4", "nf4 nested"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "rank"),
    [(1, 512, 1024, 16), (19, 70, 67, 8), (70, 1000, 640, 33), (515, 1536, 2048, 64), (300, 130, 257, 150)],
)
def test_equals_float64(tokens, rows, columns, rank, dtype, base, dropout):
    layer = Layer(tokens, rows, columns, rank, base, dtype)
    results = (
        layer.run(dropout),
        layer.run_reference(torch.float64, dropout),
        layer.run_reference(dtype, dropout),
    )
    for name, ours, exact, torchs in zip(NAMES, *results, strict=True):
        assert_close_to_reference(ours, exact, torchs.to(ours.dtype), name=name)


def test_mask_is_that_of_the_cpu():
    width = 130
    eye, ones = torch.eye(width, device="cuda"), torch.ones(600, width, device="cuda", requires_grad=True)
    torch.manual_seed(3)
    y = lora_linear(ones, torch.zeros_like(eye), eye, eye, scaling=1.0, dropout=0.4)
    (grad_x,) = torch.autograd.grad(y, ones, torch.ones_like(y))
    torch.manual_seed(3)
    mask = dropout_mask((600, width), 0.4, draw_seed()).cuda()
    assert torch.equal(y != 0, mask) and torch.equal(grad_x != 0, mask)


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
@pytest.mark.parametrize("tokens", [17, 515])
def test_same_bits_every_time(tokens, base):
    layer = Layer(tokens, 1536, 1024, 16, base, torch.bfloat16)
    first = layer.run(0.1)
    for _ in range(5):
        for name, again, once in zip(NAMES, layer.run(0.1), first, strict=True):
            assert torch.equal(again, once), name


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
def test_on_a_side_stream_behind_a_slow_producer(base):
    layer = Layer(515, 1536, 1024, 16, base, torch.bfloat16)
    expected = layer.run(0.1)
    given = layer.x.detach().clone()
    late = torch.empty_like(given)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late.copy_(given)
        layer.x = late.requires_grad_()
        results = layer.run(0.1)
    torch.cuda.synchronize()
    for name, result, clean in zip(NAMES, results, expected, strict=True):
        assert torch.equal(result, clean), name


@pytest.mark.parametrize("base", ["dense", "nf4 nested"])
@pytest.mark.parametrize("tokens", [17, 515])
def test_in_a_cuda_graph(tokens, base):
    layer = Layer(tokens, 1536, 1024, 16, base, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = layer.run()
    with torch.no_grad():
        layer.x.mul_(0.5)
    graph.replay()
    captured = [result.clone() for result in results]
    for name, result, eager in zip(NAMES, captured, layer.run(), strict=True):
        assert torch.equal(result, eager), name
