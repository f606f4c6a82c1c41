"""Cross-entropy from hidden states: the logits are never all stored.

    l       = cap(logit_scale (hidden W^T + bias)),   cap(x) = logit_softcap tanh(x / logit_softcap)
    loss    = sum over rows with targets[t] != ignore_index, of l[t] as `cross_entropy` has it
    dX[t]   = dl[t] (1 - (l[t] / logit_softcap)^2) logit_scale,   dl as `cross_entropy` has it
    dHidden = dX W,   dW = dX^T hidden,   dBias = sum_t dX[t]

Sums are float32. Gradients for dLoss = 1 are computed with the loss, while logits exist, and scaled in the
backward: always on CUDA (`pyft.ops.cuda.linear_cross_entropy`), on the CPU for a frozen head or a small
vocabulary. Otherwise they are computed in the backward (`linear_cross_entropy_two_passes`).

Shapes: T tokens, K hidden size, V vocabulary.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.cuda.linear_cross_entropy import loss_and_gradients_on_cuda
from pyft.ops.linear_cross_entropy_two_passes import (
    LINEAR_CROSS_ENTROPY_FORWARD,
    ForwardArguments,
    Gradients,
    empty_gradients,
    native_arguments,
    workspace,
)
from pyft.ops.native import C, runs_on_cuda
from pyft.ops.operation import Operation
from pyft.ops.signatures import LinearCrossEntropyArguments


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    num_targets: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits of an output head, which are never all stored.

    Rows without a target are skipped, and nothing is computed for a gradient that is not wanted. On the CPU a
    head that trains keeps the logits of up to K rows until the backward, and never its gradient in float32.

    On CUDA nothing waits for the GPU, so rows can be skipped only if `num_targets` says how many there are.
    Without it every row costs as much as one with a target; the results are the same. A `num_targets` that is
    not the number of targets, and a target that is neither `ignore_index` nor in [0, V), are errors on the
    CPU (ValueError, IndexError); on CUDA they make loss and gradients NaN. Gradients of a head and of a bias
    are rounded to their dtype there before dLoss scales them.

    Args:
        hidden: float32 or bfloat16 [T, K].
        head_weight: hidden's dtype [V, K].
        targets: int64 [T].
        bias: hidden's dtype [V], or None.
        ignore_index: the value that marks a row without a target.
        logit_scale: factor of the logits (Cohere; Granite's logits_scaling is its inverse).
        logit_softcap: the bound that tanh bends the scaled logits to (Gemma 2); None for none.
        label_smoothing: torch's: this share of each target is spread evenly over all ids.
        z_loss: coefficient of a row's squared log-sum-exp, which keeps the softmax's normaliser near 1.
        num_targets: how many rows have a target; None if that is not known without looking.

    Returns:
        A float32 scalar; 0.0 when no row counts. Differentiable in hidden, head_weight and bias.

    Raises:
        ValueError: for a shape, dtype or number that does not fit.
    """
    for name, tensor, expected in (("hidden", hidden, "[T, K]"), ("head_weight", head_weight, "[V, K]")):
        if tensor.dim() != 2:
            raise ValueError(
                f"linear_cross_entropy: {name} has shape {list(tensor.shape)}, expected {expected}"
            )
    if logit_softcap is not None and not logit_softcap > 0:  # 0 means none below
        raise ValueError(f"linear_cross_entropy: logit_softcap is {logit_softcap}, expected a number above 0")
    terms = [logit_scale, logit_softcap or 0.0, label_smoothing, z_loss]
    wanted = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden, head_weight, bias)
    ]
    if num_targets is not None:
        _check_num_targets(num_targets, targets, ignore_index)
    inputs = (hidden, head_weight, bias, targets, ignore_index, terms)
    if not runs_on_cuda(hidden):
        plan = _plan_on_cpu(hidden, head_weight, terms, wanted)
        if plan["by_two_passes"]:
            return LINEAR_CROSS_ENTROPY_FORWARD(ForwardArguments(*inputs, plan["kept_rows"])).loss
    return _LINEAR_CROSS_ENTROPY(LinearCrossEntropyArguments(*inputs, wanted, num_targets)).loss


def _check_num_targets(num_targets: int, targets: Tensor, ignore_index: int) -> None:
    """Where that waits for nothing, that the number is right; everywhere, that it may be."""
    if not 0 <= num_targets <= targets.numel():
        raise ValueError(
            f"linear_cross_entropy: num_targets is {num_targets}, targets has {targets.numel()} elements"
        )
    if runs_on_cuda(targets):
        return
    counted = int((targets != ignore_index).sum())
    if num_targets != counted:
        raise ValueError(f"linear_cross_entropy: num_targets is {num_targets}, targets has {counted}")


# ---- what torch knows of it: the loss, and the gradients with it ------------------------------------------


class Result(NamedTuple):
    """The loss, and the gradients for dLoss = 1; those not wanted have no elements."""

    loss: Tensor  # float32 scalar
    grad_hidden: Tensor  # float32
    grad_head: Tensor  # float32, on CUDA the head's dtype, and so is the bias'
    grad_bias: Tensor


def _plan_on_cpu(
    hidden: Tensor, head_weight: Tensor, terms: list[float], wanted: list[bool]
) -> dict[str, int]:
    """How the kernels cut the work: by_two_passes, kept_rows, workspace_floats."""
    return C.plan_linear_cross_entropy(
        num_tokens=hidden.shape[0],
        width=hidden.shape[1],
        vocabulary=head_weight.shape[0],
        trains_head=any(wanted[1:]),
        smooths=terms[2] != 0,
    )


def _empty_result(arguments: LinearCrossEntropyArguments) -> Result:
    hidden = arguments.hidden
    of_head = hidden.dtype if runs_on_cuda(hidden) else torch.float32
    loss = hidden.new_empty((), dtype=torch.float32)
    return Result(loss, *empty_gradients(arguments, torch.float32, of_head, of_head))


def _loss_and_gradients(arguments: LinearCrossEntropyArguments) -> Result:
    result, hidden = _empty_result(arguments), arguments.hidden
    plan = _plan_on_cpu(hidden, arguments.head_weight, arguments.terms, arguments.wanted)
    C.linear_cross_entropy(
        **native_arguments(arguments, Gradients(*result[1:])),
        workspace=workspace(plan["workspace_floats"], hidden),
        loss=result.loss,
    )
    return result


def _scaled_gradients(kept: SimpleNamespace, wanted: set[str], grad_loss: Tensor) -> dict[str, Tensor]:
    """Autograd rounds them to the arguments' dtype."""
    found = {"hidden": kept.grad_hidden, "head_weight": kept.grad_head, "bias": kept.grad_bias}
    were_wanted = zip(found.items(), kept.wanted, strict=True)
    return {name: g * grad_loss for (name, g), was_wanted in were_wanted if was_wanted and name in wanted}


_LINEAR_CROSS_ENTROPY = Operation(
    "linear_cross_entropy",
    LinearCrossEntropyArguments,
    _empty_result,
    cpu=_loss_and_gradients,
    cuda=loss_and_gradients_on_cuda,
    gradients=_scaled_gradients,
    keeps=("grad_hidden", "grad_head", "grad_bias"),
)
