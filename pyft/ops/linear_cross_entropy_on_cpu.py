"""linear_cross_entropy on the CPU, in two ways; the kernels' plan says which fits.

    linear_cross_entropy             gradients in the forward, for dLoss = 1, while logits exist; the backward
                                     scales them. A frozen head, or a small vocabulary.
    linear_cross_entropy_forward     the loss, what each row's softmax needs, and logits of up to K rows;
    linear_cross_entropy_backward    the gradients, each written once. A large vocabulary whose head trains:
                                     its gradient in float32 would be the largest tensor of the step. Or one
                                     with label smoothing; a frozen head then keeps no logits.

`pyft.ops.linear_cross_entropy` has the function that picks, and what all of it computes.

Shapes: T tokens, K hidden size, V vocabulary, R rows whose logits are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.native import C, execution


def plan_on_cpu(hidden: Tensor, head_weight: Tensor, terms: list[float], trains_head: bool) -> dict[str, int]:
    """Ask the kernels how they cut the work.

    Args:
        hidden: [T, K].
        head_weight: [V, K].
        terms: logit_scale, logit_softcap or 0, label_smoothing, z_loss.
        trains_head: whether the head's or the bias' gradient is wanted.

    Returns:
        by_two_passes: whether it takes the pair of operations; kept_rows, workspace_floats and others.
    """
    return C.plan_linear_cross_entropy(
        num_tokens=hidden.shape[0],
        width=hidden.shape[1],
        vocabulary=head_weight.shape[0],
        trains_head=trains_head,
        smooths=terms[2] != 0,
    )


def _workspace(num_floats: int, beside: Tensor) -> Tensor:
    return torch.empty(num_floats, dtype=torch.float32, device=beside.device)


def _contiguous(
    hidden: Tensor, head_weight: Tensor, bias: Tensor | None, targets: Tensor
) -> dict[str, Tensor | None]:
    """The inputs as the kernels take them, and where they run."""
    return {
        "hidden": hidden.contiguous(),
        "head_weight": head_weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "targets": targets.contiguous(),
        **execution(hidden),
    }


def _empty_like_inputs(
    inputs: tuple[Tensor, Tensor, Tensor | None], wanted: list[bool], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of hidden, head_weight and bias; those not wanted have no elements."""
    device = inputs[0].device
    return tuple(
        torch.empty(tensor.shape if wants else 0, dtype=dtype, device=device)
        for tensor, wants in zip(inputs, wanted, strict=True)
    )


def _out_arguments(gradients: tuple[Tensor, Tensor, Tensor], wanted: list[bool]) -> dict[str, Tensor | None]:
    names = ("grad_hidden", "grad_head", "grad_bias")
    return {n: g if w else None for n, g, w in zip(names, gradients, wanted, strict=True)}


# ---- registration with torch: gradients in the forward ---------------------------------------------------

_INPUTS = "Tensor hidden, Tensor head_weight, Tensor? bias, Tensor targets"
_NUMBERS = "int ignore_index, float[] terms"  # logit_scale, logit_softcap or 0, label_smoothing, z_loss
_GRADIENTS = "Tensor grad_hidden, Tensor grad_head, Tensor grad_bias"
_library = Library("pyft", "FRAGMENT")
_library.define(f"linear_cross_entropy({_INPUTS}, {_NUMBERS}, bool[] wanted) -> (Tensor loss, {_GRADIENTS})")


