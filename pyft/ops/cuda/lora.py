"""A frozen linear layer with a low-rank addition on a GPU: kernels for the addition, around the base product.

    forward     S = scaling * drop(x) A^T           reads x
                y = S B^T + bias                    written once,
                y += x W^T                          then the base product accumulates onto it

    backward    S                                   once more, where dB is wanted: reads 2 T K bytes of x
                dS = scaling * dY B, dB = dY^T S    one pass over dY
                dX = drop'(dS A)
                dA = dS^T drop(x)                   reads x
                dX += dY W

In each direction all but the base product is one native call. The base product is torch's on a dense weight
and panel by panel on an NF4 one (`nf4_dequantized`). With few tokens NF4 has a kernel that writes its result
(`nf4_few_tokens`) and takes the addition along; where that is not for the rank, or dX has entries dropped, it
is added afterwards. Dropout's mask is computed from its seed wherever it is needed. Each sum is cut into
parts by the shape alone (`C.plan_lora`), which go to a workspace and are added in order: always the same
bits. Where the addition has kernels of its own, A and B count with all their 24 bits
(csrc/cuda/device/split_float.h).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pyft.ops.arguments import lora_base, matrix
from pyft.ops.cuda.nf4_dequantized import backward_dequantized, linear_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, fits_few_tokens, linear_few_tokens
from pyft.ops.native import C, Execution, execution
from pyft.ops.signatures import LoraArguments, LoraBackwardArguments


def linear_on_cuda(arguments: LoraArguments) -> Tensor:
    """y; what `pyft.ops.lora` registers for CUDA."""
    layer = _Layer.of(arguments)
    x, weight, lora_B, projected = layer.x, layer.weight, layer.lora_B, layer.narrow()
    bias = None if arguments.bias is None else arguments.bias.contiguous()
    y = x.new_empty((*arguments.x.shape[:-1], lora_B.shape[0]))
    out, few_tokens = matrix(y), fits_few_tokens(x, weight, is_backward=False)
    C.lora_addition(
        x=x,
        weight=weight,
        bias=bias,
        lora_A=layer.lora_A,
        lora_B=lora_B,
        projected=projected,
        y=None if few_tokens else out,
        workspace=_workspace(layer.plan(x)["project_parts"], projected),
        scaling=layer.scaling,
        **layer.drop,
        **layer.where,
    )
    if few_tokens:
        if _is_taken_along(projected, lora_B):
            linear_few_tokens(x, weight, out, bias=bias, projected=projected, lora_B=lora_B)
        else:
            linear_few_tokens(x, weight, out, bias=bias)
            C.lora_expand(
                projected=projected, lora_B=lora_B, bias=None, y=out, accumulate=True, **layer.where
            )
    elif isinstance(weight, Tensor):
        out.addmm_(x, weight.T)
    else:
        linear_dequantized(x, weight, out, accumulate=True)
    return y


def linear_backward_on_cuda(arguments: LoraBackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, A and B; those that are not wanted have no elements."""
    layer, grad_y = _Layer.of(arguments), matrix(arguments.grad_y)
    x, weight, lora_A, lora_B = layer.x, layer.weight, layer.lora_A, layer.lora_B
    wants_x, wants_A, wants_B = arguments.wanted
    projected = layer.narrow() if wants_B else None
    grad_projected = layer.narrow() if wants_x or wants_A else None
    grad_x, grad_A, grad_B = (
        torch.empty_like(given) if wants else None
        for given, wants in zip((x, lora_A, lora_B), arguments.wanted, strict=True)
    )
    few_tokens = wants_x and fits_few_tokens(grad_y, weight, is_backward=True)
    over_x, over_y = layer.plan(x), layer.plan(grad_y)
    C.lora_addition_backward(
        grad_y=grad_y,
        x=x,
        lora_A=lora_A,
        lora_B=lora_B,
        projected=projected,
        grad_projected=grad_projected,
        grad_x=None if few_tokens else grad_x,
        grad_A=grad_A,
        grad_B=grad_B,
        project_workspace=_workspace(over_x["project_parts"], projected),
        row_workspace=_workspace(over_y["row_parts" if wants_B else "project_parts"], grad_projected),
        column_workspace=_workspace(over_y["column_parts"], grad_B),
        grad_A_workspace=_workspace(over_x["column_parts"], grad_A),
        scaling=layer.scaling,
        **layer.drop,
        **layer.where,
    )
    if few_tokens:
        if layer.drop["dropout"] == 0.0 and _is_taken_along(grad_projected, lora_A):
            backward_few_tokens(grad_y, weight, grad_x, grad_projected=grad_projected, lora_A=lora_A)
        else:
            backward_few_tokens(grad_y, weight, grad_x)
            C.lora_expand_backward(
                grad_projected=grad_projected,
                lora_A=lora_A,
                grad_x=grad_x,
                accumulate=True,
                **layer.drop,
                **layer.where,
            )
    elif wants_x and isinstance(weight, Tensor):
        grad_x.addmm_(grad_y, weight)
    elif wants_x:
        backward_dequantized(grad_y, weight, grad_x, accumulate=True)
    return (
        grad_x.view(arguments.x.shape) if wants_x else x.new_empty(0),
        grad_A if wants_A else lora_A.new_empty(0),
        grad_B if wants_B else lora_B.new_empty(0),
    )


class _Layer(NamedTuple):
    """One call's inputs, contiguous.

    Attributes:
        x: [T, K].
        weight: dense, in x's dtype, or the parts of an NF4 one.
        lora_A: [R, K].
        lora_B: [N, R].
        scaling: of S and dS.
        drop: dropout's probability and seed.
        where: the thread count and stream of the call.
    """

    x: Tensor
    weight: Tensor | tuple
    lora_A: Tensor
    lora_B: Tensor
    scaling: float
    drop: dict[str, float | int]
    where: Execution

    @classmethod
    def of(cls, arguments: LoraArguments | LoraBackwardArguments) -> _Layer:
        weight = lora_base(arguments.weight, arguments.shape)
        return cls(
            matrix(arguments.x),
            weight.to(arguments.x.dtype) if isinstance(weight, Tensor) else weight,
            arguments.lora_A.contiguous(),
            arguments.lora_B.contiguous(),
            arguments.scaling,
            {"dropout": arguments.dropout, "seed": arguments.seed},
            execution(arguments.x),
        )

    def narrow(self) -> Tensor:
        """Memory for S or dS, float32 [T, R]."""
        return self.x.new_empty((self.x.shape[0], self.lora_A.shape[0]), dtype=torch.float32)

    def plan(self, wide: Tensor) -> dict[str, int]:
        return _plan(C, *wide.shape, self.lora_A.shape[0])


@functools.lru_cache(4096)
def _plan(module: ModuleType, num_tokens: int, num_columns: int, rank: int) -> dict[str, int]:
    return module.plan_lora(num_tokens=num_tokens, num_columns=num_columns, rank=rank)


def _is_taken_along(narrow: Tensor, factor: Tensor) -> bool:
    """Whether the kernel for few tokens takes the addition too: S and B, or dS and A."""
    rank = narrow.shape[1]
    return rank % 4 == 0 and rank <= 64 and narrow.data_ptr() % 16 == 0 and factor.data_ptr() % 16 == 0


def _workspace(num_parts: int, result: Tensor | None) -> Tensor | None:
    """Memory for the parts of a sum, None where it has one part or is not wanted."""
    if num_parts == 1 or result is None:
        return None
    return result.new_empty((num_parts, *result.shape))
