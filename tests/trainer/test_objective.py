from __future__ import annotations

import pytest
import torch
from toy import toy_batch

from pyft.ops import reference
from pyft.trainer.objective import causal_lm_objective, logits_objective


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(13, 8, generator=generator).requires_grad_()
    head = torch.randn(11, 8, generator=generator).requires_grad_()
    return hidden, head, toy_batch(3, 13, 5)


def expected(hidden, head, batch):
    hidden, head = (tensor.detach().double().requires_grad_() for tensor in (hidden, head))
    targets = batch.targets.reshape(-1)
    picked = targets >= 0
    loss = -(hidden[picked] @ head.T).log_softmax(-1).gather(1, targets[picked, None]).sum()
    loss.backward()
    return loss.item(), hidden.grad, head.grad


@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_sum_over_targets_and_their_number(parts, kind):
    hidden, head, batch = parts
    if kind == "hidden":
        objective = causal_lm_objective(lambda batch: hidden, lambda: (head, None))
    else:
        objective = logits_objective(lambda batch: hidden @ head.T)
    loss, num_targets = objective(batch)
    loss.backward()
    value, hidden_gradient, head_gradient = expected(hidden, head, batch)
    assert num_targets == 5 and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(hidden.grad.double(), hidden_gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.grad.double(), head_gradient, rtol=1e-4, atol=1e-5)


def test_head_is_asked_for_at_each_batch(parts):
    hidden, head, batch = parts
    heads = [head, head.detach() * 0]
    objective = causal_lm_objective(lambda batch: hidden, lambda: (heads.pop(0), None))
    first, second = objective(batch)[0].item(), objective(batch)[0].item()
    assert first != second
    assert second == pytest.approx(5 * torch.tensor(11.0).log().item(), rel=1e-5)


def test_bias_scale_and_cap_reach_the_loss(parts):
    hidden, head, batch = parts
    bias = torch.randn(11, generator=torch.Generator().manual_seed(2)).requires_grad_()
    options = {"logit_scale": 0.5, "logit_softcap": 2.0}
    loss, _ = causal_lm_objective(lambda batch: hidden, lambda: (head, bias), **options)(batch)
    expected = reference.linear_cross_entropy(hidden, head, batch.targets.reshape(-1), bias=bias, **options)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (hidden, head, bias)),
        torch.autograd.grad(expected, (hidden, head, bias)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
