"""A frozen linear layer with a low-rank addition, in one operation, on a dense or an NF4 base.

    S  = scaling * drop(x) A^T                       [T, R], float32, computed again in the backward
    y  = x W^T + bias + S B^T                        [T, N]
    dS = scaling * dY B
    dX = dY W + drop'(dS A),   dA = dS^T drop(x),   dB = dY^T S

A and B are float32 masters whatever x's dtype; sums are float32, y and dX are rounded once (on CUDA twice,
where the base product and the addition are two kernels). Dropout's mask is a function of a seed and the
position (`pyft.ops.dropout`), computed again where it is needed. Left out: a base weight that trains, DoRA,
several adapters on one layer.

    x ---> lora_linear_node ---> handle ---> lora_linear ---> y
           saves x, A, B; all gradients       saves nothing; hands dY on

The graph has two nodes because of activation checkpointing: recomputing a block, torch stops once all that
the block saved is there again. A product that saves nothing is not computed a second time when it ends its
block, as an MLP's last one does, which is a third of the work. The handle has y's shape and no memory.

Shapes: T tokens (all leading dimensions of x together), K in-features, N out-features, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.lora import ON_CUDA
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
    layer = (x, *weight[:5], *weight[5], lora_A, lora_B, bias, float(scaling), float(dropout), seed)
    return torch.ops.pyft.lora_linear(torch.ops.pyft.lora_linear_node(*layer), *layer)


# ---- registration with torch -----------------------------------------------------------------------------

# `weight` is the dense weight, or the codes of an NF4 one, which then has the four parts behind it.
_BASE = (
    "Tensor weight, Tensor? absmax, Tensor? absmax_codes, Tensor? nested_absmax, Tensor? offset,"
    " int num_rows, int num_columns"
)
_DROP = "float scaling, float dropout, int seed"
_library = Library("pyft", "FRAGMENT")
_LAYER = f"Tensor x, {_BASE}, Tensor lora_A, Tensor lora_B, Tensor? bias, {_DROP}"
_library.define(f"lora_linear_node({_LAYER}) -> Tensor")
_library.define(f"lora_linear(Tensor handle, {_LAYER}) -> Tensor")
_library.define(
    f"lora_linear_backward(Tensor grad_y, Tensor x, {_BASE}, Tensor lora_A, Tensor lora_B,"
    f" {_DROP}, bool wants_x, bool wants_A, bool wants_B) -> (Tensor grad_x, Tensor grad_A, Tensor grad_B)"
)


def _native_base(base: Sequence) -> Tensor | tuple:
    """The seven flat arguments of the base as the native module takes it: dense, or the parts of NF4."""
    if base[0].is_floating_point():
        return base[0].contiguous()
    return nf4_parts(base)


def _node(x: Tensor, *rest) -> Tensor:
    if x.dim() == 0:
        raise ValueError("lora_linear: x has shape [], expected [..., K]")
    return x.new_zeros(()).expand((*x.shape[:-1], rest[5]))


def _empty_output(handle: Tensor, x: Tensor, *rest) -> Tensor:
    return x.new_empty(handle.shape)


def _linear(handle: Tensor, x: Tensor, *rest) -> Tensor:
    base, (lora_A, lora_B, bias, *drop) = rest[:7], rest[7:]
    y = _empty_output(handle, x)
    out = y.view(-1, y.shape[-1]) if y.numel() else matrix(y)
    _multiply(matrix(x), _native_base(base), bias, lora_A, lora_B, out, *drop)
    return y


def _multiply(
    x: Tensor,
    weight: Tensor | tuple,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    y: Tensor,
    scaling: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Fill y; gives the projection S that the addition is made of."""
    projected = x.new_empty((x.shape[0], lora_A.shape[0]), dtype=torch.float32)
    C.lora_linear(
        x=x,
        weight=weight,
        bias=None if bias is None else bias.contiguous(),
        lora_A=lora_A.contiguous(),
        lora_B=lora_B.contiguous(),
        projected=projected,
        y=y,
        scaling=scaling,
        dropout=dropout,
        seed=seed,
        **execution(x),
    )
    return projected


def _project(x: Tensor, lora_A: Tensor, scaling: float, dropout: float, seed: int) -> Tensor:
    """S alone, to the bit: the product of a layer that has no rows."""
    no_rows = x.new_empty((0, x.shape[1])), None, lora_A, lora_A.new_empty((0, lora_A.shape[0]))
    return _multiply(x, *no_rows, x.new_empty((x.shape[0], 0)), scaling, dropout, seed)


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
    base, (lora_A, lora_B, scaling, dropout, seed, *wanted) = rest[:7], rest[7:]
    gradients = _empty_gradients(grad_y, x, *rest)
    outputs = [matrix(g) if w else None for g, w in zip(gradients, wanted, strict=True)]
    rows = matrix(x)
    projected = _project(rows, lora_A, scaling, dropout, seed)
    C.lora_linear_backward(
        grad_y=matrix(grad_y),
        x=rows,
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
    ctx.save_for_backward(*inputs[:6], *inputs[8:10])


def _gradients(ctx, grad_y: Tensor) -> tuple:
    x, *base, lora_A, lora_B = ctx.saved_tensors
    shape, drop = ctx.numbers
    wanted = [ctx.needs_input_grad[i] for i in (0, 8, 9)]
    found: list[Tensor | None] = [None] * 3
    if any(wanted):
        results = torch.ops.pyft.lora_linear_backward(
            grad_y, x, *base, *shape, lora_A, lora_B, *drop, *wanted
        )
        found = [result if want else None for result, want in zip(results, wanted, strict=True)]
    grad_bias = grad_y.sum(dim=tuple(range(grad_y.dim() - 1))) if ctx.needs_input_grad[10] else None
    return (found[0], *[None] * 7, found[1], found[2], grad_bias, *[None] * 3)


def _keep_nothing(ctx, inputs, output) -> None:
    """All that the backward needs is in the node."""


def _hand_on(ctx, grad_y: Tensor) -> tuple:
    return (grad_y, *[None] * 14)


for _name, _run, _fake in (
    ("lora_linear_node", _node, _node),
    ("lora_linear", _linear, _empty_output),
    ("lora_linear_backward", _linear_backward, _empty_gradients),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, ON_CUDA.get(_name, _run), "CUDA")
    register_fake(f"pyft::{_name}", _fake, lib=_library)
register_autograd("pyft::lora_linear_node", _gradients, setup_context=_keep, lib=_library)
register_autograd("pyft::lora_linear", _hand_on, setup_context=_keep_nothing, lib=_library)
