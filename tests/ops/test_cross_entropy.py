"""cross_entropy of logits against float64 autograd, and what it promises about rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backends import CPU, on_backends
from numerics import assert_equals_reference, gradients, poisoned_empty

from pyft.ops import reference
from pyft.ops.cross_entropy import cross_entropy

DTYPES = [torch.float32, torch.bfloat16]
BOTH = {"label_smoothing": 0.1, "z_loss": 0.02}
OPTIONS = {"plain": {}, "smoothing": {"label_smoothing": 0.3}, "z_loss": {"z_loss": 0.02}, "both": BOTH}


@on_backends(
    "num_rows, vocabulary",
    (1, 3),
    (9, 97),
    (3, 4105),
    cpu=[(num_rows, vocabulary) for num_rows in (1, 19, 423) for vocabulary in (3, 97, 1031)],
    cuda=[(0, 5), (423, 1031), (33, 151936)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_float64(backend, num_rows, vocabulary, options, dtype, monkeypatch):
    targets = backend.targets(num_rows, vocabulary)
    logits = backend.random(num_rows, vocabulary, scale=3.0, dtype=dtype)
    poisoned_empty(monkeypatch)
    assert_equals_reference(
        lambda x: cross_entropy(x, targets, **options),
        lambda x: reference.cross_entropy(x, targets, **options),
        logits,
    )


def test_label_smoothing_is_torchs(backend):
    logits, targets = backend.random(9, 31), backend.targets(9, 31)
    ours = cross_entropy(logits, targets, label_smoothing=1.0)
    torchs = F.cross_entropy(logits, targets, label_smoothing=1.0, reduction="sum")
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("options", [{}, BOTH], ids=["plain", "both"])
@pytest.mark.parametrize("num_rows", [0, 7])
def test_no_counted_row_gives_zero_and_zero_gradients(backend, num_rows, options, monkeypatch):
    logits, targets = backend.random(num_rows, 50), backend.full(num_rows, value=-100, dtype=torch.int64)
    poisoned_empty(monkeypatch)
    for result in gradients(lambda x: cross_entropy(x, targets, **options), logits):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.parametrize("vocabulary", [41, 101, 16411])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_may_hold_anything_and_get_exact_zeros(backend, dtype, vocabulary, monkeypatch):
    targets = backend.targets(9, vocabulary)
    logits = backend.random(9, vocabulary, scale=3.0, dtype=dtype)
    dirty = logits.detach().clone()
    dirty[targets == -100] = float("nan")
    expected = gradients(lambda x: cross_entropy(x, targets), logits)
    poisoned_empty(monkeypatch)
    for given in (logits, dirty.requires_grad_()):
        loss, gradient = gradients(lambda x: cross_entropy(x, targets), given)
        assert torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1])
        assert not gradient[targets == -100].any()
        assert gradient[targets != -100].abs().amax(dim=1).min() > 0


def test_one_counted_row_and_another_ignore_index(backend):
    logits, targets = backend.random(9, 50), backend.full(9, value=7, dtype=torch.int64)
    targets[4] = 49
    loss, gradient = gradients(lambda x: cross_entropy(x, targets, ignore_index=7), logits)
    exact = logits[4].double()
    assert loss.item() == pytest.approx((exact.logsumexp(0) - exact[49]).item(), rel=1e-6)
    assert (gradient.abs().amax(dim=1) > 0).tolist() == [row == 4 for row in range(9)]


def test_a_vocabulary_of_one_entry(backend):
    targets = backend.full(5, value=0, dtype=torch.int64)
    loss, gradient = gradients(lambda x: cross_entropy(x, targets), backend.random(5, 1))
    assert loss.item() == 0.0 and not gradient.any()


@pytest.mark.parametrize("vocabulary", [41, 97])
def test_non_contiguous_inputs(backend, vocabulary):
    targets = torch.stack([backend.targets(19, vocabulary)] * 2, dim=1)[:, 0]
    logits = backend.random(vocabulary, 19, seed=3, trained=False).T.requires_grad_()
    assert not targets.is_contiguous() and not logits.is_contiguous()
    ours = gradients(lambda x: cross_entropy(x, targets), logits)
    dense = gradients(lambda x: cross_entropy(x, targets), logits.detach().contiguous().requires_grad_())
    assert all(torch.equal(a, b) for a, b in zip(ours, dense, strict=True))


def test_large_logits_neither_overflow_nor_lose_the_row(backend):
    logits = backend.tensor([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0], [5.0, float("-inf"), 5.0]])
    targets = backend.tensor([0, 1, 0])
    value, gradient = gradients(lambda x: cross_entropy(x, targets), logits.requires_grad_(), scale=1.0)
    assert value.item() == pytest.approx(0.6931472, rel=1e-6)
    assert torch.allclose(gradient, backend.tensor([[0, 0, 0], [0, 0, 0], [-0.5, 0, 0.5]]), atol=1e-7)


@pytest.mark.parametrize("vocabulary", [50, 16411])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_numbers_show_in_the_loss(backend, bad, vocabulary):
    logits = backend.random(9, vocabulary, trained=False)
    logits[3, 3] = bad
    assert cross_entropy(logits, torch.arange(9, device=backend.device)).isnan()


def test_errors_name_what_is_wrong(backend):
    logits, targets = backend.random(4, 10), backend.tensor([0, 1, 9, 2])
    for arguments, options, message in (
        ((logits, targets[:3]), {}, r"targets.shape\[0\] is 3, logits expects 4"),
        ((logits, targets.int()), {}, r"targets.dtype is int32, expected int64"),
        ((logits.double(), targets), {}, r"logits.dtype is float64, expected float32 or bfloat16"),
        ((logits.unsqueeze(2), targets), {}, r"logits has shape \[4, 10, 1\], expected \[T, V\]"),
        ((logits, targets), {"label_smoothing": -0.1}, r"label_smoothing is -0.1"),
    ):
        with pytest.raises(ValueError, match=f"cross_entropy: {message}"):
            cross_entropy(*arguments, **options)


@pytest.mark.parametrize("vocabulary", [10, 1031])
def test_a_target_outside_the_vocabulary(backend, vocabulary):
    """An error where that costs nothing; on CUDA kernels, which nobody waits for, NaN in its row."""
    logits = backend.random(4, vocabulary)
    for bad in (vocabulary, -1):
        targets = backend.tensor([0, 1, bad, 2])
        if backend.name == "cpu":
            with pytest.raises(IndexError, match=rf"cross_entropy: targets\[2\] is {bad}, .*{vocabulary}"):
                cross_entropy(logits, targets)
            continue
        loss, gradient = gradients(lambda x, t=targets: cross_entropy(x, t), logits)
        assert loss.isnan() and gradient[2].isnan().all() and gradient[[0, 1, 3]].isfinite().all()


def test_opcheck(backend):
    torch.library.opcheck(
        torch.ops.pyft.cross_entropy,
        (backend.random(7, 11), backend.targets(7, 11), -100, 0.1, 0.01),
        test_utils=(
            "test_schema",
            "test_autograd_registration",
            "test_faketensor",
            "test_aot_dispatch_dynamic",
        ),
    )


@pytest.mark.parametrize("vocabulary", [5003, 17011])
def test_same_bits_on_any_number_of_threads(vocabulary):
    logits, targets = CPU.random(150, vocabulary, seed=3), CPU.targets(150, vocabulary)
    before, results = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(gradients(lambda x: cross_entropy(x, targets), logits))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
