"""Cross-entropy over the rows that have a target, from logits or from hidden states.

    loss    = sum over rows with targets[t] != ignore_index of  log(sum_v exp(l[t, v])) - l[t, targets[t]]
    dL[t]   = softmax(l[t]) - one_hot(targets[t]),  exact zeros for the other rows, which are never read

Both return the sum: whoever trains divides by the number of targets of the whole optimizer step. Everything
is computed in float32 whatever the inputs are. `linear_cross_entropy` computes its gradients in the forward,
while the logits of a chunk exist, and scales them in the backward. Left out: class weights, label smoothing,
logit soft-caps.

Shapes: T tokens, K hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.native import C, execution


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


def linear_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Cross-entropy of the logits hidden head_weight^T, which are never all stored.

    Logits exist for one chunk of rows at a time (32 MiB), rows without a target are skipped, and nothing is
    computed for a gradient that is not wanted.

    Args:
        hidden: float32 or bfloat16 [T, K].
        head_weight: hidden's dtype [V, K].
        targets: int64 [T].
        ignore_index: the value that marks a row without a target.

    Returns:
        A float32 scalar; 0.0 when no row counts. Differentiable in hidden and head_weight.
    """
    wants_gradients = torch.is_grad_enabled()
    loss, _, _ = torch.ops.pyft.linear_cross_entropy(
        hidden,
        head_weight,
        targets,
        ignore_index,
        wants_gradients and hidden.requires_grad,
        wants_gradients and head_weight.requires_grad,
    )
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
_library.define(
    "linear_cross_entropy(Tensor hidden, Tensor head_weight, Tensor targets, int ignore_index,"
    " bool wants_hidden, bool wants_head) -> (Tensor loss, Tensor grad_hidden, Tensor grad_head)"
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


def _empty_gradients(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    wants_hidden: bool,
    wants_head: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and float32 gradients; those that are not wanted have no elements."""
    options = {"dtype": torch.float32, "device": hidden.device}
    grad_hidden = torch.empty(hidden.shape if wants_hidden else 0, **options)
    grad_head = torch.empty(head_weight.shape if wants_head else 0, **options)
    return torch.empty((), **options), grad_hidden, grad_head


def _linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    wants_hidden: bool,
    wants_head: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad_hidden, grad_head = _empty_gradients(
        hidden, head_weight, targets, ignore_index, wants_hidden, wants_head
    )
    for name, tensor, expected in (("hidden", hidden, "[T, K]"), ("head_weight", head_weight, "[V, K]")):
        if tensor.dim() != 2:
            raise ValueError(
                f"linear_cross_entropy: {name} has shape {list(tensor.shape)}, expected {expected}"
            )
    plan = C.plan_linear_cross_entropy(
        num_tokens=hidden.shape[0],
        width=hidden.shape[1],
        vocabulary=head_weight.shape[0],
        trains_head=wants_head,
    )
    C.linear_cross_entropy(
        hidden=hidden.contiguous(),
        head_weight=head_weight.contiguous(),
        targets=targets.contiguous(),
        workspace=torch.empty(plan["workspace_floats"], dtype=torch.float32, device=hidden.device),
        loss=loss,
        grad_hidden=grad_hidden if wants_hidden else None,
        grad_head=grad_head if wants_head else None,
        ignore_index=ignore_index,
        **execution(hidden),
    )
    return loss, grad_hidden, grad_head


def _keep_gradients(ctx, inputs, output) -> None:
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.wanted = inputs[4:6]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx, grad_loss: Tensor | None, *_) -> tuple:
    if grad_loss is None:
        return (None,) * 6
    scaled = [
        (gradient * grad_loss).to(dtype) if wanted and needed else None
        for gradient, dtype, wanted, needed in zip(
            ctx.saved_tensors, ctx.dtypes, ctx.wanted, ctx.needs_input_grad[:2], strict=True
        )
    ]
    return (*scaled, *[None] * 4)


for _name, _run, _fake in (
    ("cross_entropy", _cross_entropy, _empty_loss),
    ("cross_entropy_backward", _cross_entropy_backward, _empty_grad_logits),
    ("linear_cross_entropy", _linear_cross_entropy, _empty_gradients),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::cross_entropy", _logits_gradient, setup_context=_keep_stats, lib=_library)
register_autograd("pyft::linear_cross_entropy", _scale_gradients, setup_context=_keep_gradients, lib=_library)
