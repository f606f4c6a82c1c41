"""Cross-entropy from hidden states: the logits hidden head_weight^T are never all stored.

    loss    = sum over rows with targets[t] != ignore_index of  log(sum_v exp(l[t, v])) - l[t, targets[t]]
    dL[t]   = softmax(l[t]) - one_hot(targets[t])
    dHidden = dL W,   dW = dL^T hidden

Sums and gradients are float32, rounded once. There are two operations, and the kernels' plan says which fits:

    linear_cross_entropy             gradients in the forward, for dLoss = 1, while logits exist; the backward
                                     scales them. A frozen head, or a small vocabulary.
    linear_cross_entropy_forward     the loss, what each row's softmax needs, and logits of up to K rows;
    linear_cross_entropy_backward    the gradients, each written once. A large vocabulary whose head trains:
                                     its gradient in float32 would be the largest tensor of the step.

Shapes: T tokens, K hidden size, V vocabulary, R rows whose logits are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.native import C, execution


def linear_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """Cross-entropy of the logits hidden head_weight^T, which are never all stored.

    Rows without a target are skipped, and nothing is computed for a gradient that is not wanted. A head that
    trains keeps the logits of up to K rows until the backward, and never its gradient in float32.

    Args:
        hidden: float32 or bfloat16 [T, K].
        head_weight: hidden's dtype [V, K].
        targets: int64 [T].
        ignore_index: the value that marks a row without a target.

    Returns:
        A float32 scalar; 0.0 when no row counts. Differentiable in hidden and head_weight.

    Raises:
        ValueError: for a shape or dtype that does not fit.
    """
    for name, tensor, expected in (("hidden", hidden, "[T, K]"), ("head_weight", head_weight, "[V, K]")):
        if tensor.dim() != 2:
            raise ValueError(
                f"linear_cross_entropy: {name} has shape {list(tensor.shape)}, expected {expected}"
            )
    wants_hidden, wants_head = (
        torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, head_weight)
    )
    plan = _plan(hidden, head_weight, wants_head)
    if plan["by_two_passes"]:
        return torch.ops.pyft.linear_cross_entropy_forward(
            hidden, head_weight, targets, ignore_index, plan["kept_rows"]
        )[0]
    return torch.ops.pyft.linear_cross_entropy(
        hidden, head_weight, targets, ignore_index, wants_hidden, wants_head
    )[0]


def _plan(hidden: Tensor, head_weight: Tensor, wants_head: bool) -> dict[str, int]:
    return C.plan_linear_cross_entropy(
        num_tokens=hidden.shape[0],
        width=hidden.shape[1],
        vocabulary=head_weight.shape[0],
        trains_head=wants_head,
    )


def _workspace(num_floats: int, beside: Tensor) -> Tensor:
    return torch.empty(num_floats, dtype=torch.float32, device=beside.device)


# ---- registration with torch: gradients in the forward ---------------------------------------------------

_INPUTS = "Tensor hidden, Tensor head_weight, Tensor targets, int ignore_index"
_library = Library("pyft", "FRAGMENT")
_library.define(
    f"linear_cross_entropy({_INPUTS}, bool wants_hidden, bool wants_head)"
    " -> (Tensor loss, Tensor grad_hidden, Tensor grad_head)"
)


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


def _loss_and_gradients(
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
    C.linear_cross_entropy(
        hidden=hidden.contiguous(),
        head_weight=head_weight.contiguous(),
        targets=targets.contiguous(),
        workspace=_workspace(_plan(hidden, head_weight, wants_head)["workspace_floats"], hidden),
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


# ---- registration with torch: the loss, later the gradients ----------------------------------------------

_library.define(
    f"linear_cross_entropy_forward({_INPUTS}, int kept_rows)"
    " -> (Tensor loss, Tensor row_stats, Tensor kept_logits)"
)
_library.define(
    "linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor head_weight, Tensor targets,"
    " Tensor row_stats, Tensor kept_logits, int ignore_index, bool wants_hidden, bool wants_head)"
    " -> (Tensor grad_hidden, Tensor grad_head)"
)


def _empty_kept(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, ignore_index: int, kept_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": torch.float32, "device": hidden.device}
    row_stats = torch.empty((hidden.shape[0], 2), **options)
    return torch.empty((), **options), row_stats, torch.empty((kept_rows, head_weight.shape[0]), **options)


def _forward(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, ignore_index: int, kept_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    loss, row_stats, kept_logits = _empty_kept(hidden, head_weight, targets, ignore_index, kept_rows)
    C.linear_cross_entropy_forward(
        hidden=hidden.contiguous(),
        head_weight=head_weight.contiguous(),
        targets=targets.contiguous(),
        workspace=_workspace(hidden.numel(), hidden),
        loss=loss,
        row_stats=row_stats,
        kept_logits=kept_logits,
        ignore_index=ignore_index,
        **execution(hidden),
    )
    return loss, row_stats, kept_logits


def _empty_late_gradients(
    grad_loss: Tensor, hidden: Tensor, head_weight: Tensor, *rest
) -> tuple[Tensor, Tensor]:
    """Gradients in the inputs' dtype; those that are not wanted have no elements."""
    wanted = zip((hidden, head_weight), rest[-2:], strict=True)
    grad_hidden, grad_head = (
        torch.empty(tensor.shape if wants else 0, dtype=tensor.dtype, device=tensor.device)
        for tensor, wants in wanted
    )
    return grad_hidden, grad_head


def _backward(
    grad_loss: Tensor,
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    row_stats: Tensor,
    kept_logits: Tensor,
    ignore_index: int,
    wants_hidden: bool,
    wants_head: bool,
) -> tuple[Tensor, Tensor]:
    gradients = _empty_late_gradients(grad_loss, hidden, head_weight, wants_hidden, wants_head)
    num_floats = C.linear_cross_entropy_backward_floats(num_tokens=hidden.shape[0], width=hidden.shape[1])
    C.linear_cross_entropy_backward(
        grad_loss=grad_loss,
        hidden=hidden.contiguous(),
        head_weight=head_weight.contiguous(),
        targets=targets.contiguous(),
        row_stats=row_stats,
        kept_logits=kept_logits,
        workspace=_workspace(num_floats, hidden),
        grad_hidden=gradients[0] if wants_hidden else None,
        grad_head=gradients[1] if wants_head else None,
        ignore_index=ignore_index,
        **execution(hidden),
    )
    return gradients


def _keep_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.ignore_index, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _late_gradients(ctx, grad_loss: Tensor | None, *_) -> tuple:
    if grad_loss is None:
        return (None,) * 5
    wanted = ctx.needs_input_grad[:2]
    gradients = torch.ops.pyft.linear_cross_entropy_backward(
        grad_loss, *ctx.saved_tensors, ctx.ignore_index, *wanted
    )
    return (*[g if w else None for g, w in zip(gradients, wanted, strict=True)], *[None] * 3)


for _name, _run, _fake in (
    ("linear_cross_entropy", _loss_and_gradients, _empty_gradients),
    ("linear_cross_entropy_forward", _forward, _empty_kept),
    ("linear_cross_entropy_backward", _backward, _empty_late_gradients),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::linear_cross_entropy", _scale_gradients, setup_context=_keep_gradients, lib=_library)
register_autograd(
    "pyft::linear_cross_entropy_forward", _late_gradients, setup_context=_keep_inputs, lib=_library
)
