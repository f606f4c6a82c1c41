"""Rotary position embedding: queries and keys turned by their token's angles, both in one operation.

    h        = R / 2,   the first R of a head's D entries are rotated, the others are copied
    y[i]     = x[i] cos[i] - x[i + h] sin[i]                i < h
    y[i + h] = x[i + h] cos[i + h] + x[i] sin[i + h]

which is x cos + rotate_half(x) sin, as Llama and most others have it. The gradient is the transpose of this,
for the usual tables, whose halves are equal, the rotation by the negative angle. Computed in float32, rounded
once. Kept for the backward: the tables. Left out: pairs of neighbouring entries (GPT-J, Cohere), gradients
to the tables.

Shapes: B rows of T tokens, H query heads, G key heads, D head size, R rotated entries.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.native import C, execution
from pyft.ops.operation import Operation


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys. Differentiable in both.

    Memory may be laid out in any way, as a transposed view of [B, T, H, D] for example; only the D entries of
    a head are copied together first where they do not lie side by side.

    Args:
        q: float32 or bfloat16 [B, H, T, D].
        k: q's dtype [B, G, T, D].
        cos: q's dtype [B, T, R] or [1, T, R]; R is even and at most D.
        sin: like cos.

    Returns:
        q and k rotated, in new memory of the same layout.

    Raises:
        ValueError: for shapes or dtypes that do not fit, or tables that require a gradient; the message names
            the argument.
    """
    for name, table in (("cos", cos), ("sin", sin)):
        if table.requires_grad:
            raise ValueError(f"rotary: {name} requires a gradient; angles do not train")
    return tuple(_ROTARY(Arguments(q, k, cos, sin, transposed=False)))


# ---- what torch knows of it ------------------------------------------------------------------------------


class Arguments(NamedTuple):
    q: Tensor  # [B, H, T, D]
    k: Tensor  # [B, G, T, D]
    cos: Tensor  # [B or 1, T, R]
    sin: Tensor
    transposed: bool  # the gradient's rotation


class Rotated(NamedTuple):
    rotated_q: Tensor
    rotated_k: Tensor


def _entries_together(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def _empty_rotated(arguments: Arguments) -> Rotated:
    return Rotated(*(torch.empty_like(_entries_together(heads)) for heads in (arguments.q, arguments.k)))


def _table(table: Tensor, q: Tensor) -> Tensor:
    table = _entries_together(table)
    if table.dim() == 3 and q.dim() == 4 and table.shape[0] == 1:
        table = table.expand(q.shape[0], -1, -1)
    return table


def _rotary(arguments: Arguments) -> Rotated:
    result = _empty_rotated(arguments)
    C.rotary(
        q=_entries_together(arguments.q),
        k=_entries_together(arguments.k),
        cos=_table(arguments.cos, arguments.q),
        sin=_table(arguments.sin, arguments.q),
        **result._asdict(),
        transposed=arguments.transposed,
        **execution(arguments.q),
    )
    return result


def _gradients(kept: SimpleNamespace, wanted: set[str], grad_q: Tensor, grad_k: Tensor) -> dict[str, Tensor]:
    found = _ROTARY(Arguments(grad_q, grad_k, kept.cos, kept.sin, not kept.transposed))
    return {"q": found.rotated_q, "k": found.rotated_k}


_ROTARY = Operation(
    "rotary",
    Arguments,
    _empty_rotated,
    cpu=_rotary,
    cuda=_rotary,
    gradients=_gradients,
    keeps=("cos", "sin"),
    twice=True,
)
