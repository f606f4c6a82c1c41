"""A frozen linear layer with a low-rank addition on a GPU: kernels for the addition, around the base product.

    forward     S = scaling * drop(x) A^T           reads x
                y = S B^T + bias                    written once,
                y += x W^T                          then the base product accumulates onto it

    backward    S                                   once more, where dB is wanted: reads 2 T K bytes of x
                dS = scaling * dY B, dB = dY^T S    one pass over dY
                dA = dS^T drop(x)                   reads x
                dX = drop'(dS A), dX += dY W

The base product is torch's on a dense weight and panel by panel on an NF4 one (`nf4_dequantized`). With few
tokens NF4 has a kernel that writes its result (`nf4_few_tokens`) and takes the addition along; where that is
not for the rank, or dX has entries dropped, it is added afterwards. Dropout's mask is computed from
its seed wherever it is needed. Each sum is cut into parts by the shape alone (`C.plan_lora`), which go to a
workspace and are added in order: always the same bits. Where the addition has kernels of its own, A and B
count with all their 24 bits (csrc/cuda/device/split_float.h).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.nf4_dequantized import backward_dequantized, linear_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, is_aligned, linear_few_tokens, takes_few_tokens
from pyft.ops.native import C, execution


def _base(base: Sequence, x: Tensor) -> Tensor | tuple:
    """The seven flat arguments as one weight: dense in x's dtype, or the parts of NF4."""
    return base[0].to(x.dtype).contiguous() if base[0].is_floating_point() else nf4_parts(base)


def _takes_few_tokens(rows: Tensor, weight: Tensor | tuple, *, is_backward: bool) -> bool:
    """Whether one kernel takes the base product."""
    if isinstance(weight, Tensor):
        return False
    aligned = is_aligned(rows, weight)
    return takes_few_tokens(
        rows.dtype, rows.shape[0], *weight[5], is_backward=is_backward, is_aligned=aligned
    )


def _is_taken_along(narrow: Tensor, matrix: Tensor, rank: int) -> bool:
    """Whether that kernel takes the addition too."""
    return rank % 4 == 0 and rank <= 64 and narrow.data_ptr() % 16 == 0 and matrix.data_ptr() % 16 == 0


def _workspace(num_parts: int, result: Tensor | None) -> Tensor | None:
    """Memory for the parts of a sum, None where it has one part or is not wanted."""
    if num_parts == 1 or result is None:
        return None
    return torch.empty((num_parts, *result.shape), dtype=torch.float32, device=result.device)


def _plan(wide: Tensor, rank: int) -> dict[str, int]:
    return C.plan_lora(num_tokens=wide.shape[0], num_columns=wide.shape[1], rank=rank)


def _narrow(wide: Tensor, rank: int) -> Tensor:
    return torch.empty((wide.shape[0], rank), dtype=torch.float32, device=wide.device)


def _project(x: Tensor, lora_A: Tensor, scaling: float, dropout: float, seed: int) -> Tensor:
    projected = _narrow(x, lora_A.shape[0])
    C.lora_project(
        x=x,
        lora_A=lora_A,
        projected=projected,
        workspace=_workspace(_plan(x, lora_A.shape[0])["project_parts"], projected),
        scaling=scaling,
        dropout=dropout,
        seed=seed,
        **execution(x),
    )
    return projected


def _linear(handle: Tensor, x: Tensor, *rest) -> Tensor:
    base, (lora_A, lora_B, bias, scaling, dropout, seed) = rest[:7], rest[7:]
    rows, weight = matrix(x), _base(base, x)
    lora_A, lora_B = lora_A.contiguous(), lora_B.contiguous()
    bias = None if bias is None else bias.contiguous()
    C.check_lora_linear(x=rows, weight=weight, bias=bias, lora_A=lora_A, lora_B=lora_B, dropout=dropout)
    projected = _project(rows, lora_A, scaling, dropout, seed)
    add = {"projected": projected, "lora_B": lora_B, **execution(x)}
    y = x.new_empty(handle.shape)
    out = matrix(y)
    if _takes_few_tokens(rows, weight, is_backward=False):
        if _is_taken_along(projected, lora_B, lora_A.shape[0]):
            linear_few_tokens(rows, weight, out, bias=bias, projected=projected, lora_B=lora_B)
        else:
            linear_few_tokens(rows, weight, out, bias=bias)
            C.lora_expand(y=out, bias=None, accumulate=True, **add)
        return y
    C.lora_expand(y=out, bias=bias, accumulate=False, **add)
    if isinstance(weight, Tensor):
        out.addmm_(rows, weight.T)
    else:
        linear_dequantized(rows, weight, out, accumulate=True)
    return y


