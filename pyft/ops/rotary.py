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

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.native import C, execution


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
    return torch.ops.pyft.rotary(q, k, cos, sin, False)


# ---- registration with torch -----------------------------------------------------------------------------

_library = Library("pyft", "FRAGMENT")
_library.define(
    "rotary(Tensor q, Tensor k, Tensor cos, Tensor sin, bool transposed)"
    " -> (Tensor rotated_q, Tensor rotated_k)"
)


def _entries_together(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def _empty_output(q: Tensor, k: Tensor, *_) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_entries_together(q)), torch.empty_like(_entries_together(k))


def _table(table: Tensor, q: Tensor) -> Tensor:
    table = _entries_together(table)
    if table.dim() == 3 and q.dim() == 4 and table.shape[0] == 1:
        table = table.expand(q.shape[0], -1, -1)
    return table


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    q, k = _entries_together(q), _entries_together(k)
    rotated_q, rotated_k = _empty_output(q, k)
    C.rotary(
        q=q,
        k=k,
        cos=_table(cos, q),
        sin=_table(sin, q),
        rotated_q=rotated_q,
        rotated_k=rotated_k,
        transposed=transposed,
        **execution(q),
    )
    return rotated_q, rotated_k


def _keep(ctx, inputs, output) -> None:
    ctx.transposed = inputs[4]
    ctx.save_for_backward(*inputs[2:4])


def _gradients(ctx, grad_q: Tensor, grad_k: Tensor) -> tuple:
    return (*torch.ops.pyft.rotary(grad_q, grad_k, *ctx.saved_tensors, not ctx.transposed), None, None, None)


_library.impl("rotary", _rotary, "CPU")
_library.impl("rotary", _rotary, "CUDA")
register_fake("pyft::rotary", _empty_output, lib=_library)
register_autograd("pyft::rotary", _gradients, setup_context=_keep, lib=_library)
