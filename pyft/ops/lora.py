"""A frozen linear layer with a low-rank addition, in one operation, on a dense or an NF4 base.

    S  = scaling * drop(x) A^T                       [T, R], float32, kept for the backward
    y  = x W^T + bias + S B^T                        [T, N]
    dS = scaling * dY B
    dX = dY W + drop'(dS A),   dA = dS^T drop(x),   dB = dY^T S

A and B are float32 masters whatever x's dtype; sums are float32, y and dX are rounded once. Dropout's mask is
a function of a seed and the position (`pyft.ops.dropout`), computed again where it is needed. Left out: a
base weight that trains, DoRA, several adapters on one layer.

Shapes: T tokens (all leading dimensions of x together), K in-features, N out-features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.dropout import draw_seed
from pyft.ops.native import C, execution
from pyft.ops.nf4 import NF4Weight


def lora_linear(
    x: Tensor,
    weight: Tensor | NF4Weight,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer plus adapter: y = x W^T + bias + scaling * drop(x) A^T B^T.

    Differentiable in x, lora_A, lora_B and bias. With dropout, one number is drawn from torch's default CPU
    generator as the seed of the mask, so the generator's state decides the mask: a resumed run and a
    recomputed checkpoint see the same one.

    Args:
        x: float32 or bfloat16 [..., K].
        weight: [N, K], frozen; float32, bfloat16 or NF4.
        lora_A: float32 [R, K].
        lora_B: float32 [N, R].
        scaling: factor of the addition, alpha / R.
        dropout: probability that an entry of x is dropped on its way to lora_A; 0.0 outside training.
        bias: x's dtype [N], or None.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: for shapes, dtypes or a probability that do not fit; the message names the argument.
    """
    if isinstance(weight, Tensor):
        if weight.requires_grad:
            raise ValueError("lora_linear: weight requires a gradient; the base of an adapter is frozen")
        if weight.dim() != 2:
            raise ValueError(f"lora_linear: weight has shape {list(weight.shape)}, expected [N, K]")
        weight = (weight, None, None, None, None, (weight.shape[0], weight.shape[1]))
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"lora_linear: dropout is {dropout}, expected 0 <= dropout < 1")
    seed = draw_seed() if dropout > 0.0 else 0
    y, _ = torch.ops.pyft.lora_linear(
        x, *weight[:5], *weight[5], lora_A, lora_B, bias, float(scaling), float(dropout), seed
    )
    return y


# ---- registration with torch -----------------------------------------------------------------------------

# `weight` is the dense weight, or the codes of an NF4 one, which then has the four parts behind it.
_BASE = (
    "Tensor weight, Tensor? absmax, Tensor? absmax_codes, Tensor? nested_absmax, Tensor? offset,"
    " int num_rows, int num_columns"
)
_DROP = "float scaling, float dropout, int seed"
_library = Library("pyft", "FRAGMENT")
_library.define(
    f"lora_linear(Tensor x, {_BASE}, Tensor lora_A, Tensor lora_B, Tensor? bias, {_DROP})"
    " -> (Tensor y, Tensor projected)"
)
_library.define(
    f"lora_linear_backward(Tensor grad_y, Tensor x, {_BASE}, Tensor lora_A, Tensor lora_B, Tensor projected,"
    f" {_DROP}, bool wants_x, bool wants_A, bool wants_B) -> (Tensor grad_x, Tensor grad_A, Tensor grad_B)"
)


def _native_base(base: Sequence) -> Tensor | tuple:
    """The seven flat arguments of the base as the native module takes it: dense, or the parts of NF4."""
    if base[0].is_floating_point():
        return base[0].contiguous()
    return (*(None if part is None else part.contiguous() for part in base[:5]), (base[5], base[6]))


def _matrix(tensor: Tensor) -> Tensor:
    """All leading dimensions as one: [..., F] to a contiguous [T, F]."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1]).contiguous()


def _empty_outputs(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    num_rows, lora_A = rest[5], rest[7]
    y = x.new_empty((*x.shape[:-1], num_rows))
    return y, x.new_empty((x.shape[:-1].numel(), lora_A.shape[0]), dtype=torch.float32)


def _linear(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    base, (lora_A, lora_B, bias, scaling, dropout, seed) = rest[:7], rest[7:]
    if x.dim() == 0:
        raise ValueError("lora_linear: x has shape [], expected [..., K]")
    y, projected = _empty_outputs(x, *rest)
    C.lora_linear(
        x=_matrix(x),
        weight=_native_base(base),
        bias=None if bias is None else bias.contiguous(),
        lora_A=lora_A.contiguous(),
        lora_B=lora_B.contiguous(),
        projected=projected,
        y=y.view(-1, y.shape[-1]) if y.numel() else _matrix(y),
        scaling=scaling,
        dropout=dropout,
        seed=seed,
        **execution(x),
    )
    return y, projected


def _empty_gradients(grad_y: Tensor, x: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, A and B; those that are not wanted have no elements."""
    lora_A, lora_B = rest[7:9]
    wants_x, wants_A, wants_B = rest[-3:]
    return (
        torch.empty(x.shape if wants_x else 0, dtype=x.dtype, device=x.device),
        torch.empty(lora_A.shape if wants_A else 0, dtype=torch.float32, device=x.device),
        torch.empty(lora_B.shape if wants_B else 0, dtype=torch.float32, device=x.device),
    )


def _linear_backward(grad_y: Tensor, x: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    base, (lora_A, lora_B, projected, scaling, dropout, seed, *wanted) = rest[:7], rest[7:]
    gradients = _empty_gradients(grad_y, x, *rest)
    outputs = [_matrix(g) if w else None for g, w in zip(gradients, wanted, strict=True)]
    C.lora_linear_backward(
        grad_y=_matrix(grad_y),
        x=_matrix(x),
        weight=_native_base(base),
        lora_A=lora_A.contiguous(),
        lora_B=lora_B.contiguous(),
        projected=projected,
        grad_projected=torch.empty_like(projected),
        grad_x=outputs[0],
        grad_A=outputs[1],
        grad_B=outputs[2],
        scaling=scaling,
        dropout=dropout,
        seed=seed,
        **execution(x),
    )
    return gradients


def _keep(ctx, inputs, output) -> None:
    ctx.numbers = inputs[6:8], inputs[11:14]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *inputs[8:10], output[1])


def _gradients(ctx, grad_y: Tensor | None, _grad_projected: None) -> tuple:
    if grad_y is None:
        return (None,) * 14
    x, *base, lora_A, lora_B, projected = ctx.saved_tensors
    shape, drop = ctx.numbers
    wanted = [ctx.needs_input_grad[i] for i in (0, 8, 9)]
    found: list[Tensor | None] = [None] * 3
    if any(wanted):
        results = torch.ops.pyft.lora_linear_backward(
            grad_y, x, *base, *shape, lora_A, lora_B, projected, *drop, *wanted
        )
        found = [result if want else None for result, want in zip(results, wanted, strict=True)]
    grad_bias = grad_y.sum(dim=tuple(range(grad_y.dim() - 1))) if ctx.needs_input_grad[10] else None
    return (found[0], *[None] * 7, found[1], found[2], grad_bias, *[None] * 3)


for _name, _run, _fake in (
    ("lora_linear", _linear, _empty_outputs),
    ("lora_linear_backward", _linear_backward, _empty_gradients),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::lora_linear", _gradients, setup_context=_keep, lib=_library)
