"""Products with an NF4 weight on a GPU, in two tiers.

T <= 64, bfloat16    one kernel that reads the weight once, as codes (csrc/cuda/nf4_gemm_small.cu)
else                 panels of the weight, dequantised and multiplied by torch (pyft.ops.cuda.panels)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.panels import backward_panels, linear_panels
from pyft.ops.native import C, execution


def _is_small(tokens: Tensor, num_rows: int, num_columns: int) -> bool:
    return (
        tokens.dtype == torch.bfloat16
        and tokens.shape[0] <= 64
        and num_rows % 4 == 0
        and num_columns % 64 == 0
        and tokens.data_ptr() % 16 == 0
    )


def _linear(x: Tensor, *storage_and_bias) -> Tensor:
    if x.dim() == 0:
        raise ValueError("nf4_linear: x has shape [], expected [..., K]")
    *storage, bias = storage_and_bias
    weight, rows = nf4_parts(storage), matrix(x)
    y = x.new_empty((*x.shape[:-1], storage[5]))
    if _is_small(rows, *weight[5]):
        C.nf4_linear(x=rows, weight=weight, bias=bias, y=matrix(y), **execution(x))
    else:
        linear_panels(rows, weight, matrix(y), accumulate=False, bias=bias)
    return y


def _linear_backward(grad_y: Tensor, *storage) -> Tensor:
    weight, rows = nf4_parts(storage), matrix(grad_y)
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], storage[6]))
    if _is_small(rows, *weight[5]):
        C.nf4_linear_backward(grad_y=rows, weight=weight, grad_x=matrix(grad_x), **execution(grad_y))
    else:
        backward_panels(rows, weight, matrix(grad_x), accumulate=False)
    return grad_x


ON_CUDA: dict[str, Callable] = {"nf4_linear": _linear, "nf4_linear_backward": _linear_backward}
