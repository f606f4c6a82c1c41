"""cross_entropy: loss and dLogits from logits [T, V], some rows without a target."""

from __future__ import annotations

from collections.abc import Iterator

import expect
import shapes
import torch.nn.functional as F
from timing import Case
from torch import Tensor

from pyft.ops import reference
from pyft.ops.cross_entropy import cross_entropy


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """The case at one shape.

    Args:
        shape: T, V, counted.
        dtype: of the logits.
        device: "cpu" or "cuda".

    Yields:
        Forward + backward.
    """
    targets = expect.masked_targets(shape["T"], shape["V"], shape["counted"], device)
    logits = expect.random(shape["T"], shape["V"], dtype=dtype, scale=2.0, requires_grad=True, device=device)
    forwards = {
        "pyft": lambda logits: cross_entropy(logits, targets),
        "torch": lambda logits: F.cross_entropy(logits.float(), targets, reduction="sum"),
    }

    def compute(wide):
        def forward(logits: Tensor) -> Tensor:
            return reference.cross_entropy(logits, targets)

        return expect.with_gradients(forward, expect.as_dtype({"logits": logits}, wide))

    check = expect.same_as(compute, dtype)
    yield Case(
        op="cross_entropy",
        label=f"fwd+bwd {dtype} {shapes.format_shape(shape)}",
        contenders={n: lambda f=f: expect.with_gradients(f, {"logits": logits}) for n, f in forwards.items()},
        check=lambda _, results: check(results),
        # counted rows are read once, every row of the gradient is written once
        work=logits.numel() * logits.element_size() * (1.0 + shape["counted"]),
        unit="GB/s",
    )
