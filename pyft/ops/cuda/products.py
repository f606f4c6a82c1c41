"""Matrix products whose result stays in float32, whatever they multiply.

torch has them for bfloat16 on CUDA only; elsewhere the factors are widened first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """out = a b, or out += a b, with sums in float32.

    Args:
        a: float32 or bfloat16 [M, K].
        b: a's dtype [K, N].
        out: [M, N], float32, or a's dtype unless it accumulates; written in place.
        accumulate: add to what `out` holds.
    """
    if out.dtype == a.dtype:
        return _in_one_dtype(a, b, out, accumulate)
    if not a.is_cuda:
        return _in_one_dtype(a.float(), b.float(), out, accumulate)
    if accumulate:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def _in_one_dtype(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    if accumulate:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)
