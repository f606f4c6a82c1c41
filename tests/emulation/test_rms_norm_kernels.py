"""The backward kernel of RMSNorm in csrc/cuda, run on the CPU: how its partial sums are shared out."""

from __future__ import annotations

import torch
from numerics import random


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
