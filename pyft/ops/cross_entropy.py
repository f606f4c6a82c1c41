"""Cross-entropy over the rows that have a target, from logits; `linear_cross_entropy` is found here too.

    loss    = sum over rows with targets[t] != ignore_index of  log(sum_v exp(l[t, v])) - l[t, targets[t]]
    dL[t]   = softmax(l[t]) - one_hot(targets[t]),  exact zeros for the other rows, which are never read

Both return the sum: whoever trains divides by the number of targets of the whole optimizer step. Everything
is computed in float32 whatever the inputs are. Left out: class weights, label smoothing, logit soft-caps.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.linear_cross_entropy import linear_cross_entropy
from pyft.ops.native import C, execution

__all__ = ["cross_entropy", "linear_cross_entropy"]


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Sum of the cross-entropy over the rows that have a target.

    A shape or dtype that does not fit is a ValueError; a target that is neither `ignore_index` nor in [0, V)
    is an IndexError that names it.

    Args:
        logits: float32 or bfloat16 [T, V].
        targets: int64 [T].
        ignore_index: the value that marks a row without a target.

    Returns:
        A float32 scalar; 0.0 when no row counts. Differentiable in logits.
    """
    loss, _ = torch.ops.pyft.cross_entropy(logits, targets, ignore_index)
    return loss


# ---- registration with torch -----------------------------------------------------------------------------

_library = Library("pyft", "FRAGMENT")
_library.define(
    "cross_entropy(Tensor logits, Tensor targets, int ignore_index) -> (Tensor loss, Tensor row_stats)"
)
_library.define(
    "cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor targets, Tensor row_stats,"
    " int ignore_index) -> Tensor"
)


def _empty_loss(logits: Tensor, *_) -> tuple[Tensor, Tensor]:
    row_stats = logits.new_empty((logits.shape[0], 2), dtype=torch.float32)
    return logits.new_empty((), dtype=torch.float32), row_stats


def _cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2:
        raise ValueError(f"cross_entropy: logits has shape {list(logits.shape)}, expected [T, V]")
    loss, row_stats = _empty_loss(logits)
    C.cross_entropy(
        logits=logits.contiguous(),
        targets=targets.contiguous(),
        loss=loss,
        row_stats=row_stats,
        ignore_index=ignore_index,
        **execution(logits),
    )
    return loss, row_stats


def _empty_grad_logits(grad_loss: Tensor, logits: Tensor, *_) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _cross_entropy_backward(
    grad_loss: Tensor, logits: Tensor, targets: Tensor, row_stats: Tensor, ignore_index: int
) -> Tensor:
    grad_logits = _empty_grad_logits(grad_loss, logits)
    C.cross_entropy_backward(
        grad_loss=grad_loss.contiguous(),
        logits=logits.contiguous(),
        targets=targets.contiguous(),
        row_stats=row_stats,
        grad_logits=grad_logits,
        ignore_index=ignore_index,
        **execution(logits),
    )
    return grad_logits


def _keep_stats(ctx, inputs, output) -> None:
    logits, targets, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, output[1])


def _logits_gradient(ctx, grad_loss: Tensor | None, _grad_stats: None) -> tuple:
    if grad_loss is None:
        return None, None, None
    return torch.ops.pyft.cross_entropy_backward(grad_loss, *ctx.saved_tensors, ctx.ignore_index), None, None


for _name, _run, _fake in (
    ("cross_entropy", _cross_entropy, _empty_loss),
    ("cross_entropy_backward", _cross_entropy_backward, _empty_grad_logits),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::cross_entropy", _logits_gradient, setup_context=_keep_stats, lib=_library)
