"""What a call of lora_linear costs beside its kernels, which take next to nothing at these sizes.

`kernels alone` are the native calls of the same work, on tensors that are there already. `--other` names the
interpreter of another version of pyft, which then takes turns with ours, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import expect
import shapes
import torch
from clocks import Elsewhere
from timing import Case

from pyft.ops import reference
from pyft.ops.lora import lora_linear
from pyft.ops.native import C
from pyft.ops.nf4 import nf4_dequantize, nf4_quantize

DTYPES = ("float32",)
SCALING = 0.5
CALLS = 100
VARIANTS = [(base, p, back) for base in ("dense", "nf4") for p in (0.0, 0.1) for back in (False, True)]

_other: str | None = None


def use_other(python: str) -> None:
    """Compare with the pyft that another interpreter imports."""
    global _other
    _other = python


class _Layer:
    """Inputs of a call, equal in every process."""

    def __init__(self, shape: shapes.Shape, base: str) -> None:
        num_tokens, out_features, in_features, rank = (int(shape[name]) for name in "TNKR")
        dense = expect.random(out_features, in_features, scale=0.02)
        self.weight = dense if base == "dense" else nf4_quantize(dense)
        self.dense = dense if base == "dense" else nf4_dequantize(self.weight)
        self.inputs = {
            "x": expect.random(num_tokens, in_features, requires_grad=True),
            "A": expect.random(rank, in_features, scale=0.1, requires_grad=True),
            "B": expect.random(out_features, rank, scale=0.1, requires_grad=True),
        }
        self.grad_y = expect.random(num_tokens, out_features, scale=2.0)

    def results(self, dropout: float, backward: bool) -> expect.Results:
        def forward(x: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor) -> torch.Tensor:
            return lora_linear(x, self.weight, lora_A, lora_B, scaling=SCALING, dropout=dropout)

        if backward:
            return expect.with_gradients(forward, self.inputs, self.grad_y)
        return {"value": forward(*self.inputs.values()).detach()}

    def calls(self, dropout: float, backward: bool) -> None:
        x, lora_A, lora_B = leaves = tuple(self.inputs.values())
        for _ in range(CALLS):
            y = lora_linear(x, self.weight, lora_A, lora_B, scaling=SCALING, dropout=dropout)
            if backward:
                torch.autograd.grad(y, leaves, self.grad_y)

    def kernels(self, dropout: float, backward: bool) -> Callable[[], None]:
        x, lora_A, lora_B = (tensor.detach() for tensor in self.inputs.values())
        weight = self.weight
        narrow, other = (torch.empty(x.shape[0], lora_A.shape[0]) for _ in range(2))
        given = {
            "x": x,
            "weight": weight if isinstance(weight, torch.Tensor) else (*weight.parts, weight.shape),
            "lora_A": lora_A,
            "lora_B": lora_B,
            "projected": narrow,
            "scaling": SCALING,
            "dropout": dropout,
            "seed": 1,
            "num_threads": torch.get_num_threads(),
            "stream": 0,
        }
        y, gradients = torch.empty_like(self.grad_y), [torch.empty_like(t) for t in (x, lora_A, lora_B)]
        results = dict(zip(("grad_x", "grad_A", "grad_B"), gradients, strict=True))

        def run() -> None:
            for _ in range(CALLS):
                C.lora_linear(**given, bias=None, y=y)
                if backward:
                    C.lora_linear_backward(**given, grad_y=self.grad_y, grad_projected=other, **results)

        return run


class _Other(Elsewhere):
    """The same calls, in the process of another interpreter."""

    def __init__(self, shape: shapes.Shape, base: str, dropout: float, backward: bool) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        arguments = json.dumps([shape, base, dropout, backward, torch.get_num_threads()])
        command = [_other, str(Path(__file__).resolve()), arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self, clock: str) -> float:
        self._process.stdin.write(clock + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """Cases at one shape.

    Args:
        shape: T, N, K, R.
        dtype: float32.
        device: "cpu".

    Yields:
        Dense and NF4 base, without and with dropout, forward and forward + backward: `CALLS` calls each.
    """
    for base, dropout, backward in VARIANTS:
        layer = _Layer(shape, base)
        contenders = {"pyft": lambda layer=layer, p=dropout, back=backward: layer.calls(p, back)}
        if _other:
            contenders[f"pyft of {_other}"] = _Other(shape, base, dropout, backward)

        def expected(wide: torch.dtype, layer=layer, backward=backward) -> expect.Results:
            def forward(x, lora_A, lora_B):
                return reference.lora_linear(x, layer.dense.to(wide), lora_A, lora_B, scaling=SCALING)

            inputs = expect.as_dtype(layer.inputs, wide)
            if backward:
                return expect.with_gradients(forward, inputs, layer.grad_y.to(wide))
            return {"value": forward(*inputs.values()).detach()}

        check = expect.same_as(expected, dtype)
        yield Case(
            op="lora_call",
            label=f"{'fwd+bwd' if backward else 'fwd'} {base} p={dropout} {shapes.format_shape(shape)}",
            contenders=contenders,
            check=lambda name, _, layer=layer, back=backward, check=check: check(layer.results(0.0, back)),
            work=CALLS,
            unit="kcalls/s",
            scale=1e3,
            yardsticks={"kernels alone": layer.kernels(dropout, backward)},
        )


def main() -> None:
    """Time the calls for a process that writes a line for each round."""
    shape, base, dropout, backward, num_threads = json.loads(sys.argv[1])
    torch.set_num_threads(num_threads)
    layer = _Layer(shape, base)
    layer.calls(dropout, backward)
    for clock in sys.stdin:
        now = getattr(time, clock.strip())
        start = now()
        layer.calls(dropout, backward)
        print(now() - start, flush=True)


if __name__ == "__main__":
    main()