def _empty_gradients(
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    terms: list[float],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = torch.empty((), dtype=torch.float32, device=hidden.device)
    return loss, *_empty_like_inputs((hidden, head_weight, bias), wanted, torch.float32)


def _loss_and_gradients(
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    terms: list[float],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, *gradients = _empty_gradients(hidden, head_weight, bias, targets, ignore_index, terms, wanted)
    plan = plan_on_cpu(hidden, head_weight, terms, any(wanted[1:]))
    C.linear_cross_entropy(
        **_contiguous(hidden, head_weight, bias, targets),
        **_out_arguments(gradients, wanted),
        workspace=_workspace(plan["workspace_floats"], hidden),
        loss=loss,
        ignore_index=ignore_index,
        terms=terms,
    )
    return loss, *gradients


def keep_gradients(ctx, inputs, output) -> None:
    """Keep what the forward gave: loss, dHidden, dHead, dBias. `wanted` is the seventh input."""
    ctx.dtype, ctx.wanted = inputs[0].dtype, inputs[6]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def scale_gradients(ctx, grad_loss: Tensor | None, *_) -> tuple:
    """Multiply the kept gradients with dLoss."""
    if grad_loss is None:
        return (None,) * len(ctx.needs_input_grad)
    needed = zip(ctx.saved_tensors, ctx.wanted, ctx.needs_input_grad[:3], strict=True)
    scaled = [(g * grad_loss).to(ctx.dtype) if wanted and needs else None for g, wanted, needs in needed]
    return (*scaled, *[None] * (len(ctx.needs_input_grad) - 3))


# ---- registration with torch: the loss, later the gradients ----------------------------------------------

_library.define(
    f"linear_cross_entropy_forward({_INPUTS}, {_NUMBERS}, int kept_rows)"
    " -> (Tensor loss, Tensor row_stats, Tensor kept_logits)"
)
_library.define(
    f"linear_cross_entropy_backward(Tensor grad_loss, {_INPUTS}, Tensor row_stats, Tensor kept_logits,"
    f" {_NUMBERS}, bool[] wanted) -> ({_GRADIENTS})"
)


def _empty_kept(
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    terms: list[float],
    kept_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": torch.float32, "device": hidden.device}
    row_stats = torch.empty((hidden.shape[0], 2), **options)
    return torch.empty((), **options), row_stats, torch.empty((kept_rows, head_weight.shape[0]), **options)


def _forward(
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    terms: list[float],
    kept_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:
    loss, row_stats, kept_logits = _empty_kept(
        hidden, head_weight, bias, targets, ignore_index, terms, kept_rows
    )
    C.linear_cross_entropy_forward(
        **_contiguous(hidden, head_weight, bias, targets),
        workspace=_workspace(hidden.numel(), hidden),
        loss=loss,
        row_stats=row_stats,
        kept_logits=kept_logits,
        ignore_index=ignore_index,
        terms=terms,
    )
    return loss, row_stats, kept_logits


def _empty_late_gradients(
    grad_loss: Tensor, hidden: Tensor, head_weight: Tensor, bias: Tensor | None, *rest
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_inputs((hidden, head_weight, bias), rest[-1], hidden.dtype)


def _backward(
    grad_loss: Tensor,
    hidden: Tensor,
    head_weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    row_stats: Tensor,
    kept_logits: Tensor,
    ignore_index: int,
    terms: list[float],
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _empty_late_gradients(grad_loss, hidden, head_weight, bias, wanted)
    num_floats = C.linear_cross_entropy_backward_floats(num_tokens=hidden.shape[0], width=hidden.shape[1])
    C.linear_cross_entropy_backward(
        **_contiguous(hidden, head_weight, bias, targets),
        **_out_arguments(gradients, wanted),
        grad_loss=grad_loss,
        row_stats=row_stats,
        kept_logits=kept_logits,
        workspace=_workspace(num_floats, hidden),
        ignore_index=ignore_index,
        terms=terms,
    )
    return gradients


def _keep_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.ignore_index, ctx.terms, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _late_gradients(ctx, grad_loss: Tensor | None, *_) -> tuple:
    if grad_loss is None:
        return (None,) * 7
    wanted = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.pyft.linear_cross_entropy_backward(
        grad_loss, *ctx.saved_tensors, ctx.ignore_index, ctx.terms, wanted
    )
    return (*[g if w else None for g, w in zip(gradients, wanted, strict=True)], *[None] * 4)


for _name, _run, _fake in (
    ("linear_cross_entropy", _loss_and_gradients, _empty_gradients),
    ("linear_cross_entropy_forward", _forward, _empty_kept),
    ("linear_cross_entropy_backward", _backward, _empty_late_gradients),
):
    _library.impl(_name, _run, "CPU")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::linear_cross_entropy", scale_gradients, setup_context=keep_gradients, lib=_library)
register_autograd(
    "pyft::linear_cross_entropy_forward", _late_gradients, setup_context=_keep_inputs, lib=_library
)
