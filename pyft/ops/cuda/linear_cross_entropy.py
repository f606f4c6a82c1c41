"""Cross-entropy from hidden states on a GPU: torch's matrix products, and kernels that turn them in place.

    rows                  the counted rows first, in order (counted_rows)
    for each chunk of rows:
        x = hidden[rows]                                                gather_rows
        panels:   for each panel of the head:
                      products = x W^T                                  float32
                      weights, A *= ..   of the products                linear_cross_entropy_panel
                      A += weights W
                  losses, dHidden[rows] = a A + b W[y]                  linear_cross_entropy_finish
        chunks:   products = x W^T                                      float32
                  losses, dX in the products' place                     linear_cross_entropy_chunk
                  dHidden[rows] = dX W,  dW += dX^T x,  dBias += sum dX
    loss = sum of the losses, in float64

`linear_cross_entropy_plan` says which, csrc/cuda/linear_cross_entropy_*.cu have the formulas. With a known
number of targets only so many rows are worked on. Without it, all T: the unused ones are zeros in `x`, and
nothing of them is read. Nothing waits for the GPU either way.

Shapes: T tokens, R rows worked on, K hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.cuda.linear_cross_entropy_plan import Plan, plan_linear_cross_entropy
from pyft.ops.cuda.matmul import multiply
from pyft.ops.native import C, Execution, execution
from pyft.ops.signatures import LinearCrossEntropyArguments


class _Call(NamedTuple):
    """Inputs, contiguous; outputs, those not wanted None; numbers for the kernels."""

    plan: Plan
    hidden: Tensor
    head_weight: Tensor
    bias: Tensor | None
    rows: Tensor
    row_targets: Tensor
    row_losses: Tensor
    grad_hidden: Tensor | None
    grad_head: Tensor | None
    grad_bias: Tensor | None
    numbers: dict[str, int | list[float]]
    where: Execution


def loss_and_gradients_on_cuda(
    arguments: LinearCrossEntropyArguments,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradients; what `pyft.ops.linear_cross_entropy` registers for CUDA."""
    hidden, head_weight = arguments.hidden.contiguous(), arguments.head_weight.contiguous()
    bias = None if arguments.bias is None else arguments.bias.contiguous()
    targets, num_targets, wanted = arguments.targets.contiguous(), arguments.num_targets, arguments.wanted
    C.check_linear_cross_entropy(
        hidden=hidden, head_weight=head_weight, bias=bias, targets=targets, terms=arguments.terms
    )
    num_rows = targets.shape[0] if num_targets is None else num_targets
    plan = plan_linear_cross_entropy(
        num_rows,
        *reversed(head_weight.shape),
        hidden.dtype,
        wanted=wanted,
        smooths=arguments.terms[2] != 0,
    )
    rows, row_targets = (targets.new_empty(num_rows) for _ in range(2))
    row_losses = hidden.new_empty(num_rows + 1, dtype=torch.float32)  # the last: counted_rows' verdict
    where = execution(hidden)
    C.counted_rows(
        targets=targets,
        rows=rows,
        row_targets=row_targets,
        verdict=row_losses[num_rows:],
        ignore_index=arguments.ignore_index,
        is_exact=num_targets is not None,
        **where,
    )
    gradients = _empty_gradients(hidden, head_weight, bias, wanted, plan)
    call = _Call(
        plan,
        hidden,
        head_weight,
        bias,
        rows,
        row_targets,
        row_losses[:num_rows],
        *(g if w else None for g, w in zip(gradients, wanted, strict=True)),
        {"ignore_index": arguments.ignore_index, "terms": arguments.terms},
        where,
    )
    (_run_panels if plan.by_panels else _run_chunks)(call)
    return row_losses.sum(dtype=torch.float64).float(), *gradients


