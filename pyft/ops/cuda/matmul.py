"""Matrix products whose result stays in float32, whatever they multiply.

torch has them for bfloat16 on CUDA only; elsewhere the factors are widened first.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """Write out [M, N] = [out +] a [M, K] b [K, N] with sums in float32; `out` is float32, or a's dtype."""
    if out.dtype == a.dtype:
        return _in_one_dtype(a, b, out, accumulate)
    if not a.is_cuda:
        return _in_one_dtype(a.float(), b.float(), out, accumulate)
    if not accumulate:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    elif _adds_to_float32(a.dtype, a.device):
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out.add_(torch.mm(a, b, out_dtype=out.dtype))


@functools.cache
def _adds_to_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Some versions of torch want the summand in the factors' dtype; they say so before they queue work."""
    factor, total = torch.empty((1, 1), dtype=dtype, device=device), torch.empty((1, 1), device=device)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True


def _in_one_dtype(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    if accumulate:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)
