"""RMSNorm, SwiGLU and rotary embedding against float64 autograd, and what they promise."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_tensors_equal_reference, output_gradients, poisoned_empty, random
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rms_norm import num_partials, rms_norm
from pyft.ops.rotary import rotary
from pyft.ops.swiglu import swiglu

DTYPES = [torch.float32, torch.bfloat16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
EPS = 1e-6


def angles(rows: int, tokens: int, rotated: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tables whose halves differ, so that mixing them up shows."""
    angle = random(rows, tokens, rotated, seed=5, scale=3.0).detach()
    return angle.cos().to(dtype), angle.sin().to(dtype)


def heads(num_rows: int, num_heads: int, tokens: int, size: int, *, seed: int, dtype: torch.dtype) -> Tensor:
    """A leaf in the layout of attention: a transposed view of [B, T, H, D]."""
    values = random(num_rows, tokens, num_heads, size, seed=seed, dtype=dtype).detach()
    return values.transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 2), (19, 7), (19, 64), (423, 100), (19, 896), (3, 5003)])
def test_rms_norm_equals_float64(num_rows, width, offset, dtype):
    x, weight = random(num_rows, width, seed=1, dtype=dtype), random(width, seed=2, dtype=dtype)
    assert_tensors_equal_reference(
        lambda x, w: rms_norm(x, w, eps=EPS, weight_offset=offset),
        lambda x, w: reference.rms_norm(x, w, eps=EPS, weight_offset=offset),
        x,
        weight,
    )


@pytest.mark.parametrize("trained", [False, True])
def test_rms_norm_gives_only_the_gradient_that_is_wanted(trained, monkeypatch):
    x = random(4, 19, 24, seed=1).detach().requires_grad_(not trained)
    weight = random(24, seed=2).detach().requires_grad_(trained)
    poisoned_empty(monkeypatch)
    assert_tensors_equal_reference(
        lambda x, w: rms_norm(x, w, eps=EPS), lambda x, w: reference.rms_norm(x, w, eps=EPS), x, weight
    )


def test_rms_norm_of_tiny_huge_and_broken_rows():
    x = torch.stack([torch.full((16,), 1e-4), torch.full((16,), 1e15), torch.zeros(16), torch.ones(16)])
    x[3, 5] = float("nan")
    y = rms_norm(x, torch.ones(16), eps=1e-6)
    torch.testing.assert_close(y[:3].double(), reference.rms_norm(x.double(), torch.ones(16), eps=1e-6)[:3])
    assert y[3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (19, 7), (5, 3, 64), (423, 97)])
def test_swiglu_equals_float64(shape, dtype):
    gate, up = (random(*shape, seed=seed, scale=4.0, dtype=dtype) for seed in (1, 2))
    assert_tensors_equal_reference(swiglu, reference.swiglu, gate, up)


