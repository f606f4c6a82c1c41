"""The backward kernel of SwiGLU in csrc/cuda, run on the CPU: its gradients may take its inputs' places."""

from __future__ import annotations

import torch
from numerics import output_gradients, random

from pyft.ops.swiglu import swiglu


def test_in_place(emulated_ops, kernels):
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 20.0, 200.0, 1e30, float("nan"), -20.0, 3.0])
    leaves = [gate.clone().requires_grad_(), torch.full_like(gate, 2.0).requires_grad_()]
    _, *expected = output_gradients(swiglu, *leaves)
    gradient, up = random(10, seed=90).detach(), torch.full_like(gate, 2.0)
    kernels.swiglu_backward(
        grad_y=gradient, gate=gate, up=up, grad_gate=gradient, grad_up=up, num_threads=1, stream=0
    )
    torch.testing.assert_close([gradient, up], expected, rtol=0, atol=0, equal_nan=True)
