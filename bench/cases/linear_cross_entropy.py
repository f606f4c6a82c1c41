"""linear_cross_entropy: loss and dHidden (and dHead) from hidden [T, K] and head [V, K].

On the CPU `torch` computes all logits in float32 for bfloat16 inputs too: torch's own bfloat16 product takes
minutes on processors without bfloat16 arithmetic. `torch counted` gathers the rows with a target first. CCE
leaves out gradients below a bound by default: that is a yardstick, and its exact form the contender.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import expect
import peers
import shapes
import torch.nn.functional as F
from timing import Case
from torch import Tensor

from pyft.ops import reference
from pyft.ops.cross_entropy import linear_cross_entropy


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """Cases at one shape.

    Args:
        shape: T, K, V, counted.
        dtype: of hidden and head.
        device: "cpu" or "cuda".

    Yields:
        Forward + backward with a frozen head, then with a trained one.
    """
    targets = expect.masked_targets(shape["T"], shape["V"], shape["counted"], device)

    def logits_of(hidden: Tensor, head: Tensor) -> Tensor:
        if device == "cuda":
            return F.linear(hidden, head).float()
        return F.linear(hidden.float(), head.float())

    def whole(hidden: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(hidden, head), targets, reduction="sum")

    def counted_only(hidden: Tensor, head: Tensor) -> Tensor:
        rows = (targets != -100).nonzero().squeeze(1)
        return F.cross_entropy(logits_of(hidden[rows], head), targets[rows], reduction="sum")

    forwards = {
        "pyft": lambda hidden, head: linear_cross_entropy(hidden, head, targets),
        "torch": whole,
        "torch counted": counted_only,
    }
    yardsticks = {}
    if device == "cuda" and (liger := peers.liger()) is not None:
        forwards["Liger"] = lambda hidden, head: liger.liger_fused_linear_cross_entropy(
            hidden, head, targets, reduction="sum"
        )
    if device == "cuda" and (apple := peers.cut_cross_entropy()) is not None:
        cce = functools.partial(apple.linear_cross_entropy, reduction="sum")
        forwards["CCE exact"] = lambda hidden, head: cce(hidden, head, targets, filter_eps=None)
        yardsticks["CCE filtered"] = lambda hidden, head: cce(hidden, head, targets)
    for trained in (False, True):
        inputs = {
            "hidden": expect.random(shape["T"], shape["K"], dtype=dtype, requires_grad=True, device=device),
            "head": expect.random(
                shape["V"], shape["K"], dtype=dtype, scale=0.02, requires_grad=trained, device=device
            ),
        }

        def compute(wide, inputs=inputs):
            def forward(hidden: Tensor, head: Tensor) -> Tensor:
                return reference.linear_cross_entropy(hidden, head, targets)

            return expect.with_gradients(forward, expect.as_dtype(inputs, wide))

        check = expect.same_as(compute, dtype)
        num_counted = int((targets != -100).sum())
        yield Case(
            op="linear_cross_entropy",
            label=f"{'trained' if trained else 'frozen'} head {dtype} {shapes.format_shape(shape)}",
            contenders={n: lambda f=f, i=inputs: expect.with_gradients(f, i) for n, f in forwards.items()},
            check=lambda _, results, check=check: check(results),
            work=(6.0 if trained else 4.0) * num_counted * shape["V"] * shape["K"],
            unit="GFLOP/s",
            yardsticks={n: lambda f=f, i=inputs: expect.with_gradients(f, i) for n, f in yardsticks.items()},
        )