def test_swiglu_far_from_zero_neither_overflows_nor_loses_a_nan():
    gate = torch.tensor([-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 200.0, 1e30, float("nan")])
    results = []
    for op, dtype in ((swiglu, torch.float32), (reference.swiglu, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (gate, torch.full_like(gate, 2.0))]
        results.append([t.float() for t in output_gradients(op, *leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "rotated"),
    [
        ((1, 14, 2, 1), 64),
        ((1, 14, 2, 19), 64),
        ((2, 3, 3, 19), 10),
        ((3, 2, 1, 5), 96),
        ((1, 4, 2, 423), 32),
    ],
)
def test_rotary_equals_float64(shape, rotated, dtype):
    num_rows, num_heads, num_key_heads, tokens = shape
    size = rotated if rotated != 32 else 80  # partly rotated
    q = heads(num_rows, num_heads, tokens, size, seed=1, dtype=dtype)
    k = heads(num_rows, num_key_heads, tokens, size, seed=2, dtype=dtype)
    assert_tensors_equal_reference(rotary, reference.rotary, q, k, *angles(num_rows, tokens, rotated, dtype))


def test_rotary_takes_any_layout_and_keeps_it():
    cos, sin = angles(1, 9, 16, torch.float32)  # one table for both rows
    straight = [random(2, 3, 9, 24, seed=1).detach(), random(2, 1, 9, 24, seed=2).detach()]
    expected = rotary(*straight, cos, sin)
    wide = torch.zeros(2, 9, 4, 40)
    wide[..., 8:32] = torch.cat(straight, dim=1).transpose(1, 2)
    views = {
        "transposed": [t.transpose(1, 2).contiguous().transpose(1, 2) for t in straight],
        "slices of one product": [wide[:, :, :3, 8:32].transpose(1, 2), wide[:, :, 3:, 8:32].transpose(1, 2)],
        "entries apart": [t.transpose(2, 3).contiguous().transpose(2, 3) for t in straight],
        "one row for all": [t[:1].expand(2, -1, -1, -1) for t in straight],
    }
    for name, (q, k) in views.items():
        found = rotary(q, k, cos, sin)
        for ours, theirs in zip(found, expected, strict=True):
            rows = slice(1) if name == "one row for all" else slice(None)
            assert torch.equal(ours[rows], theirs[rows]), name
    assert rotary(*views["transposed"], cos, sin)[0].stride() == views["transposed"][0].stride()
    q, k = (t.requires_grad_() for t in views["slices of one product"])
    assert_tensors_equal_reference(rotary, reference.rotary, q, k, cos, sin)


def test_rotary_back_is_the_transpose():
    angle = random(1, 7, 8, seed=3).detach().repeat(1, 1, 2)
    q = heads(1, 2, 7, 16, seed=1, dtype=torch.float32)
    there, _ = rotary(q, q, angle.cos(), angle.sin())
    back, _ = rotary(there, there, angle.cos(), -angle.sin())
    torch.testing.assert_close(back, q, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(there, q, there.detach())
    torch.testing.assert_close(gradient, back, rtol=1e-6, atol=1e-6)


def test_nothing_in_nothing_out(monkeypatch):
    poisoned_empty(monkeypatch)
    x, weight = random(0, 16, seed=1), random(16, seed=2)
    value, grad_x, grad_weight = output_gradients(lambda x, w: rms_norm(x, w, eps=EPS), x, weight)
    assert value.shape == grad_x.shape == (0, 16) and torch.equal(grad_weight, torch.zeros(16))
    assert [t.shape for t in output_gradients(swiglu, random(0, 3), random(0, 3))] == [(0, 3)] * 3
    empty = random(1, 2, 0, 8)
    assert rotary(empty, empty, torch.zeros(1, 0, 8), torch.zeros(1, 0, 8))[0].shape == (1, 2, 0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written(dtype, monkeypatch):
    def run() -> list[Tensor]:
        x, weight = random(70, 33, seed=1, dtype=dtype), random(33, seed=2, dtype=dtype)
        q = heads(1, 3, 19, 12, seed=3, dtype=dtype)
        table = angles(1, 19, 6, dtype)
        return [
            *output_gradients(lambda x, w: rms_norm(x, w, eps=EPS), x, weight),
            *output_gradients(swiglu, x, random(70, 33, seed=4, dtype=dtype)),
            *output_gradients(lambda q: torch.cat(rotary(q, q, *table)), q),
        ]

    expected = run()
    poisoned_empty(monkeypatch)
    for ours, theirs in zip(run(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_same_bits_on_any_number_of_threads():
    x, weight, up = random(1030, 70, seed=1), random(70, seed=2), random(1030, 70, seed=3)
    q = heads(2, 14, 50, 64, seed=4, dtype=torch.float32)
    table = angles(2, 50, 64, torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(
                output_gradients(lambda x, w: rms_norm(x, w, eps=EPS), x, weight)
                + output_gradients(swiglu, x, up)
                + output_gradients(lambda q: torch.cat(rotary(q, q, *table)), q)
            )
    finally:
        torch.set_num_threads(before)
    assert num_partials(1030, 70) > 3
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(other, runs[0], strict=True))


def test_errors_name_what_is_wrong():
    x, weight = random(4, 8), random(8)
    with pytest.raises(ValueError, match=r"rms_norm: x has shape \[\], expected"):
        rms_norm(torch.ones(()), weight, eps=EPS)
    with pytest.raises(ValueError, match=r"rms_norm: weight.shape\[0\] is 7, x has 8"):
        rms_norm(x, weight[:7], eps=EPS)
    with pytest.raises(ValueError, match=r"rms_norm: weight.dtype is bfloat16, expected float32"):
        rms_norm(x, weight.bfloat16(), eps=EPS)
    with pytest.raises(ValueError, match=r"rms_norm: x.dtype is float16, expected float32 or bfloat16"):
        rms_norm(x.half(), weight, eps=EPS)
    with pytest.raises(ValueError, match=r"swiglu: up has shape \[4, 7\], gate has \[4, 8\]"):
        swiglu(x, x[:, :7])
    with pytest.raises(ValueError, match=r"swiglu: up.dtype is bfloat16, expected float32"):
        swiglu(x, x.bfloat16())
    q, table = random(1, 2, 5, 8).detach(), torch.ones(1, 5, 8)
    with pytest.raises(ValueError, match=r"rotary: q has shape \[2, 5, 8\], expected 4 dimensions"):
        rotary(q[0], q, table, table)
    with pytest.raises(ValueError, match=r"rotary: k.shape\[2\] is 4, q has 5"):
        rotary(q, q[:, :, :4], table, table)
    with pytest.raises(
        ValueError, match=r"rotary: cos.shape\[2\] is 7, expected an even number of at most 8"
    ):
        rotary(q, q, table[..., :7], table[..., :7])
    with pytest.raises(ValueError, match=r"rotary: cos.shape\[2\] is 10, expected an even number"):
        rotary(q, q, torch.ones(1, 5, 10), torch.ones(1, 5, 10))
    with pytest.raises(ValueError, match=r"rotary: sin.shape\[1\] is 4, q has 5"):
        rotary(q, q, table, table[:, :4])
    with pytest.raises(ValueError, match=r"rotary: cos.dtype is bfloat16, expected float32"):
        rotary(q, q, table.bfloat16(), table)
    with pytest.raises(ValueError, match=r"rotary: sin requires a gradient"):
        rotary(q, q, table, table.clone().requires_grad_())


def test_opcheck():
    x, weight = random(5, 8), random(8)
    q, k = heads(2, 3, 5, 8, seed=1, dtype=torch.float32), heads(2, 1, 5, 8, seed=2, dtype=torch.float32)
    table = angles(1, 5, 6, torch.float32)
    for op, arguments in (
        (torch.ops.pyft.rms_norm, (x, weight, EPS, 1.0)),
        (
            torch.ops.pyft.rms_norm_backward,
            (x.detach(), x.detach(), weight.detach(), torch.ones(5), 0.0, True),
        ),
        (
            torch.ops.pyft.rms_norm_backward,
            (x.detach(), x.detach(), weight.detach(), torch.ones(5), 0.0, False),
        ),
        (torch.ops.pyft.swiglu, (x, random(5, 8, seed=3))),
        (torch.ops.pyft.swiglu_backward, (x.detach(), x.detach(), x.detach())),
        (torch.ops.pyft.rotary, (q, k, *table, False)),
        (torch.ops.pyft.rotary, (q, k, *table, True)),
    ):
        torch.library.opcheck(op, arguments, test_utils=CHECKS)
