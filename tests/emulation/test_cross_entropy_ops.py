"""`cross_entropy` as on a GPU, with autograd: the kernels of csrc/cuda behind the public operation."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_equals_reference, gradients, poisoned_empty, random, random_targets

from pyft.ops import reference
from pyft.ops.cross_entropy import cross_entropy

OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 0.02}, {"label_smoothing": 0.3, "z_loss": 0.001}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("num_rows", "vocabulary"), [(1, 3), (9, 97), (3, 4105)])
def test_value_and_gradient(emulated_ops, monkeypatch, num_rows, vocabulary, options, dtype):
    poisoned_empty(monkeypatch)
    targets = random_targets(num_rows, vocabulary)
    assert_equals_reference(
        lambda x: cross_entropy(x, targets, **options),
        lambda x: reference.cross_entropy(x, targets, **options),
        random(num_rows, vocabulary, scale=3.0, dtype=dtype),
    )


def test_views_and_rows_that_do_not_count(emulated_ops, monkeypatch):
    targets = random_targets(9, 41)
    logits = random(41, 9, scale=3.0).T.detach()
    dirty = logits.clone()
    dirty[targets == -100] = float("nan")
    poisoned_empty(monkeypatch)
    runs = [gradients(lambda x: cross_entropy(x, targets), x.requires_grad_()) for x in (logits, dirty)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not runs[0][1][targets == -100].any()


@pytest.mark.parametrize("num_rows", [0, 5])
def test_no_row_counts(emulated_ops, monkeypatch, num_rows):
    poisoned_empty(monkeypatch)
    targets = torch.full((num_rows,), -100)
    for result in gradients(lambda x: cross_entropy(x, targets, z_loss=0.1), random(num_rows, 17)):
        assert torch.equal(result, torch.zeros_like(result))


def test_errors_and_targets_outside_the_vocabulary(emulated_ops):
    logits, targets = random(4, 10), torch.tensor([0, 1, 10, 2])
    loss, gradient = gradients(lambda x: cross_entropy(x, targets), logits)
    assert loss.isnan() and gradient[2].isnan().all() and gradient[[0, 1, 3]].isfinite().all()
    for arguments, message in (
        ((logits, targets[:3]), r"targets.shape\[0\] is 3, logits expects 4"),
        ((logits.unsqueeze(2), targets), r"logits has shape \[4, 10, 1\], expected \[T, V\]"),
        ((logits.double(), targets), r"logits.dtype is float64, expected float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=f"cross_entropy: {message}"):
            cross_entropy(*arguments)


def test_opcheck(emulated_ops):
    torch.library.opcheck(
        torch.ops.pyft.cross_entropy,
        (random(5, 11), random_targets(5, 11), -100, 0.1, 0.01),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