def _grad_B(
    grad_y: Tensor, lora_B: Tensor, projected: Tensor | None, grad_projected: Tensor | None, scaling: float
) -> Tensor | None:
    """Fill dS where there is a tensor for it; dB where S is given."""
    plan = _plan(grad_y, lora_B.shape[1])
    grad_B = None if projected is None else torch.empty_like(lora_B)
    row_parts = plan["project_parts" if grad_B is None else "row_parts"]
    C.lora_grad(
        grad_y=grad_y,
        lora_B=lora_B,
        projected=projected,
        grad_projected=grad_projected,
        grad_B=grad_B,
        row_workspace=_workspace(row_parts, grad_projected),
        column_workspace=_workspace(plan["column_parts"], grad_B),
        scaling=scaling,
        **execution(grad_y),
    )
    return grad_B


def _grad_A(x: Tensor, grad_projected: Tensor, dropout: float, seed: int) -> Tensor:
    rank = grad_projected.shape[1]
    grad_A = torch.empty((rank, x.shape[1]), dtype=torch.float32, device=x.device)
    C.lora_grad_A(
        x=x,
        grad_projected=grad_projected,
        grad_A=grad_A,
        workspace=_workspace(_plan(x, rank)["column_parts"], grad_A),
        dropout=dropout,
        seed=seed,
        **execution(x),
    )
    return grad_A


def _grad_x(
    grad_y: Tensor, base: Sequence, grad_projected: Tensor, lora_A: Tensor, dropout: float, seed: int
) -> Tensor:
    weight = _base(base, grad_y)
    add = {"grad_projected": grad_projected, "lora_A": lora_A, "dropout": dropout, "seed": seed}
    add |= execution(grad_y)
    grad_x = grad_y.new_empty((grad_y.shape[0], lora_A.shape[1]))
    if _takes_few_tokens(grad_y, weight, is_backward=True):
        if dropout == 0.0 and _is_taken_along(grad_projected, lora_A, lora_A.shape[0]):
            backward_few_tokens(grad_y, weight, grad_x, grad_projected=grad_projected, lora_A=lora_A)
        else:
            backward_few_tokens(grad_y, weight, grad_x)
            C.lora_expand_backward(grad_x=grad_x, accumulate=True, **add)
        return grad_x
    C.lora_expand_backward(grad_x=grad_x, accumulate=False, **add)
    if isinstance(weight, Tensor):
        grad_x.addmm_(grad_y, weight)
    else:
        backward_dequantized(grad_y, weight, grad_x, accumulate=True)
    return grad_x


def _linear_backward(grad_y: Tensor, x: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, A and B; those that are not wanted have no elements."""
    base, (lora_A, lora_B, scaling, dropout, seed, wants_x, wants_A, wants_B) = rest[:7], rest[7:]
    rows, grad_rows = matrix(x), matrix(grad_y)
    lora_A, lora_B = lora_A.contiguous(), lora_B.contiguous()
    projected = _project(rows, lora_A, scaling, dropout, seed) if wants_B else None
    grad_projected = _narrow(rows, lora_A.shape[0]) if wants_x or wants_A else None
    grad_B = _grad_B(grad_rows, lora_B, projected, grad_projected, scaling)
    nothing = lora_A.new_empty(0)
    return (
        _grad_x(grad_rows, base, grad_projected, lora_A, dropout, seed).view(x.shape)
        if wants_x
        else x.new_empty(0),
        _grad_A(rows, grad_projected, dropout, seed) if wants_A else nothing,
        nothing.clone() if grad_B is None else grad_B,
    )


ON_CUDA: dict[str, Callable] = {"lora_linear": _linear, "lora_linear_backward": _linear_backward}
