"""nf4_linear: y = x W^T with W in NF4; forward, and forward + backward to x.

`torch dense` multiplies a weight that is already dense in x's dtype: four or eight times the memory, and
nothing to dequantise. torchao's NF4 rounds its scales in another way: it is compared with its own weight.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import expect
import peers
import shapes
import torch
import torch.nn.functional as F
from cases.nf4_dequantize import bitsandbytes_state
from timing import Case

from pyft.ops.nf4 import nf4_dequantize, nf4_linear, nf4_quantize


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """Cases at one shape.

    Args:
        shape: T, N, K.
        dtype: of x and y.
        device: "cpu" or "cuda".

    Yields:
        Forward, then forward + backward.
    """
    num_tokens, out_features, in_features = int(shape["T"]), int(shape["N"]), int(shape["K"])
    x_dtype = getattr(torch, dtype)
    weight = nf4_quantize(expect.random(out_features, in_features, scale=0.02, device=device))
    dense = nf4_dequantize(weight, x_dtype)
    grad_output = expect.random(num_tokens, out_features, dtype=dtype, device=device)
    forwards = {"pyft": lambda x: nf4_linear(x, weight), "torch dense": lambda x: F.linear(x, dense)}
    bitsandbytes = peers.bitsandbytes()
    if bitsandbytes is not None:
        codes, state = bitsandbytes_state(bitsandbytes, weight, x_dtype)
        forwards["bitsandbytes"] = lambda x: bitsandbytes.matmul_4bit(x, codes, quant_state=state)
    denses = {}
    if device == "cuda" and (torchao := peers.torchao()) is not None:
        theirs = torchao.to_nf4(dense)
        denses["torchao"] = theirs.get_original_weight()
        forwards["torchao"] = lambda x: torchao.linear_nf4(x, theirs)
    weight_bytes = sum(part.numel() * part.element_size() for part in weight[:5] if part is not None)
    moved = num_tokens * (in_features + out_features) * x_dtype.itemsize
    for backward in (False, True):
        x = expect.random(num_tokens, in_features, dtype=dtype, requires_grad=backward, device=device)

        def run(forward, x=x, backward=backward):
            if backward:
                return expect.with_gradients(forward, {"x": x}, grad_output)
            return {"value": forward(x)}

        def compute(wide, dense=dense, x=x, backward=backward):
            wide_x = x.detach().to(wide).requires_grad_(backward)
            forward = lambda x: F.linear(x, dense.to(wide))  # noqa: E731
            if backward:
                return expect.with_gradients(forward, {"x": wide_x}, grad_output.to(wide))
            return {"value": forward(wide_x)}

        checks = {
            name: expect.same_as(functools.partial(compute, dense=denses.get(name, dense)), dtype)
            for name in ("ours", *denses)
        }
        yield Case(
            op="nf4_linear",
            label=f"{'fwd+bwd' if backward else 'fwd'} {dtype} {shapes.format_shape(shape)}",
            contenders={name: lambda f=forward, run=run: run(f) for name, forward in forwards.items()},
            check=lambda name, results, checks=checks: checks.get(name, checks["ours"])(results),
            work=2.0 * num_tokens * out_features * in_features * (2 if backward else 1),
            unit="GFLOP/s",
            bytes_moved=(2 if backward else 1) * (weight_bytes + moved),
        )
