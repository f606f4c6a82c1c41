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

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.native import C, execution, runs_on_cuda
from pyft.ops.operation import Operation


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
    return _CROSS_ENTROPY(Arguments(logits, targets, ignore_index, label_smoothing, z_loss)).loss


# ---- what torch knows of it ------------------------------------------------------------------------------


class Arguments(NamedTuple):
    logits: Tensor  # [T, V]
    targets: Tensor  # int64 [T]
    ignore_index: int
    label_smoothing: float
    z_loss: float


class Result(NamedTuple):
    loss: Tensor  # float32 scalar
    row_stats: Tensor  # float32 [T, 2]


class BackwardArguments(NamedTuple):
    grad_loss: Tensor
    logits: Tensor
    targets: Tensor
    row_stats: Tensor
    ignore_index: int
    label_smoothing: float
    z_loss: float


def _empty_result(arguments: Arguments) -> Result:
    options = {"dtype": torch.float32, "device": arguments.logits.device}
    return Result(torch.empty((), **options), torch.empty((arguments.logits.shape[0], 2), **options))


def _cross_entropy(arguments: Arguments) -> Result:
    if arguments.logits.dim() != 2:
        raise ValueError(f"cross_entropy: logits has shape {list(arguments.logits.shape)}, expected [T, V]")
    result = _empty_result(arguments)
    row_losses = None
    if runs_on_cuda(arguments.logits):  # added up in a fixed order by a second kernel
        row_losses = arguments.logits.new_empty(arguments.logits.shape[0], dtype=torch.float32)
    C.cross_entropy(
        logits=arguments.logits.contiguous(),
        targets=arguments.targets.contiguous(),
        **result._asdict(),
        row_losses=row_losses,
        ignore_index=arguments.ignore_index,
        label_smoothing=arguments.label_smoothing,
        z_loss=arguments.z_loss,
        **execution(arguments.logits),
    )
    return result


def _empty_grad_logits(arguments: BackwardArguments) -> Tensor:
    return torch.empty(arguments.logits.shape, dtype=arguments.logits.dtype, device=arguments.logits.device)


def _cross_entropy_backward(arguments: BackwardArguments) -> Tensor:
    grad_logits = _empty_grad_logits(arguments)
    C.cross_entropy_backward(
        grad_loss=arguments.grad_loss.contiguous(),
        logits=arguments.logits.contiguous(),
        targets=arguments.targets.contiguous(),
        row_stats=arguments.row_stats,
        grad_logits=grad_logits,
        ignore_index=arguments.ignore_index,
        label_smoothing=arguments.label_smoothing,
        z_loss=arguments.z_loss,
        **execution(grad_logits),
    )
    return grad_logits


def _gradients(kept: SimpleNamespace, wanted: set[str], grad_loss: Tensor) -> dict[str, Tensor]:
    return {"logits": _CROSS_ENTROPY_BACKWARD(BackwardArguments(grad_loss=grad_loss, **vars(kept)))}


_CROSS_ENTROPY_BACKWARD = Operation(
    "cross_entropy_backward",
    BackwardArguments,
    _empty_grad_logits,
    cpu=_cross_entropy_backward,
    cuda=_cross_entropy_backward,
)
_CROSS_ENTROPY = Operation(
    "cross_entropy",
    Arguments,
    _empty_result,
    cpu=_cross_entropy,
    cuda=_cross_entropy,
    gradients=_gradients,
    keeps=("logits", "targets", "row_stats"),
)
