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

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.arguments import matrix
from pyft.ops.native import C, execution


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
    y, _ = torch.ops.pyft.rms_norm(x, weight, float(eps), float(weight_offset))
    return y


# ---- registration with torch -----------------------------------------------------------------------------

_library = Library("pyft", "FRAGMENT")
_library.define(
    "rms_norm(Tensor x, Tensor weight, float eps, float weight_offset) -> (Tensor y, Tensor inverse_rms)"
)
_library.define(
    "rms_norm_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor inverse_rms, float weight_offset,"
    " bool wants_weight) -> (Tensor grad_x, Tensor grad_weight)"
)


def _empty_output(x: Tensor, *_) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    if x.dim() == 0:
        raise ValueError("rms_norm: x has shape [], expected [..., K]")
    y, inverse_rms = _empty_output(x)
    C.rms_norm(
        x=matrix(x),
        weight=weight.contiguous(),
        y=matrix(y),
        inverse_rms=inverse_rms.view(-1),
        eps=eps,
        weight_offset=weight_offset,
        **execution(x),
    )
    return y, inverse_rms


def num_partials(num_rows: int, width: int) -> int:
    """Choose in how many parts the weight's gradient is summed, which decides its bits.

    Args:
        num_rows: T.
        width: K.

    Returns:
        Enough parts to fill any GPU, few enough that adding them up is nothing.
    """
    return max(1, min(-(-num_rows // 4), max(256, (1 << 18) // max(width, 1))))


def _empty_gradients(grad_y: Tensor, x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    """Gradients to x and weight; one that is not wanted has no elements."""
    wants_weight = rest[-1]
    return x.new_empty(x.shape), x.new_empty(x.shape[-1] if wants_weight else 0)


def _norm_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, inverse_rms: Tensor, weight_offset: float, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = _empty_gradients(grad_y, x, wants_weight)
    rows = matrix(x)
    partials = None
    if wants_weight:
        partials = x.new_empty((num_partials(*rows.shape), rows.shape[1]), dtype=torch.float32)
    C.rms_norm_backward(
        grad_y=matrix(grad_y),
        x=rows,
        weight=weight.contiguous(),
        inverse_rms=inverse_rms.reshape(-1),
        grad_x=matrix(grad_x),
        grad_weight=grad_weight if wants_weight else None,
        partials=partials,
        weight_offset=weight_offset,
        **execution(x),
    )
    return grad_x, grad_weight


def _keep(ctx, inputs, output) -> None:
    x, weight, _, ctx.weight_offset = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _gradients(ctx, grad_y: Tensor | None, _grad_stats: None) -> tuple:
    if grad_y is None:
        return (None,) * 4
    wants_x, wants_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = torch.ops.pyft.rms_norm_backward(
        grad_y, *ctx.saved_tensors, ctx.weight_offset, wants_weight
    )
    return (grad_x if wants_x else None, grad_weight if wants_weight else None, None, None)


for _name, _run, _fake in (
    ("rms_norm", _norm, _empty_output),
    ("rms_norm_backward", _norm_backward, _empty_gradients),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::rms_norm", _gradients, setup_context=_keep, lib=_library)
