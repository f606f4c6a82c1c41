"""lora_linear: forward, and forward + backward (to x, A and B), on a dense and an NF4 base, with dropout too.

The peers are PEFT's own layer on bitsandbytes' linear, and what it does in plain torch: base linear
(bitsandbytes' for NF4), dropout, two more linears, add. Every contender seeds torch's generator first, so the
mask it used can be told afterwards. `product alone` is the dense base without an adapter: the yardstick of
what the addition costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import expect
import peers
import shapes
import torch
import torch.nn.functional as F
from cases.nf4_dequantize import bitsandbytes_state
from timing import Case
from torch import Tensor

from pyft.ops import reference
from pyft.ops.dropout import draw_seed, dropout_mask
from pyft.ops.lora import lora_linear
from pyft.ops.nf4 import nf4_dequantize, nf4_quantize

SCALING = 0.25
SEED = 7


def _peft_like(base, dropout: float):
    def forward(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        kept = F.dropout(x.to(lora_A.dtype), dropout)
        return (base(x) + F.linear(F.linear(kept, lora_A), lora_B) * SCALING).to(x.dtype)

    return forward


def _peft_layer(base: torch.nn.Module, lora_A: Tensor, lora_B: Tensor, dropout: float):
    """PEFT's layer around `base`, its adapter's weights the two given."""
    peft = peers.peft()
    rank = lora_A.shape[0]
    config = peft.LoraConfig(r=rank, lora_alpha=SCALING * rank, lora_dropout=dropout, target_modules=["0"])
    layer = peft.inject_adapter_in_model(config, torch.nn.Sequential(base))[0].train()
    layer.lora_A["default"].weight, layer.lora_B["default"].weight = lora_A, lora_B
    return lambda x, A, B: layer(x)


def _bitsandbytes_layer(codes: Tensor, state: Any) -> torch.nn.Module:
    """bitsandbytes' linear that holds a weight quantised already."""
    layers = peers.bitsandbytes().nn
    num_rows, num_columns = state.shape
    layer = layers.Linear4bit(num_columns, num_rows, bias=False, compute_dtype=state.dtype, device="meta")
    layer.weight = layers.Params4bit(codes, False, state, quant_type="nf4", bnb_quantized=True)
    return layer


def _mask(name: str, x: Tensor, dropout: float) -> Tensor:
    torch.manual_seed(SEED)
    if name == "pyft":
        return dropout_mask(x.shape, dropout, draw_seed()).to(x.device)
    return F.dropout(torch.ones_like(x, dtype=torch.float32), dropout) != 0


def _case(
    shape: shapes.Shape,
    dtype: str,
    label: str,
    dropout: float,
    backward: bool,
    bases: dict,
    dense: Tensor,
) -> Case:
    num_tokens, out_features, in_features, rank = (int(shape[name]) for name in "TNKR")
    device = dense.device.type
    inputs = {
        "x": expect.random(num_tokens, in_features, dtype=dtype, requires_grad=True, device=device),
        "A": torch.nn.Parameter(expect.random(rank, in_features, scale=in_features**-0.5, device=device)),
        "B": torch.nn.Parameter(expect.random(out_features, rank, scale=0.1, device=device)),
    }
    grad_output = expect.random(num_tokens, out_features, dtype=dtype, device=device)
    ours = bases["pyft"]
    forwards = {"pyft": lambda x, A, B: lora_linear(x, ours, A, B, scaling=SCALING, dropout=dropout)}
    for name, base in bases.items():
        if isinstance(base, torch.nn.Module):
            forwards[name] = _peft_layer(base, inputs["A"], inputs["B"], dropout)
        elif name != "pyft":
            forwards[name] = _peft_like(base, dropout)

    def run(forward):
        if dropout:  # a CUDA graph cannot be captured over it
            torch.manual_seed(SEED)
        return results_of(forward, inputs, grad_output)

    def results_of(forward, inputs: dict[str, Tensor], grad_output: Tensor) -> expect.Results:
        if backward:
            return expect.with_gradients(forward, inputs, grad_output)
        return {"value": forward(*inputs.values()).detach()}

    def product() -> expect.Results:
        return results_of(lambda x: F.linear(x, dense), {"x": inputs["x"]}, grad_output)

    def compute(wide: torch.dtype, mask: Tensor) -> expect.Results:
        def forward(x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
            return reference.lora_linear(
                x, dense, lora_A, lora_B, scaling=SCALING, dropout=dropout, mask=mask if dropout else None
            )

        return results_of(forward, expect.as_dtype(inputs, wide), grad_output.to(wide))

    checks = {}
    for kind in {"pyft", "torch"}:
        mask = _mask(kind, inputs["x"], dropout)
        checks[kind] = expect.same_as(lambda wide, mask=mask: compute(wide, mask), dtype)
    flops = (2.0 * out_features * in_features + 2.0 * rank * (in_features + out_features)) * num_tokens
    flops_back = (2.0 * out_features * in_features + 4.0 * rank * (in_features + out_features)) * num_tokens
    return Case(
        op="lora_linear",
        label=f"{'fwd+bwd' if backward else 'fwd'} {label} p={dropout} {dtype} {shapes.format_shape(shape)}",
        contenders={name: lambda f=forward: run(f) for name, forward in forwards.items()},
        check=lambda name, results: checks["pyft" if name == "pyft" else "torch"](results),
        work=flops + (flops_back if backward else 0.0),
        unit="GFLOP/s",
        yardsticks={"product alone": product},
    )


def build(shape: shapes.Shape, dtype: str, device: str) -> Iterator[Case]:
    """Cases at one shape.

    Args:
        shape: T, N, K, R.
        dtype: of x and y; A and B are float32.
        device: "cpu" or "cuda".

    Yields:
        Dense and NF4 base: forward, forward + backward, and the latter with dropout.
    """
    x_dtype = getattr(torch, dtype)
    dense = expect.random(shape["N"], shape["K"], dtype=dtype, scale=0.02, device=device)
    weight = nf4_quantize(dense)
    dequantized = nf4_dequantize(weight, x_dtype)
    nf4_bases = {"pyft": weight}
    bitsandbytes = peers.bitsandbytes()
    if bitsandbytes is not None:
        codes, state = bitsandbytes_state(bitsandbytes, weight, x_dtype)
        nf4_bases["torch on bitsandbytes"] = lambda x: bitsandbytes.matmul_4bit(x, codes, quant_state=state)
        if peers.peft() is not None:
            nf4_bases["PEFT on bitsandbytes"] = _bitsandbytes_layer(codes, state)
    dense_bases = {"pyft": dense, "torch": lambda x: F.linear(x, dense)}
    for dropout, backward in ((0.0, False), (0.0, True), (0.1, True)):
        yield _case(shape, dtype, "dense", dropout, backward, dense_bases, dense)
        yield _case(shape, dtype, "nf4", dropout, backward, nf4_bases, dequantized)
