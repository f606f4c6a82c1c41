"""SwiGLU: what stands between the products of an MLP.

    s     = 1 / (1 + exp(-gate))
    y     = gate s up                         silu(gate) up
    dGate = dY up s (1 + gate (1 - s))
    dUp   = dY gate s

Entry by entry, in float32, rounded once. Kept for the backward: gate and up; silu(gate) is computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.native import C, execution


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply silu(gate) by up. Differentiable in both.

    A shape or dtype that does not fit is a ValueError that names the argument.

    Args:
        gate: float32 or bfloat16, any shape.
        up: gate's dtype and shape.

    Returns:
        gate's dtype and shape, contiguous.
    """
    return torch.ops.pyft.swiglu(gate, up)


# ---- registration with torch -----------------------------------------------------------------------------

_library = Library("pyft", "FRAGMENT")
_library.define("swiglu(Tensor gate, Tensor up) -> Tensor")
_library.define(
    "swiglu_backward(Tensor grad_y, Tensor gate, Tensor up) -> (Tensor grad_gate, Tensor grad_up)"
)


def _empty_output(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    y = _empty_output(gate, up)
    C.swiglu(gate=gate.contiguous(), up=up.contiguous(), y=y, **execution(gate))
    return y


def _empty_gradients(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _swiglu_backward(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad_gate, grad_up = _empty_gradients(grad_y, gate, up)
    C.swiglu_backward(
        grad_y=grad_y.contiguous(),
        gate=gate.contiguous(),
        up=up.contiguous(),
        grad_gate=grad_gate,
        grad_up=grad_up,
        **execution(gate),
    )
    return grad_gate, grad_up


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_y: Tensor) -> tuple:
    return torch.ops.pyft.swiglu_backward(grad_y, *ctx.saved_tensors)


for _name, _run, _fake in (
    ("swiglu", _swiglu, _empty_output),
    ("swiglu_backward", _swiglu_backward, _empty_gradients),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::swiglu", _gradients, setup_context=_keep, lib=_library)
