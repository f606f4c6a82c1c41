"""A frozen linear layer with a low-rank addition, in one operation, on a dense or an NF4 base.

    S  = scaling * drop(x) A^T                       [T, R], float32, computed again in the backward
    y  = x W^T + bias + S B^T                        [T, N]
    dS = scaling * dY B
    dX = dY W + drop'(dS A),   dA = dS^T drop(x),   dB = dY^T S

A and B are float32 masters whatever x's dtype; sums are float32, y and dX are rounded once (on CUDA twice,
where the base product and the addition are two kernels). Dropout's mask is a function of a seed and the
position (`pyft.ops.dropout`), computed again where it is needed. Left out: a base weight that trains, DoRA,
several adapters on one layer.

Shapes: T tokens (all leading dimensions of x together), K in-features, N out-features, R rank.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.arguments import lora_base, matrix
from pyft.ops.cuda.lora import linear_backward_on_cuda, linear_on_cuda
from pyft.ops.dropout import draw_seed
from pyft.ops.native import C, execution
from pyft.ops.nf4 import NF4Weight
from pyft.ops.operation import Operation
from pyft.ops.signatures import LoraArguments, LoraBackwardArguments


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
    shape = weight.shape
    if x.dim() == 0:
        raise ValueError("lora_linear: x has shape [], expected [..., K]")
    if isinstance(weight, Tensor):
        if weight.requires_grad:
            raise ValueError("lora_linear: weight requires a gradient; the base of an adapter is frozen")
        if weight.dim() != 2:
            raise ValueError(f"lora_linear: weight has shape {list(shape)}, expected [N, K]")
    parts = [weight] if isinstance(weight, Tensor) else weight.parts
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"lora_linear: dropout is {dropout}, expected 0 <= dropout < 1")
    seed = draw_seed() if dropout > 0.0 else 0
    return _LORA_LINEAR(
        LoraArguments(x, parts, shape, lora_A, lora_B, bias, float(scaling), float(dropout), seed)
    )


# ---- what torch knows of it ------------------------------------------------------------------------------


class Gradients(NamedTuple):
    grad_x: Tensor  # those not wanted have no elements
    grad_A: Tensor
    grad_B: Tensor


def _handle(arguments: LoraArguments) -> Tensor:
    return arguments.x.new_zeros(()).expand((*arguments.x.shape[:-1], arguments.shape[0]))


def _empty_y(arguments: LoraArguments) -> Tensor:
    return arguments.x.new_empty((*arguments.x.shape[:-1], arguments.shape[0]))


def _lora(arguments: LoraArguments) -> Tensor:
    y, rows = _empty_y(arguments), matrix(arguments.x)
    C.lora_linear(
        x=rows,
        weight=lora_base(arguments.weight, arguments.shape),
        bias=None if arguments.bias is None else arguments.bias.contiguous(),
        lora_A=arguments.lora_A.contiguous(),
        lora_B=arguments.lora_B.contiguous(),
        projected=rows.new_empty((rows.shape[0], arguments.lora_A.shape[0]), dtype=torch.float32),
        y=matrix(y),
        scaling=arguments.scaling,
        dropout=arguments.dropout,
        seed=arguments.seed,
        **execution(y),
    )
    return y


def _empty_gradients(arguments: LoraBackwardArguments) -> Gradients:
    x, lora_A, lora_B = arguments.x, arguments.lora_A, arguments.lora_B
    wants_x, wants_A, wants_B = arguments.wanted
    return Gradients(
        x.new_empty(x.shape if wants_x else 0),
        lora_A.new_empty(lora_A.shape if wants_A else 0),
        lora_B.new_empty(lora_B.shape if wants_B else 0),
    )


def _lora_backward(arguments: LoraBackwardArguments) -> Gradients:
    gradients, rows = _empty_gradients(arguments), matrix(arguments.x)
    wants_x, wants_A, wants_B = arguments.wanted
    narrow = (rows.shape[0], arguments.lora_A.shape[0])
    C.lora_linear_backward(
        grad_y=matrix(arguments.grad_y),
        x=rows,
        weight=lora_base(arguments.weight, arguments.shape),
        lora_A=arguments.lora_A.contiguous(),
        lora_B=arguments.lora_B.contiguous(),
        projected=rows.new_empty(narrow, dtype=torch.float32),
        grad_projected=rows.new_empty(narrow, dtype=torch.float32),
        grad_x=matrix(gradients.grad_x) if wants_x else None,
        grad_A=gradients.grad_A if wants_A else None,
        grad_B=gradients.grad_B if wants_B else None,
        scaling=arguments.scaling,
        dropout=arguments.dropout,
        seed=arguments.seed,
        **execution(rows),
    )
    return gradients


def _lora_gradients(kept: SimpleNamespace, wanted: set[str], grad_y: Tensor) -> dict[str, Tensor]:
    found, wants = {}, [name in wanted for name in ("x", "lora_A", "lora_B")]
    if any(wants):
        results = _LORA_LINEAR_BACKWARD(LoraBackwardArguments(grad_y=grad_y, wanted=wants, **vars(kept)))
        found = {"x": results.grad_x, "lora_A": results.grad_A, "lora_B": results.grad_B}
    if "bias" in wanted:
        found["bias"] = grad_y.sum(dim=tuple(range(grad_y.dim() - 1)))
    return found


_LORA_LINEAR_BACKWARD = Operation(
    "lora_linear_backward",
    LoraBackwardArguments,
    _empty_gradients,
    cpu=_lora_backward,
    cuda=linear_backward_on_cuda,
)
_LORA_LINEAR = Operation(
    "lora_linear",
    LoraArguments,
    _empty_y,
    cpu=_lora,
    cuda=linear_on_cuda,
    gradients=_lora_gradients,
    keeps=("x", "lora_A", "lora_B", "weight"),
    handle=_handle,
)
