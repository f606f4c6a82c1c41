"""nf4_dequantize: codes and scales -> weight [N, K]. Must equal torch to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import expect
import peers
import shapes
import torch
from timing import Case

from pyft.ops import reference
from pyft.ops.nf4 import NF4Weight, nf4_dequantize, nf4_quantize


def bitsandbytes_state(bitsandbytes: Any, weight: NF4Weight, dtype: torch.dtype) -> Any:
    """Return the same quantised weight as bitsandbytes keeps it: codes [n, 1] and a QuantState."""
    functional = bitsandbytes.functional
    parts = {"shape": torch.Size(weight.shape), "dtype": dtype, "blocksize": 64, "quant_type": "nf4"}
    parts["code"] = functional.get_4bit_type("nf4", device=weight.codes.device)
    if weight.absmax is not None:
        return weight.codes.unsqueeze(1), functional.QuantState(absmax=weight.absmax, **parts)
    nested = functional.QuantState(
        absmax=weight.nested_absmax,
        code=reference.nested_codebook().to(weight.codes.device),
        blocksize=256,
        dtype=torch.float32,
    )
    state = functional.QuantState(absmax=weight.absmax_codes, offset=weight.offset, state2=nested, **parts)
    return weight.codes.unsqueeze(1), state


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """Cases at one shape.

    Args:
        shape: N, K.
        dtype: of the result.
        device: "cpu" or "cuda".

    Yields:
        One case with plain and one with nested absmax.
    """
    out_dtype = getattr(torch, dtype)
    dense = expect.random(shape["N"], shape["K"], scale=0.02, device=device)
    bitsandbytes = peers.bitsandbytes()
    for double_quant in (False, True):
        weight = nf4_quantize(dense, double_quant=double_quant)
        expected = reference.nf4_dequantize(weight, out_dtype)
        contenders = {
            "pyft": lambda w=weight: nf4_dequantize(w, out_dtype),
            "torch": lambda w=weight: reference.nf4_dequantize(w, out_dtype),
        }
        if bitsandbytes is not None:
            codes, state = bitsandbytes_state(bitsandbytes, weight, out_dtype)
            dequantize = bitsandbytes.functional.dequantize_4bit
            contenders["bitsandbytes"] = lambda d=dequantize, c=codes, s=state: d(c, s)
        yield Case(
            op="nf4_dequantize",
            label=f"{'double' if double_quant else 'single'} {dtype} {shapes.format_shape(shape)}",
            contenders=contenders,
            check=lambda _, result, e=expected: None if torch.equal(result, e) else "values differ",
            work=dense.numel() * (out_dtype.itemsize + 0.5 + (1 if double_quant else 4) / 64),
            unit="GB/s",
        )
