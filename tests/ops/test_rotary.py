"""The rotary embedding against float64 autograd, and what it promises."""

from __future__ import annotations

import pytest
import torch
from backends import CPU, GPU, Backend, assert_graph_follows, on_backends, on_gpu, run_late
from numerics import assert_tensors_equal_reference, output_gradients, poisoned_empty
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rotary import rotary

DTYPES = [torch.float32, torch.bfloat16]


def angles(
    backend: Backend, rows: int, tokens: int, rotated: int, dtype=torch.float32
) -> tuple[Tensor, Tensor]:
    """Tables whose halves differ, so that mixing them up shows."""
    angle = backend.random(rows, tokens, rotated, seed=5, scale=3.0, trained=False)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def heads(backend: Backend, rows: int, num_heads: int, tokens: int, size: int, dtype=torch.float32) -> Tensor:
    """A leaf in the layout of attention: a transposed view of [B, T, H, D]."""
    values = backend.random(rows, tokens, num_heads, size, seed=num_heads, dtype=dtype, trained=False)
    return values.transpose(1, 2).requires_grad_()


def attention(
    backend: Backend, rows: int, num_heads: int, num_key_heads: int, tokens: int, size: int, rotated: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Queries, keys, and the two tables."""
    q, k = (heads(backend, rows, n, tokens, size, dtype) for n in (num_heads, num_key_heads))
    return q, k, *angles(backend, rows, tokens, rotated, dtype)


# Whole runs, halves that end inside eight, entries behind the rotated ones, more items than threads.
@on_backends(
    "rows, num_heads, num_key_heads, tokens, size, rotated",
    (2, 14, 2, 1, 64, 64),
    (2, 3, 1, 5, 12, 10),
    (2, 2, 2, 7, 80, 32),
    (2, 4, 1, 3, 21, 16),
    (2, 3, 3, 19, 10, 10),
    (3, 2, 1, 5, 96, 96),
    (2, 60, 20, 2, 64, 64),
    cpu=[(1, 14, 2, 19, 64, 64), (1, 4, 2, 423, 80, 32)],
    cuda=[(2, 32, 8, 423, 128, 128), (2, 3, 1, 19, 24, 24), (2, 4, 2, 65, 80, 32)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_float64(backend, rows, num_heads, num_key_heads, tokens, size, rotated, dtype, monkeypatch):
    given = attention(backend, rows, num_heads, num_key_heads, tokens, size, rotated, dtype)
    poisoned_empty(monkeypatch)
    assert_tensors_equal_reference(rotary, reference.rotary, *given)


def test_any_layout_is_taken_and_kept(backend):
    cos, sin = angles(backend, 1, 9, 16)  # one table for both rows
    straight = [backend.random(2, n, 9, 24, seed=n, trained=False) for n in (3, 1)]
    expected = rotary(*straight, cos, sin)
    wide = torch.zeros(2, 9, 4, 40, device=backend.device)
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


@pytest.mark.parametrize("tokens", [6, 60])
@pytest.mark.parametrize("start", [0, 3])  # at 16 bytes, and not
def test_views_that_are_not_aligned(backend, start, tokens):
    product = backend.random(1, tokens, 5 * 24, seed=1, trained=False).view(1, tokens, 5, 24)
    q, k = (t[..., start : start + 20].transpose(1, 2).requires_grad_() for t in product.split((4, 1), dim=2))
    assert_tensors_equal_reference(rotary, reference.rotary, q, k, *angles(backend, 1, tokens, 16))


def test_back_is_the_transpose(backend):
    angle = backend.random(1, 7, 8, seed=3, trained=False).repeat(1, 1, 2)
    q = heads(backend, 1, 2, 7, 16)
    there, _ = rotary(q, q, angle.cos(), angle.sin())
    back, _ = rotary(there, there, angle.cos(), -angle.sin())
    torch.testing.assert_close(back, q, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(there, q, there.detach())
    torch.testing.assert_close(gradient, back, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")
def test_double_backward_is_the_rotation_again(backend):
    q, k, *tables = attention(backend, 1, 2, 1, 3, 6, 4)
    # linear in both, so a wide step is exact and keeps float32's rounding out
    options = {"eps": 0.5, "atol": 1e-4, "rtol": 1e-4}
    assert torch.autograd.gradgradcheck(lambda q, k: rotary(q, k, *tables), (q, k), **options)


def test_no_tokens(backend):
    empty, table = backend.random(1, 2, 0, 8), torch.zeros(1, 0, 8, device=backend.device)
    assert rotary(empty, empty, table, table)[0].shape == (1, 2, 0, 8)


@on_backends("shape", ((1, 3, 3, 19, 12, 6),), cuda=[((2, 14, 2, 130, 64, 64),)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written_and_the_bits_are_fixed(backend, shape, dtype, monkeypatch):
    q, k, *tables = attention(backend, *shape, dtype)
    expected = output_gradients(lambda q, k: rotary(q, k, *tables), q, k)
    poisoned_empty(monkeypatch)
    for seed in range(3):
        backend.reorder(seed + 10)
        found = output_gradients(lambda q, k: rotary(q, k, *tables), q, k)
        assert all(map(torch.equal, found, expected))


def test_errors_name_what_is_wrong(backend):
    q, table = backend.random(1, 2, 5, 8, trained=False), torch.ones(1, 5, 8, device=backend.device)
    wide = torch.ones(1, 5, 10, device=backend.device)
    for arguments, message in (
        ((q[0], q, table, table), r"q has shape \[2, 5, 8\], expected 4 dimensions"),
        ((q, q[:, :, :4], table, table), r"k.shape\[2\] is 4, q has 5"),
        (
            (q, q, table[..., :7], table[..., :7]),
            r"cos.shape\[2\] is 7, expected an even number of at most 8",
        ),
        ((q, q, wide, wide), r"cos.shape\[2\] is 10, expected an even number"),
        ((q, q, table, table[:, :4]), r"sin.shape\[1\] is 4, q has 5"),
        ((q, q, table.bfloat16(), table), "cos.dtype is bfloat16, expected float32"),
        ((q, q, table, table.clone().requires_grad_()), "sin requires a gradient"),
    ):
        with pytest.raises(ValueError, match=f"rotary: {message}"):
            rotary(*arguments)


def test_opcheck(backend):
    q, k = heads(backend, 2, 3, 5, 8), heads(backend, 2, 1, 5, 8)
    for backwards in (False, True):
        arguments = (q, k, *angles(backend, 1, 5, 6), backwards)
        torch.library.opcheck(torch.ops.pyft.rotary, arguments)


def test_same_bits_on_any_number_of_threads():
    q, k, *tables = attention(CPU, 2, 14, 2, 50, 64, 64)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            runs.append(output_gradients(lambda q, k: rotary(q, k, *tables), q, k))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(other, runs[0], strict=True))


@on_gpu
def test_on_a_side_stream_behind_a_slow_producer():
    q, k, *tables = attention(GPU, 2, 14, 2, 130, 64, 64)
    expected = rotary(q.detach(), k.detach(), *tables)
    found = run_late(lambda q, k: rotary(q, k, *tables), q.detach(), k.detach())
    assert all(map(torch.equal, found, expected))


@on_gpu
def test_in_a_cuda_graph():
    q, k, *tables = attention(GPU, 1, 14, 2, 64, 64, 64, torch.bfloat16)
    assert_graph_follows(lambda q, k: rotary(q, k, *tables), q, k)
