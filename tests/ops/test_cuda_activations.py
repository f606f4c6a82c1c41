"""RMSNorm, SwiGLU and rotary embedding on a GPU: against float64, repeatable, on any stream, in a graph."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_tensors_equal_reference, output_gradients, poisoned_empty, random
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rms_norm import rms_norm
from pyft.ops.rotary import rotary
from pyft.ops.swiglu import swiglu

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-6


def leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return random(*shape, seed=seed, scale=scale, dtype=dtype).detach().cuda().requires_grad_()


def attention(
    num_rows: int, heads: tuple[int, int], tokens: int, size: int, rotated: int, dtype: torch.dtype
):
    """Queries, keys and tables, the former as transposed views."""
    q, k = (
        leaf(num_rows, tokens, h, size, seed=h, dtype=dtype).detach().transpose(1, 2).requires_grad_()
        for h in heads
    )
    angle = random(num_rows, tokens, rotated, seed=5, scale=3.0).detach().cuda()
    return q, k, angle.cos().to(dtype), angle.sin().to(dtype)


def every_op(dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of all three, at sizes that fill a GPU."""
    x, weight = leaf(1030, 2056, seed=1, dtype=dtype), leaf(2056, seed=2, dtype=dtype)
    q, k, *tables = attention(2, (14, 2), 130, 64, 64, dtype)
    return [
        *output_gradients(lambda x, w: rms_norm(x, w, eps=EPS), x, weight),
        *output_gradients(swiglu, x, leaf(1030, 2056, seed=3, dtype=dtype)),
        *output_gradients(lambda q, k: rotary(q, k, *tables), q, k),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(
    ("num_rows", "width"), [(1, 5), (19, 64), (4099, 128), (423, 896), (19, 1029), (65, 4096), (33, 8200)]
)
def test_rms_norm(num_rows, width, offset, dtype):
    x, weight = leaf(num_rows, width, seed=1, dtype=dtype), leaf(width, seed=2, dtype=dtype)
    for leaves in ((x, weight), (x, weight.detach())):
        assert_tensors_equal_reference(
            lambda x, w: rms_norm(x, w, eps=EPS, weight_offset=offset),
            lambda x, w: reference.rms_norm(x, w, eps=EPS, weight_offset=offset),
            *leaves,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (19, 13), (423, 4864), (2, 65, 14336)])
def test_swiglu(shape, dtype):
    gate, up = (leaf(*shape, seed=seed, scale=4.0, dtype=dtype) for seed in (1, 2))
    assert_tensors_equal_reference(swiglu, reference.swiglu, gate, up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "tokens", "size", "rotated"),
    [
        ((14, 2), 1, 64, 64),
        ((32, 8), 423, 128, 128),
        ((3, 1), 19, 12, 10),
        ((3, 1), 19, 24, 24),
        ((4, 2), 65, 80, 32),
    ],
)
def test_rotary(heads, tokens, size, rotated, dtype):
    assert_tensors_equal_reference(
        rotary, reference.rotary, *attention(2, heads, tokens, size, rotated, dtype)
    )


def test_views_that_are_not_aligned():
    product = random(1, 60, 5 * 24, seed=1).detach().cuda().view(1, 60, 5, 24)
    angle = random(1, 60, 16, seed=2).detach().cuda()
    for start in (0, 3):
        q, k = (
            t[..., start : start + 20].transpose(1, 2).requires_grad_() for t in product.split((4, 1), dim=2)
        )
        assert_tensors_equal_reference(rotary, reference.rotary, q, k, angle.cos(), angle.sin())
    x = leaf(1, 4097, seed=3).detach()[:, 1:].requires_grad_()
    assert_tensors_equal_reference(
        lambda x: rms_norm(x, torch.ones_like(x[0]), eps=EPS),
        lambda x: reference.rms_norm(x, torch.ones_like(x[0]), eps=EPS),
        x,
    )
    assert_tensors_equal_reference(swiglu, reference.swiglu, x, leaf(1, 4096, seed=4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written_and_runs_repeat_to_the_bit(dtype, monkeypatch):
    expected = every_op(dtype)
    poisoned_empty(monkeypatch)
    for _ in range(3):
        for ours, theirs in zip(every_op(dtype), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_a_side_stream_waits_for_what_is_before_it():
    x, weight = leaf(512, 4096, seed=1).detach(), torch.ones(4096, device="cuda")
    expected = rms_norm(x * 3, weight, eps=EPS)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x * 3)
        found = rms_norm(late, weight, eps=EPS)
    stream.synchronize()
    assert torch.equal(found, expected)


def test_a_graph_replays_them_on_new_values():
    dtype = torch.bfloat16
    x, up, weight = (leaf(*shape, seed=1, dtype=dtype) for shape in ((64, 896), (64, 896), (896,)))
    q, k, *tables = attention(1, (14, 2), 64, 64, 64, dtype)
    leaves = (x, up, weight, q, k)

    def step() -> list[Tensor]:
        outputs = (swiglu(rms_norm(x, weight, eps=EPS), up), *rotary(q, k, *tables))
        # Detached: outputs that live on keep the leaves' nodes, and with them the stream they were made on.
        values = [output.detach() for output in outputs]
        return [*values, *torch.autograd.grad(outputs, leaves, values)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in leaves:
            tensor.mul_(0.5)
    graph.replay()
    for ours, theirs in zip(captured, step(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_does_not_fit_is_refused():
    x = leaf(4, 8, seed=1)
    with pytest.raises(ValueError, match=r"rms_norm: .*cpu"):
        rms_norm(x, torch.ones(8), eps=EPS)
    with pytest.raises(ValueError, match=r"swiglu: up has shape \[4, 7\], gate has \[4, 8\]"):
        swiglu(x, x[:, :7])