def _empty_gradients(
    hidden: Tensor, head_weight: Tensor, bias: Tensor | None, wanted: list[bool], plan: Plan
) -> list[Tensor]:
    """Float32 for hidden, the head's dtype for the others: a head's gradient in float32 would be the largest
    tensor of a step. Rows of hidden that are not worked on stay zero; so do all where there is no chunk."""
    make = torch.empty if plan.num_rows else torch.zeros
    device = hidden.device
    return [
        torch.zeros(hidden.shape if wanted[0] else 0, dtype=torch.float32, device=device),
        make(head_weight.shape if wanted[1] else 0, dtype=hidden.dtype, device=device),
        make(bias.shape if wanted[2] else 0, dtype=hidden.dtype, device=device),
    ]


def _gathered(call: _Call, begin: int, end: int) -> Tensor:
    out = call.hidden.new_empty((end - begin, call.hidden.shape[1]))
    C.gather_rows(source=call.hidden, rows=call.rows[begin:end], to=out, **call.where)
    return out


def _products(call: _Call) -> Tensor:
    plan = call.plan
    return call.hidden.new_empty((plan.chunk_rows, plan.row_stride), dtype=torch.float32)


def _in_place(products: Tensor, dtype: torch.dtype, num_columns: int) -> Tensor:
    """The first `num_columns` of each row in the memory of `products`, as entries of another dtype."""
    return products.view(dtype)[:, :num_columns]


def _run_panels(call: _Call) -> None:
    plan, head = call.plan, call.head_weight
    products = _products(call)
    for begin, end in plan.chunks:
        x = _gathered(call, begin, end)
        row_stats = products.new_empty((end - begin, 4))
        sums = None if call.grad_hidden is None else products.new_empty(x.shape)
        row_targets = call.row_targets[begin:end]
        for first, last in plan.panels(head.shape[0]):
            here, weights = products[: end - begin], None
            multiply(x, head[first:last].T, here[:, : last - first])
            if sums is not None:
                weights = _in_place(here, head.dtype, last - first)
            C.linear_cross_entropy_panel(
                products=here[:, : last - first],
                weights=weights,
                bias=None if call.bias is None else call.bias[first:last],
                row_targets=row_targets,
                row_stats=row_stats,
                sums=sums,
                first_id=first,
                **call.numbers,
                **call.where,
            )
            if sums is not None:
                multiply(weights, head[first:last], sums, accumulate=first > 0)
        C.linear_cross_entropy_finish(
            row_stats=row_stats,
            row_targets=row_targets,
            rows=call.rows[begin:end],
            head_weight=head,
            sums=sums,
            row_losses=call.row_losses[begin:end],
            grad_hidden=call.grad_hidden,
            **call.numbers,
            **call.where,
        )


def _run_chunks(call: _Call) -> None:
    plan, head = call.plan, call.head_weight
    products = _products(call)
    head_sum, bias_sum = call.grad_head, None
    if plan.sums_head:
        head_sum = products.new_empty(head.shape)
    for begin, end in plan.chunks:
        x = _gathered(call, begin, end)
        here = products[: end - begin]
        multiply(x, head.T, here[:, : head.shape[0]])
        gradient = _in_place(here, head.dtype, head.shape[0])
        C.linear_cross_entropy_chunk(
            products=here[:, : head.shape[0]],
            gradient=gradient,
            bias=call.bias,
            row_targets=call.row_targets[begin:end],
            row_losses=call.row_losses[begin:end],
            **call.numbers,
            **call.where,
        )
        if call.grad_hidden is not None:
            grad_x = products.new_empty(x.shape)
            multiply(gradient, head, grad_x)
            C.scatter_rows(source=grad_x, rows=call.rows[begin:end], to=call.grad_hidden, **call.where)
        if head_sum is not None:
            multiply(gradient.T, x, head_sum, accumulate=begin > 0)
        if call.grad_bias is not None:
            part = gradient.sum(dim=0, dtype=torch.float32)
            bias_sum = part if bias_sum is None else bias_sum.add_(part)
    if plan.sums_head and plan.num_rows:
        call.grad_head.copy_(head_sum)
    if bias_sum is not None:
        call.grad_bias.copy_(bias_sum)
