"""The kernels of RMSNorm, SwiGLU and rotary embedding in csrc/cuda, run on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_tensors_equal_reference, output_gradients, poisoned_empty, random
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rms_norm import num_partials, rms_norm
from pyft.ops.rotary import rotary
from pyft.ops.swiglu import swiglu

pytestmark = pytest.mark.usefixtures("emulated_ops")

DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Every output that the operations allocate holds NaN."""
    poisoned_empty(monkeypatch)


def check_norm(x: Tensor, weight: Tensor, **options: float) -> None:
    assert_tensors_equal_reference(
        lambda x, w: rms_norm(x, w, eps=EPS, **options),
        lambda x, w: reference.rms_norm(x, w, eps=EPS, **options),
        x,
        weight,
    )


# Fewer entries than one thread's, runs that end inside eight, more than a warp takes (1024), more than the
# 8192 that a block keeps in registers; rows of one group, of several, and groups without a row.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "width"),
    [(1, 5), (19, 64), (9, 257), (37, 896), (3, 1024), (6, 1032), (1, 1029), (5, 8200), (1, 8195)],
)
def test_rms_norm(num_rows, width, dtype):
    x, weight = random(num_rows, width, seed=1, dtype=dtype), random(width, seed=2, dtype=dtype)
    check_norm(x, weight)


def test_rms_norm_with_more_partial_sums_than_needed(kernels):
    x, gradient = (random(11, 1300, seed=seed).detach() for seed in (1, 2))
    weight, stats = torch.ones(1300), torch.full((11,), 0.5)
    expected = (gradient.double() * x.double() * 0.5).sum(0)
    for parts in (1, 4, 9, 11, 20):
        found = torch.full((1300,), float("nan"))
        kernels.rms_norm_backward(
            grad_y=gradient,
            x=x,
            weight=weight,
            inverse_rms=stats,
            grad_x=torch.empty_like(x),
            grad_weight=found,
            partials=torch.empty(parts, 1300),
            weight_offset=0.0,
            num_threads=1,
            stream=0,
        )
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_with_an_offset_or_a_frozen_weight():
    assert num_partials(19, 40) > 1
    x, weight = random(19, 40, seed=1), random(40, seed=2)
    check_norm(x, weight, weight_offset=1.0)
    check_norm(x, weight.detach())
    check_norm(random(2, 1100, seed=3), random(1100, seed=4).detach())


def test_rows_that_are_not_aligned():
    x, weight = random(1, 65).detach()[:, 1:].requires_grad_(), random(64, seed=2)
    check_norm(x, weight)
    gate = random(65).detach()[1:].requires_grad_()
    assert_tensors_equal_reference(swiglu, reference.swiglu, gate, random(64, seed=2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (19, 13), (3, 1001), (2, 5, 64)])
def test_swiglu(shape, dtype):
    gate, up = (random(*shape, seed=seed, scale=4.0, dtype=dtype) for seed in (1, 2))
    assert_tensors_equal_reference(swiglu, reference.swiglu, gate, up)


def test_swiglu_far_from_zero_and_in_place(kernels):
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 20.0, 200.0, 1e30, float("nan"), -20.0, 3.0])
    leaves = [gate.clone().requires_grad_(), torch.full_like(gate, 2.0).requires_grad_()]
    _, *expected = output_gradients(swiglu, *leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    _, *exact = output_gradients(reference.swiglu, *wide)
    for ours, theirs in zip(expected, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-30, equal_nan=True)
    gradient, up = random(10, seed=90).detach(), torch.full_like(gate, 2.0)
    kernels.swiglu_backward(
        grad_y=gradient, gate=gate, up=up, grad_gate=gradient, grad_up=up, num_threads=1, stream=0
    )
    torch.testing.assert_close([gradient, up], expected, rtol=0, atol=0, equal_nan=True)


# Whole runs, halves that end inside eight, entries behind the rotated ones, more items than threads.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_heads", "tokens", "size", "rotated"),
    [
        ((14, 2), 1, 64, 64),
        ((3, 1), 5, 12, 10),
        ((2, 2), 7, 80, 32),
        ((4, 1), 3, 21, 16),
        ((60, 20), 2, 64, 64),
    ],
)
def test_rotary(num_heads, tokens, size, rotated, dtype):
    q, k = (
        random(2, tokens, heads, size, seed=heads, dtype=dtype).detach().transpose(1, 2).requires_grad_()
        for heads in num_heads
    )
    angle = random(2, tokens, rotated, seed=5, scale=3.0).detach()  # halves differ: mixing them up shows
    assert_tensors_equal_reference(
        rotary, reference.rotary, q, k, angle.cos().to(dtype), angle.sin().to(dtype)
    )


def test_rotary_of_views():
    product = random(1, 6, 5 * 24, seed=1).detach().view(1, 6, 5, 24)
    angle = random(1, 6, 16, seed=2).detach()
    for start in (0, 3):  # at 16 bytes, and not
        q, k = (
            t[..., start : start + 20].transpose(1, 2).requires_grad_() for t in product.split((4, 1), dim=2)
        )
        assert_tensors_equal_reference(rotary, reference.rotary, q, k, angle.cos(), angle.sin())


def test_nothing_in_nothing_out():
    x, weight = random(0, 16, seed=1), random(16, seed=2)
    value, grad_x, grad_weight = output_gradients(lambda x, w: rms_norm(x, w, eps=EPS), x, weight)
    assert value.shape == grad_x.shape == (0, 16) and torch.equal(grad_weight, torch.zeros(16))
    assert [t.shape for t in output_gradients(swiglu, random(0, 3), random(0, 3))] == [(0, 3)] * 3
    empty = random(1, 2, 0, 8)
    assert rotary(empty, empty, torch.zeros(1, 0, 8), torch.zeros(1, 0, 8))[0].shape == (1, 2, 0, 8)
