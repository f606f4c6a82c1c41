"""nf4_quantize: weight [N, K] -> codes and scales, single and double quantisation; equal torch to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import expect
import peers
import shapes
import torch
from timing import Case

from pyft.ops import reference
from pyft.ops.nf4 import NF4Weight, nf4_quantize


def _from_bitsandbytes(codes: torch.Tensor, state) -> NF4Weight:
    nested = (state.absmax, state.state2.absmax, state.offset) if state.nested else (None, None, None)
    absmax = None if state.nested else state.absmax
    return NF4Weight(codes.reshape(-1), absmax, *nested, tuple(state.shape))


def _check(result: NF4Weight, expected: NF4Weight) -> str | None:
    if not torch.equal(result.codes, expected.codes):
        return f"{int((result.codes != expected.codes).sum())} bytes of codes differ"
    if expected.absmax is not None:
        return None if torch.equal(result.absmax, expected.absmax) else "absmax differs"
    # the offset is a mean: its last bit depends on the order of summing, and the nested bytes on its last bit
    difference = reference.nf4_dequantize(result) - reference.nf4_dequantize(expected)
    return None if difference.abs().max() <= 0.02 * expected.nested_absmax.max() else "nested absmax differs"


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """Cases at one shape.

    Args:
        shape: N, K.
        dtype: of the weight.
        device: "cpu" or "cuda".

    Yields:
        One case with plain and one with nested absmax.
    """
    weight = expect.random(shape["N"], shape["K"], dtype=dtype, scale=0.02, device=device)
    bitsandbytes = peers.bitsandbytes()
    for double_quant in (False, True):
        expected = reference.nf4_quantize(weight, double_quant=double_quant)
        contenders = {
            "pyft": lambda d=double_quant: nf4_quantize(weight, double_quant=d),
            "torch": lambda d=double_quant: reference.nf4_quantize(weight, double_quant=d),
        }
        if bitsandbytes is not None:
            quantize = bitsandbytes.functional.quantize_4bit
            contenders["bitsandbytes"] = lambda d=double_quant, q=quantize: _from_bitsandbytes(
                *q(weight, blocksize=64, quant_type="nf4", compress_statistics=d)
            )
        yield Case(
            op="nf4_quantize",
            label=f"{'double' if double_quant else 'single'} {dtype} {shapes.format_shape(shape)}",
            contenders=contenders,
            check=lambda _, result, e=expected: _check(result, e),
            work=weight.numel() * (weight.element_size() + 0.5 + 4 / 64),
            unit="GB/s",
        )
