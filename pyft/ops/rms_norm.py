"""RMSNorm: rows brought to a root mean square of 1, times a weight.

    s  = 1 / sqrt(mean(x^2) + eps)
    y  = s x (weight_offset + weight)
    g  = dY (weight_offset + weight),   n = s x
    dX = s (g - n mean(g n)),           dWeight = sum over rows of dY n

Everything is computed in float32 and rounded once, so in bfloat16 the result is closer to the exact one than
those of architectures that round before they multiply by the weight. Kept for the backward: x, and s of each
row. A weight that does not train costs nothing.

Shapes: T rows (all leading dimensions of x together), K the width of a row.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.arguments import matrix
from pyft.ops.native import C, execution
from pyft.ops.operation import Operation


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, weight_offset: float = 0.0) -> Tensor:
    """Normalise rows by their root mean square. Differentiable in x and weight.

    A shape or dtype that does not fit is a ValueError that names the argument.

    Args:
        x: float32 or bfloat16 [..., K].
        weight: x's dtype [K].
        eps: added to the mean square.
        weight_offset: added to the weight; 1.0 for architectures that store it less 1 (Gemma).

    Returns:
        [..., K] in x's dtype, contiguous.
    """
    return _RMS_NORM(Arguments(x, weight, float(eps), float(weight_offset))).y


def num_partials(num_rows: int, width: int) -> int:
    """Choose in how many parts the weight's gradient is summed, which decides its bits.

    Args:
        num_rows: T.
        width: K.

    Returns:
        Enough parts to fill any GPU, few enough that adding them up is nothing.
    """
    return max(1, min(-(-num_rows // 4), max(256, (1 << 18) // max(width, 1))))


# ---- what torch knows of it ------------------------------------------------------------------------------


class Arguments(NamedTuple):
    x: Tensor  # [..., K]
    weight: Tensor  # [K]
    eps: float
    weight_offset: float


class Result(NamedTuple):
    y: Tensor  # x's shape and dtype
    inverse_rms: Tensor  # float32 [...]: s


class BackwardArguments(NamedTuple):
    grad_y: Tensor
    x: Tensor
    weight: Tensor
    inverse_rms: Tensor
    weight_offset: float
    wants_weight: bool


class Gradients(NamedTuple):
    grad_x: Tensor
    grad_weight: Tensor  # without elements if not wanted


def _empty_result(arguments: Arguments) -> Result:
    x = arguments.x
    return Result(x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32))


def _rms_norm(arguments: Arguments) -> Result:
    if arguments.x.dim() == 0:
        raise ValueError("rms_norm: x has shape [], expected [..., K]")
    result = _empty_result(arguments)
    C.rms_norm(
        x=matrix(arguments.x),
        weight=arguments.weight.contiguous(),
        y=matrix(result.y),
        inverse_rms=result.inverse_rms.view(-1),
        eps=arguments.eps,
        weight_offset=arguments.weight_offset,
        **execution(arguments.x),
    )
    return result


def _empty_gradients(arguments: BackwardArguments) -> Gradients:
    x = arguments.x
    return Gradients(x.new_empty(x.shape), x.new_empty(x.shape[-1] if arguments.wants_weight else 0))


def _rms_norm_backward(arguments: BackwardArguments) -> Gradients:
    gradients, rows = _empty_gradients(arguments), matrix(arguments.x)
    partials = None
    if arguments.wants_weight:
        partials = rows.new_empty((num_partials(*rows.shape), rows.shape[1]), dtype=torch.float32)
    C.rms_norm_backward(
        grad_y=matrix(arguments.grad_y),
        x=rows,
        weight=arguments.weight.contiguous(),
        inverse_rms=arguments.inverse_rms.reshape(-1),
        grad_x=matrix(gradients.grad_x),
        grad_weight=gradients.grad_weight if arguments.wants_weight else None,
        partials=partials,
        weight_offset=arguments.weight_offset,
        **execution(rows),
    )
    return gradients


def _gradients(kept: SimpleNamespace, wanted: set[str], grad_y: Tensor) -> dict[str, Tensor]:
    found = _RMS_NORM_BACKWARD(
        BackwardArguments(
            grad_y, kept.x, kept.weight, kept.inverse_rms, kept.weight_offset, "weight" in wanted
        )
    )
    return {"x": found.grad_x, "weight": found.grad_weight}


_RMS_NORM_BACKWARD = Operation(
    "rms_norm_backward", BackwardArguments, _empty_gradients, cpu=_rms_norm_backward, cuda=_rms_norm_backward
)
_RMS_NORM = Operation(
    "rms_norm",
    Arguments,
    _empty_result,
    cpu=_rms_norm,
    cuda=_rms_norm,
    gradients=_gradients,
    keeps=("x", "weight", "inverse_rms"),
)
