"""Products with an NF4 weight on a GPU, in two tiers.

T <= 64, bfloat16    one kernel that reads the weight once, as codes (csrc/cuda/nf4_gemm_small.cu)
else                 the weight dequantised, then torch's matrix product
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.native import C, execution


def _is_small(tokens: Tensor, num_rows: int, num_columns: int) -> bool:
    return (
        tokens.dtype == torch.bfloat16
        and tokens.shape[0] <= 64
        and num_rows % 4 == 0
        and num_columns % 64 == 0
        and tokens.data_ptr() % 16 == 0
    )


def _dense(weight: tuple, beside: Tensor) -> Tensor:
    out = beside.new_empty(weight[5])
    C.nf4_dequantize(weight=weight, out=out, **execution(beside))
    return out


def _linear(x: Tensor, *storage_and_bias) -> Tensor:
    if x.dim() == 0:
        raise ValueError("nf4_linear: x has shape [], expected [..., K]")
    *storage, bias = storage_and_bias
    weight, rows = nf4_parts(storage), matrix(x)
    y = x.new_empty((*x.shape[:-1], storage[5]))
    if _is_small(rows, *weight[5]):
        C.nf4_linear(x=rows, weight=weight, bias=bias, y=matrix(y), **execution(x))
    elif bias is None:
        torch.mm(rows, _dense(weight, x).T, out=y.view(-1, storage[5]))
    else:
        torch.addmm(bias, rows, _dense(weight, x).T, out=y.view(-1, storage[5]))
    return y


ON_CUDA: dict[str, Callable] = {"nf4_linear": _linear}
