"""linear_cross_entropy on the CPU in two passes: the loss, and later the gradients, each written once.

    linear_cross_entropy_forward     the loss, what each row's softmax needs, and logits of up to K rows
    linear_cross_entropy_backward    logits that were kept, others computed again; the gradients

For a large vocabulary whose head trains: its gradient in float32 would be the largest tensor of the step. And
for one with label smoothing; a frozen head then keeps no logits.

Shapes: T tokens, K hidden size, V vocabulary, R rows whose logits are kept.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyft.ops.native import C, execution
from pyft.ops.operation import Operation


class ForwardArguments(NamedTuple):
    """What the first pass takes."""

    hidden: Tensor  # [T, K]
    head_weight: Tensor  # [V, K]
    bias: Tensor | None  # [V]
    targets: Tensor  # int64 [T]
    ignore_index: int
    terms: list[float]  # logit_scale, logit_softcap or 0, label_smoothing, z_loss
    kept_rows: int  # R


class Kept(NamedTuple):
    """What the first pass gives."""

    loss: Tensor  # float32 scalar
    row_stats: Tensor  # float32 [T, 2]
    kept_logits: Tensor  # float32 [R, V]


class BackwardArguments(NamedTuple):
    """What the second pass takes."""

    grad_loss: Tensor
    hidden: Tensor
    head_weight: Tensor
    bias: Tensor | None
    targets: Tensor
    row_stats: Tensor
    kept_logits: Tensor
    ignore_index: int
    terms: list[float]
    wanted: list[bool]  # the gradients of hidden, head_weight and bias


class Gradients(NamedTuple):
    """What the second pass gives; those not wanted have no elements."""

    grad_hidden: Tensor
    grad_head: Tensor
    grad_bias: Tensor


def empty_gradients(arguments: Any, *dtypes: torch.dtype) -> Gradients:
    """Allocate the gradients of `hidden`, `head_weight` and `bias`, those that `wanted` says."""
    tensors = zip(
        (arguments.hidden, arguments.head_weight, arguments.bias), arguments.wanted, dtypes, strict=True
    )
    return Gradients(*(arguments.hidden.new_empty(t.shape if w else 0, dtype=d) for t, w, d in tensors))


def native_arguments(arguments: Any, gradients: Gradients | None = None) -> dict[str, Any]:
    """What the native functions take alike: inputs, the gradients that are wanted, where it runs."""
    made: dict[str, Any] = {
        "hidden": arguments.hidden.contiguous(),
        "head_weight": arguments.head_weight.contiguous(),
        "bias": None if arguments.bias is None else arguments.bias.contiguous(),
        "targets": arguments.targets.contiguous(),
        "ignore_index": arguments.ignore_index,
        "terms": arguments.terms,
        **execution(arguments.hidden),
    }
    if gradients is not None:
        outputs = zip(Gradients._fields, gradients, arguments.wanted, strict=True)
        made |= {name: tensor if wants else None for name, tensor, wants in outputs}
    return made


def workspace(num_floats: int, beside: Tensor) -> Tensor:
    """Memory for a call, on the device of `beside`."""
    return beside.new_empty(num_floats, dtype=torch.float32)


def _empty_kept(arguments: ForwardArguments) -> Kept:
    options = {"dtype": torch.float32, "device": arguments.hidden.device}
    num_tokens, vocabulary = arguments.hidden.shape[0], arguments.head_weight.shape[0]
    return Kept(
        torch.empty((), **options),
        torch.empty((num_tokens, 2), **options),
        torch.empty((arguments.kept_rows, vocabulary), **options),
    )


def _forward(arguments: ForwardArguments) -> Kept:
    kept, hidden = _empty_kept(arguments), arguments.hidden
    C.linear_cross_entropy_forward(
        **native_arguments(arguments), **kept._asdict(), workspace=workspace(hidden.numel(), hidden)
    )
    return kept


def _empty_late_gradients(arguments: BackwardArguments) -> Gradients:
    return empty_gradients(arguments, *[arguments.hidden.dtype] * 3)


def _backward(arguments: BackwardArguments) -> Gradients:
    gradients, hidden = _empty_late_gradients(arguments), arguments.hidden
    num_floats = C.linear_cross_entropy_backward_floats(num_tokens=hidden.shape[0], width=hidden.shape[1])
    C.linear_cross_entropy_backward(
        **native_arguments(arguments, gradients),
        grad_loss=arguments.grad_loss,
        row_stats=arguments.row_stats,
        kept_logits=arguments.kept_logits,
        workspace=workspace(num_floats, hidden),
    )
    return gradients


def _late_gradients(kept: SimpleNamespace, wanted: set[str], grad_loss: Tensor) -> dict[str, Tensor]:
    found = LINEAR_CROSS_ENTROPY_BACKWARD(
        BackwardArguments(
            grad_loss=grad_loss,
            hidden=kept.hidden,
            head_weight=kept.head_weight,
            bias=kept.bias,
            targets=kept.targets,
            row_stats=kept.row_stats,
            kept_logits=kept.kept_logits,
            ignore_index=kept.ignore_index,
            terms=kept.terms,
            wanted=[name in wanted for name in ("hidden", "head_weight", "bias")],
        )
    )
    return {"hidden": found.grad_hidden, "head_weight": found.grad_head, "bias": found.grad_bias}


LINEAR_CROSS_ENTROPY_BACKWARD = Operation(
    "linear_cross_entropy_backward", BackwardArguments, _empty_late_gradients, cpu=_backward
)
LINEAR_CROSS_ENTROPY_FORWARD = Operation(
    "linear_cross_entropy_forward",
    ForwardArguments,
    _empty_kept,
    cpu=_forward,
    gradients=_late_gradients,
    keeps=("hidden", "head_weight", "bias", "targets", "row_stats", "kept_logits"),
)
