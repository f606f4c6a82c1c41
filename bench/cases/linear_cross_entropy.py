"""linear_cross_entropy: loss and dHidden (and dHead) from hidden [T, K] and head [V, K].

On the CPU `torch` computes all logits in float32 for bfloat16 inputs too: torch's own bfloat16 product takes
minutes on processors without bfloat16 arithmetic. `torch counted` gathers the rows with a target first;
`transformers` is the loss its models compute from stored logits. CCE leaves out gradients below a bound by
default: that is a yardstick, and its exact form the contender.

Memory on the CPU is what a call in a process of its own adds to its inputs at its peak; in float32, where a
product in float32 is the contender's own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":  # the process whose memory is measured
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import expect
import peers
import shapes
import torch
import torch.nn.functional as F
from timing import Case
from torch import Tensor

from pyft.model.peak_memory import peak_memory_bytes, reset_peak_memory
from pyft.ops import reference
from pyft.ops.linear_cross_entropy import linear_cross_entropy

Forward = Callable[[Tensor, Tensor], Tensor]


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
    forwards, yardsticks = _forwards(targets, device), {}
    if device == "cuda" and (apple := peers.cut_cross_entropy()) is not None:
        cce = functools.partial(apple.linear_cross_entropy, reduction="sum")
        yardsticks["CCE filtered"] = lambda hidden, head: cce(hidden, head, targets)
    for trained in (False, True):
        inputs = _inputs(shape, dtype, device, trained)

        def compute(wide, inputs=inputs):
            def forward(hidden: Tensor, head: Tensor) -> Tensor:
                return reference.linear_cross_entropy(hidden, head, targets)

            return expect.with_gradients(forward, expect.as_dtype(inputs, wide))

        check = expect.same_as(compute, dtype)
        num_counted = int((targets != -100).sum())
        measured = device == "cpu" and dtype == "float32"
        yield Case(
            op="linear_cross_entropy",
            label=f"{'trained' if trained else 'frozen'} head {dtype} {shapes.format_shape(shape)}",
            contenders={n: lambda f=f, i=inputs: expect.with_gradients(f, i) for n, f in forwards.items()},
            check=lambda _, results, check=check: check(results),
            work=(6.0 if trained else 4.0) * num_counted * shape["V"] * shape["K"],
            unit="GFLOP/s",
            peak_bytes=functools.partial(_measure_peak, shape, dtype, trained) if measured else None,
            yardsticks={n: lambda f=f, i=inputs: expect.with_gradients(f, i) for n, f in yardsticks.items()},
        )


def _inputs(shape: shapes.Shape, dtype: str, device: str, trained: bool) -> dict[str, Tensor]:
    return {
        "hidden": expect.random(shape["T"], shape["K"], dtype=dtype, requires_grad=True, device=device),
        "head": expect.random(
            shape["V"], shape["K"], dtype=dtype, scale=0.02, requires_grad=trained, device=device
        ),
    }


def _forwards(targets: Tensor, device: str) -> dict[str, Forward]:
    """Every contender: the summed loss of hidden and head."""
    num_counted = int((targets != -100).sum())

    def logits_of(hidden: Tensor, head: Tensor) -> Tensor:
        if device == "cuda":
            return F.linear(hidden, head).float()
        return F.linear(hidden.float(), head.float())

    def whole(hidden: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(hidden, head), targets, reduction="sum")

    def counted_only(hidden: Tensor, head: Tensor) -> Tensor:
        rows = (targets != -100).nonzero().squeeze(1)
        return F.cross_entropy(logits_of(hidden[rows], head), targets[rows], reduction="sum")

    forwards: dict[str, Forward] = {
        # Known without a wait, as in training, where the collator counts.
        "pyft": lambda hidden, head: linear_cross_entropy(hidden, head, targets, num_targets=num_counted),
        "torch": whole,
        "torch counted": counted_only,
    }
    if device == "cpu" and (losses := peers.transformers_loss()) is not None:
        forwards["transformers"] = lambda hidden, head: losses.ForCausalLMLoss(
            logits_of(hidden, head), None, len(head), num_items_in_batch=1, shift_labels=targets
        )
    if device == "cuda" and (liger := peers.liger()) is not None:
        forwards["Liger"] = lambda hidden, head: liger.liger_fused_linear_cross_entropy(
            hidden, head, targets, reduction="sum"
        )
    if device == "cuda" and (apple := peers.cut_cross_entropy()) is not None:
        forwards["CCE exact"] = lambda hidden, head: apple.linear_cross_entropy(
            hidden, head, targets, reduction="sum", filter_eps=None
        )
    return forwards


def _measure_peak(shape: shapes.Shape, dtype: str, trained: bool, name: str) -> int:
    order = json.dumps([name, shape, dtype, trained, torch.get_num_threads()])
    done = subprocess.run([sys.executable, __file__, order], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _print_peak(name: str, shape: shapes.Shape, dtype: str, trained: bool, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    targets = expect.masked_targets(shape["T"], shape["V"], shape["counted"])
    inputs = _inputs(shape, dtype, "cpu", trained)
    forward = _forwards(targets, "cpu")[name]
    reset_peak_memory()
    before = peak_memory_bytes()
    expect.with_gradients(forward, inputs)
    print(peak_memory_bytes() - before)


if __name__ == "__main__":
    _print_peak(*json.loads(sys.argv[1]))
