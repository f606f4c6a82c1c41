"""swiglu against float64 autograd, and what it promises."""

from __future__ import annotations

import pytest
import torch
from backends import CPU, GPU, assert_graph_follows, on_backends, on_gpu, run_late
from numerics import assert_tensors_equal_reference, output_gradients, poisoned_empty

from pyft.ops import reference
from pyft.ops.swiglu import swiglu

DTYPES = [torch.float32, torch.bfloat16]


@on_backends(
    "shape",
    ((1,),),
    ((7,),),
    ((19, 7),),
    ((19, 13),),
    ((3, 1001),),
    ((2, 5, 64),),
    cpu=[((5, 3, 64),), ((423, 97),)],
    cuda=[((423, 4864),), ((2, 65, 14336),)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64(backend, shape, dtype, monkeypatch):
    gate, up = (backend.random(*shape, seed=seed, scale=4.0, dtype=dtype) for seed in (1, 2))
    poisoned_empty(monkeypatch)
    assert_tensors_equal_reference(swiglu, reference.swiglu, gate, up)


def test_far_from_zero_it_neither_overflows_nor_loses_a_nan(backend):
    gate = backend.tensor([-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 200.0, 1e30, float("nan"), 3.0])
    results = []
    for op, dtype in ((swiglu, torch.float32), (reference.swiglu, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (gate, torch.full_like(gate, 2.0))]
        results.append([t.float() for t in output_gradients(op, *leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("width", [64, 4096])
def test_pointers_that_are_not_aligned(backend, width):
    gate = backend.random(width + 1, trained=False)[1:].requires_grad_()
    assert_tensors_equal_reference(swiglu, reference.swiglu, gate, backend.random(width, seed=2))


def test_nothing_in_nothing_out(backend):
    found = output_gradients(swiglu, backend.random(0, 3), backend.random(0, 3))
    assert [t.shape for t in found] == [(0, 3)] * 3


@on_backends("num_rows, width", (70, 33), cuda=[(1030, 2056)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written_and_the_bits_are_fixed(backend, num_rows, width, dtype, monkeypatch):
    gate, up = (backend.random(num_rows, width, seed=seed, dtype=dtype) for seed in (1, 4))
    expected = output_gradients(swiglu, gate, up)
    poisoned_empty(monkeypatch)
    for seed in range(3):
        backend.reorder(seed + 10)
        assert all(map(torch.equal, output_gradients(swiglu, gate, up), expected))


def test_errors_name_what_is_wrong(backend):
    x = backend.random(4, 8)
    with pytest.raises(ValueError, match=r"swiglu: up has shape \[4, 7\], gate has \[4, 8\]"):
        swiglu(x, x[:, :7])
    with pytest.raises(ValueError, match=r"swiglu: up.dtype is bfloat16, expected float32"):
        swiglu(x, x.bfloat16())


def test_opcheck(backend):
    x = backend.random(5, 8)
    torch.library.opcheck(torch.ops.pyft.swiglu, (x, backend.random(5, 8, seed=3)))
    torch.library.opcheck(torch.ops.pyft.swiglu_backward, (x.detach(), x.detach(), x.detach()))


def test_same_bits_on_any_number_of_threads():
    gate, up = CPU.random(1030, 70, seed=1), CPU.random(1030, 70, seed=3)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(output_gradients(swiglu, gate, up))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(other, runs[0], strict=True))


@on_gpu
def test_on_a_side_stream_behind_a_slow_producer():
    gate, up = (GPU.random(512, 4096, seed=seed, trained=False) for seed in (1, 2))
    assert torch.equal(run_late(swiglu, gate, up), swiglu(gate, up))


@on_gpu
def test_in_a_cuda_graph():
    gate, up = (GPU.random(64, 896, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    assert_graph_follows(swiglu, gate, up)
