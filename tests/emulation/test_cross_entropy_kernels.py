"""The cross-entropy kernels of csrc/cuda, run on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close_to_reference, random, random_targets
from torch import Tensor

TERMS = {
    "plain": {"label_smoothing": 0.0, "z_loss": 0.0},
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.0},
    "z_loss": {"label_smoothing": 0.0, "z_loss": 1e-2},
    "both": {"label_smoothing": 0.3, "z_loss": 1e-3},
}
GRAD_LOSS = 0.37
# Fewer logits than a thread's eight, runs that end inside eight, more than the 4096 of one round of a block.
VOCABULARIES = [1, 7, 8, 33, 1000, 4096, 4099]


def loss_by_torch(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return loss + z_loss * logits[targets != -100].logsumexp(1).square().sum()


def run(
    kernels, logits: Tensor, targets: Tensor, terms: dict, *, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    num_rows = logits.shape[0]
    nan = float("nan")
    loss, stats, losses = torch.tensor(nan), torch.full((num_rows, 2), nan), torch.full((num_rows,), nan)
    common = {
        "targets": targets,
        "ignore_index": -100,
        "num_threads": 1,
        "stream": 0,
        "row_stats": stats,
    } | terms
    kernels.cross_entropy(logits=logits, loss=loss, row_losses=losses, **common)
    gradient = logits if in_place else torch.full_like(logits, nan)
    grad_loss = torch.tensor(GRAD_LOSS)
    kernels.cross_entropy_backward(grad_loss=grad_loss, logits=logits, grad_logits=gradient, **common)
    return loss, gradient


def by_torch(logits: Tensor, targets: Tensor, terms: dict, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().to(dtype).requires_grad_()
    loss = loss_by_torch(leaf, targets, **terms)
    return loss.detach(), torch.autograd.grad(loss * GRAD_LOSS, leaf)[0]


def check(kernels, logits: Tensor, targets: Tensor, terms: dict, **options) -> None:
    exact = by_torch(logits, targets, terms, torch.float64)
    # In float32, rounded at the end: torch's own bfloat16 is no standard to be held to.
    loss, gradient = by_torch(logits, targets, terms, torch.float32)
    ours = run(kernels, logits.detach().clone(), targets, terms, **options)
    assert_close_to_reference(ours[0], exact[0], loss, name="loss")
    assert_close_to_reference(ours[1], exact[1], gradient.to(logits.dtype), name="gradient")


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_value_and_gradient(kernels, vocabulary, dtype, terms):
    logits = random(7, vocabulary, scale=3.0, dtype=dtype).detach()
    check(kernels, logits, random_targets(7, vocabulary), terms)


def test_the_gradient_may_take_the_place_of_the_logits(kernels):
    for vocabulary in (40, 41):
        logits = random(5, vocabulary, scale=3.0).detach()
        check(kernels, logits, random_targets(5, vocabulary), TERMS["both"], in_place=True)


def test_rows_that_do_not_count_are_not_read(kernels):
    logits, targets = random(4, 50).detach(), torch.tensor([3, -100, 49, -100])
    expected = by_torch(logits, targets, TERMS["plain"], torch.float64)
    logits[targets == -100] = float("nan")
    loss, gradient = run(kernels, logits, targets, TERMS["plain"])
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-7)
    none = torch.full((4,), -100)
    loss, gradient = run(kernels, logits, none, TERMS["plain"])
    assert loss == 0 and not gradient.any()


def test_large_and_infinite_logits(kernels):
    logits = random(3, 600, scale=100.0).detach()
    logits[0, :300] = float("-inf")
    targets = torch.tensor([400, 0, 599])
    check(kernels, logits, targets, TERMS["plain"])
    # Of a row without a finite logit nothing can be said, and no padding makes up for it.
    assert run(kernels, torch.full((1, 7), float("-inf")), torch.tensor([3]), TERMS["plain"])[0].isnan()
    assert run(kernels, torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64), TERMS["plain"])[0] == 0


def test_rows_that_are_not_aligned(kernels):
    logits = random(1, 65).detach()[:, 1:]
    check(kernels, logits, torch.tensor([63]), TERMS["both"])
