"""swiglu: silu(gate) * up, forward + backward, of [T, K].

The peers are plain torch and on a GPU Liger's function, which writes its gradients over gate and up and so is
given copies of them. They are held to twice the error of the former.
"""

from __future__ import annotations

from collections.abc import Iterator

import expect
import peers
import shapes
import torch.nn.functional as F
from timing import OURS, Case
from torch import Tensor

from pyft.ops import reference
from pyft.ops.swiglu import swiglu


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The case at one shape.

    Args:
        shape: T, K.
        dtype: of everything.
        device: "cpu" or "cuda".

    Yields:
        Forward + backward.
    """
    options = {"dtype": dtype, "scale": 2.0, "device": device}
    gate, up, grad_y = (expect.random(n, shape["T"], shape["K"], **options)[0] for n in (1, 2, 3))
    inputs = {"gate": gate.requires_grad_(), "up": up.requires_grad_()}
    forwards = {OURS: swiglu, "torch": _by_torch}
    if device == "cuda" and (liger := peers.liger()):
        forwards["liger on copies"] = lambda a, b: liger.liger_swiglu(a.clone(), b.clone())
    yield Case(
        op="swiglu",
        label=f"fwd+bwd {dtype} {shapes.format_shape(shape)}",
        contenders={
            name: lambda f=forward: expect.with_gradients(f, inputs, grad_y)
            for name, forward in forwards.items()
        },
        check=expect.ours_and_peers(reference.swiglu, _by_torch, inputs, grad_y),
        # gate, up, y; dY, gate, up, dGate, dUp
        work=8.0 * gate.numel() * gate.element_size(),
        unit="GB/s",
    )


def _by_torch(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up
