"""rms_norm: forward + backward of rows [T, K], to x alone and to the weight too.

The peers are what Llama computes in plain torch, which in bfloat16 rounds before it multiplies by the weight,
and on a GPU Liger's function. They are held to twice the error of the former.
"""

from __future__ import annotations

from collections.abc import Iterator

import expect
import peers
import shapes
import torch
from timing import OURS, Case
from torch import Tensor

from pyft.ops import reference
from pyft.ops.rms_norm import rms_norm

EPS = 1e-6


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The cases at one shape.

    Args:
        shape: T, K.
        dtype: of everything.
        device: "cpu" or "cuda".

    Yields:
        With a frozen weight, and with one that trains.
    """
    for trained in (False, True):
        inputs = {
            "x": expect.random(shape["T"], shape["K"], dtype=dtype, requires_grad=True, device=device),
            "weight": expect.random(shape["K"], dtype=dtype, requires_grad=trained, device=device),
        }
        grad_y = expect.random(shape["T"], shape["K"], 1, dtype=dtype, device=device)[..., 0]
        forwards = {OURS: lambda x, w: rms_norm(x, w, eps=EPS), "torch": _by_torch}
        if device == "cuda" and (liger := peers.liger()):
            forwards["liger"] = lambda x, w, f=liger.liger_rms_norm: f(x, w, EPS, in_place=False)
        tensor = inputs["x"]
        yield Case(
            op="rms_norm",
            label=f"fwd+bwd{' trained' if trained else ''} {dtype} {shapes.format_shape(shape)}",
            contenders={
                name: lambda f=forward, i=inputs, g=grad_y: expect.with_gradients(f, i, g)
                for name, forward in forwards.items()
            },
            check=expect.ours_and_peers(
                lambda x, w: reference.rms_norm(x, w, eps=EPS), _by_torch, inputs, grad_y
            ),
            # x, y; x, dY, dX
            work=5.0 * tensor.numel() * tensor.element_size(),
            unit="GB/s",
        )


def _by_torch(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)
