"""Cross-entropy over the rows that have a target, from logits; `linear_cross_entropy` is found here too.

    lse     = log(sum_v exp(l[v]))                                             of a row l with target y
    loss    = sum over rows with y != ignore_index of  lse - l[y]
                                                       + label_smoothing (l[y] - mean_v l[v]) + z_loss lse^2
    dl      = softmax(l) (1 + 2 z_loss lse) - (1 - label_smoothing) one_hot(y) - label_smoothing / V

Rows without a target are never read, and get exact zeros. Both return the sum: whoever trains divides by the
number of targets of the whole optimizer step. Everything is computed in float32 whatever the inputs are. Left
out: class weights.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.cuda.cross_entropy import ON_CUDA
from pyft.ops.native import C, execution


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum of the cross-entropy over the rows that have a target.

    A shape or dtype that does not fit is a ValueError; a target that is neither `ignore_index` nor in [0, V)
    is an IndexError that names it. On CUDA, where nothing waits to look at it, it makes the loss and the
    row's gradient NaN.

    Args:
        logits: float32 or bfloat16 [T, V].
        targets: int64 [T].
        ignore_index: the value that marks a row without a target.
        label_smoothing: torch's: this share of each target is spread evenly over all ids.
        z_loss: coefficient of a row's squared log-sum-exp, which keeps the softmax's normaliser near 1.

    Returns:
        A float32 scalar; 0.0 when no row counts. Differentiable in logits.
    """
    loss, _ = torch.ops.pyft.cross_entropy(logits, targets, ignore_index, label_smoothing, z_loss)
    return loss


# ---- registration with torch -----------------------------------------------------------------------------

_library = Library("pyft", "FRAGMENT")
_library.define(
    "cross_entropy(Tensor logits, Tensor targets, int ignore_index, float label_smoothing, float z_loss)"
    " -> (Tensor loss, Tensor row_stats)"
)
_library.define(
    "cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor targets, Tensor row_stats,"
    " int ignore_index, float label_smoothing, float z_loss) -> Tensor"
)


def _empty_loss(logits: Tensor, *_) -> tuple[Tensor, Tensor]:
    row_stats = logits.new_empty((logits.shape[0], 2), dtype=torch.float32)
    return logits.new_empty((), dtype=torch.float32), row_stats


def _cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    if logits.dim() != 2:
        raise ValueError(f"cross_entropy: logits has shape {list(logits.shape)}, expected [T, V]")
    loss, row_stats = _empty_loss(logits)
    C.cross_entropy(
        logits=logits.contiguous(),
        targets=targets.contiguous(),
        loss=loss,
        row_stats=row_stats,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        **execution(logits),
    )
    return loss, row_stats


def _empty_grad_logits(grad_loss: Tensor, logits: Tensor, *_) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _cross_entropy_backward(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    row_stats: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> Tensor:
    grad_logits = _empty_grad_logits(grad_loss, logits)
    C.cross_entropy_backward(
        grad_loss=grad_loss.contiguous(),
        logits=logits.contiguous(),
        targets=targets.contiguous(),
        row_stats=row_stats,
        grad_logits=grad_logits,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        **execution(logits),
    )
    return grad_logits


def _keep_stats(ctx, inputs, output) -> None:
    logits, targets, *ctx.numbers = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, output[1])


def _logits_gradient(ctx, grad_loss: Tensor | None, _grad_stats: None) -> tuple:
    if grad_loss is None:
        return (None,) * 5
    gradient = torch.ops.pyft.cross_entropy_backward(grad_loss, *ctx.saved_tensors, *ctx.numbers)
    return (gradient, *[None] * 4)


for _name, _run, _fake in (
    ("cross_entropy", _cross_entropy, _empty_loss),
    ("cross_entropy_backward", _cross_entropy_backward, _empty_grad_logits),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, ON_CUDA.get(_name, _run), "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::cross_entropy", _logits_gradient, setup_context=_keep_stats, lib=_library)
