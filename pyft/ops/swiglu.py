"""SwiGLU: what stands between the products of an MLP.

    s     = 1 / (1 + exp(-gate))
    y     = gate s up                         silu(gate) up
    dGate = dY up s (1 + gate (1 - s))
    dUp   = dY gate s

Entry by entry, in float32, rounded once. Kept for the backward: gate and up; silu(gate) is computed again.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

from torch import Tensor

from pyft.ops.native import C, execution
from pyft.ops.operation import Operation


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply silu(gate) by up. Differentiable in both.

    A shape or dtype that does not fit is a ValueError that names the argument.

    Args:
        gate: float32 or bfloat16, any shape.
        up: gate's dtype and shape.

    Returns:
        gate's dtype and shape, contiguous.
    """
    return _SWIGLU(Arguments(gate, up))


# ---- what torch knows of it ------------------------------------------------------------------------------


class Arguments(NamedTuple):
    gate: Tensor
    up: Tensor


class BackwardArguments(NamedTuple):
    grad_y: Tensor
    gate: Tensor
    up: Tensor


class Gradients(NamedTuple):
    grad_gate: Tensor
    grad_up: Tensor


def _empty_y(arguments: Arguments) -> Tensor:
    return arguments.gate.new_empty(arguments.gate.shape)


def _swiglu(arguments: Arguments) -> Tensor:
    y = _empty_y(arguments)
    C.swiglu(gate=arguments.gate.contiguous(), up=arguments.up.contiguous(), y=y, **execution(y))
    return y


def _empty_gradients(arguments: BackwardArguments) -> Gradients:
    gate = arguments.gate
    return Gradients(gate.new_empty(gate.shape), gate.new_empty(gate.shape))


def _swiglu_backward(arguments: BackwardArguments) -> Gradients:
    gradients = _empty_gradients(arguments)
    tensors = {name: tensor.contiguous() for name, tensor in arguments._asdict().items()}
    C.swiglu_backward(**tensors, **gradients._asdict(), **execution(arguments.gate))
    return gradients


def _gradients(kept: SimpleNamespace, wanted: set[str], grad_y: Tensor) -> dict[str, Tensor]:
    found = _SWIGLU_BACKWARD(BackwardArguments(grad_y, kept.gate, kept.up))
    return {"gate": found.grad_gate, "up": found.grad_up}


_SWIGLU_BACKWARD = Operation(
    "swiglu_backward", BackwardArguments, _empty_gradients, cpu=_swiglu_backward, cuda=_swiglu_backward
)
_SWIGLU = Operation(
    "swiglu", Arguments, _empty_y, cpu=_swiglu, cuda=_swiglu, gradients=_gradients, keeps=("gate", "up")
)
