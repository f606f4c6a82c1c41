"""rms_norm against float64 autograd, and what it promises."""

from __future__ import annotations

import pytest
import torch
from backends import CPU, GPU, assert_graph_follows, on_backends, on_gpu, run_late
from numerics import assert_tensors_equal_reference, output_gradients, poisoned_empty
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rms_norm import num_partials, rms_norm

DTYPES = [torch.float32, torch.bfloat16]


def check(x: Tensor, weight: Tensor, *, eps: float = 1e-6, weight_offset: float = 0.0) -> None:
    assert_tensors_equal_reference(
        lambda x, w: rms_norm(x, w, eps=eps, weight_offset=weight_offset),
        lambda x, w: reference.rms_norm(x, w, eps=eps, weight_offset=weight_offset),
        x,
        weight,
    )


# On CUDA: fewer entries than one thread's, runs that end inside eight, more than a warp takes (1024), more
# than the 8192 that a block keeps in registers; rows of one group, of several, and groups without a row.
@on_backends(
    "num_rows, width",
    (1, 5),
    (19, 7),
    (19, 64),
    (9, 257),
    (37, 896),
    (3, 1024),
    (6, 1032),
    (1, 1029),
    (5, 8200),
    (1, 8195),
    cpu=[(1, 2), (423, 100), (19, 896), (3, 5003)],
    cuda=[(4099, 128), (423, 896), (19, 1029), (65, 4096), (33, 8200)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_equals_float64(backend, num_rows, width, offset, dtype, monkeypatch):
    x, weight = (
        backend.random(num_rows, width, seed=1, dtype=dtype),
        backend.random(width, seed=2, dtype=dtype),
    )
    poisoned_empty(monkeypatch)
    check(x, weight, weight_offset=offset)
    if width > 2:  # of two numbers, torch's may happen to be exact
        check(x, weight, eps=1e-5, weight_offset=offset)
        check(x, weight.detach(), weight_offset=offset)


@pytest.mark.parametrize("trained", ["x", "weight"])
@pytest.mark.parametrize("shape", [(4, 19, 24), (2, 1100)])
def test_only_the_gradient_that_is_wanted(backend, shape, trained, monkeypatch):
    x = backend.random(*shape, seed=1, trained=trained == "x")
    weight = backend.random(shape[-1], seed=2, trained=trained == "weight")
    poisoned_empty(monkeypatch)
    check(x, weight)


def test_tiny_huge_and_broken_rows(backend):
    x = torch.stack([torch.full((16,), 1e-4), torch.full((16,), 1e15), torch.zeros(16), torch.ones(16)])
    x[3, 5] = float("nan")
    x, ones = x.to(backend.device), torch.ones(16, device=backend.device)
    y = rms_norm(x, ones, eps=1e-6)
    torch.testing.assert_close(y[:3].double(), reference.rms_norm(x.double(), ones, eps=1e-6)[:3])
    assert y[3].isnan().all()


@pytest.mark.parametrize("width", [64, 4096])
def test_rows_that_are_not_aligned(backend, width):
    x = backend.random(1, width + 1, seed=3, trained=False)[:, 1:].requires_grad_()
    check(x, backend.random(width, seed=2))


def test_no_rows(backend, monkeypatch):
    x, weight = backend.random(0, 16, seed=1), backend.random(16, seed=2)
    poisoned_empty(monkeypatch)
    value, grad_x, grad_weight = output_gradients(lambda x, w: rms_norm(x, w, eps=1e-6), x, weight)
    assert value.shape == grad_x.shape == (0, 16) and torch.equal(grad_weight, torch.zeros_like(weight))


@on_backends("num_rows, width", (70, 33), cuda=[(1030, 2056)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written_and_the_bits_are_fixed(backend, num_rows, width, dtype, monkeypatch):
    x, weight = (
        backend.random(num_rows, width, seed=1, dtype=dtype),
        backend.random(width, seed=2, dtype=dtype),
    )
    expected = output_gradients(lambda x, w: rms_norm(x, w, eps=1e-6), x, weight)
    poisoned_empty(monkeypatch)
    for seed in range(3):
        backend.reorder(seed + 10)
        found = output_gradients(lambda x, w: rms_norm(x, w, eps=1e-6), x, weight)
        assert all(map(torch.equal, found, expected))


def test_errors_name_what_is_wrong(backend):
    x, weight = backend.random(4, 8), backend.random(8)
    for arguments, message in (
        ((torch.ones((), device=backend.device), weight), r"x has shape \[\], expected"),
        ((x, weight[:7]), r"weight.shape\[0\] is 7, x has 8"),
        ((x, weight.bfloat16()), "weight.dtype is bfloat16, expected float32"),
        ((x.half(), weight), "x.dtype is float16, expected float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=f"rms_norm: {message}"):
            rms_norm(*arguments, eps=1e-6)


def test_opcheck(backend):
    x, weight = backend.random(5, 8), backend.random(8)
    saved = (x.detach(), x.detach(), weight.detach(), torch.ones(5, device=backend.device), 0.0)
    for op, arguments in (
        (torch.ops.pyft.rms_norm, (x, weight, 1e-6, 1.0)),
        (torch.ops.pyft.rms_norm_backward, (*saved, True)),
        (torch.ops.pyft.rms_norm_backward, (*saved, False)),
    ):
        torch.library.opcheck(op, arguments)


def test_same_bits_on_any_number_of_threads():
    x, weight = CPU.random(1030, 70, seed=1), CPU.random(70, seed=2)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(output_gradients(lambda x, w: rms_norm(x, w, eps=1e-6), x, weight))
    finally:
        torch.set_num_threads(before)
    assert num_partials(1030, 70) > 3
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(other, runs[0], strict=True))


@on_gpu
def test_on_a_side_stream_behind_a_slow_producer():
    x, weight = GPU.random(512, 4096, seed=1, trained=False) * 3, torch.ones(4096, device="cuda")
    found = run_late(lambda late: rms_norm(late, weight, eps=1e-6), x)
    assert torch.equal(found, rms_norm(x, weight, eps=1e-6))


@on_gpu
def test_in_a_cuda_graph():
    x, weight = (GPU.random(*shape, seed=1, dtype=torch.bfloat16) for shape in ((64, 896), (896,)))
    assert_graph_follows(lambda x, w: rms_norm(x, w, eps=1e-6), x, weight)


@on_gpu
def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match=r"rms_norm: .*cpu"):
        rms_norm(GPU.random(4, 8, seed=1), torch.ones(8), eps=1e-6)
