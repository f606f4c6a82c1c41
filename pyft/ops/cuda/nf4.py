"""Products with an NF4 weight on a GPU, in two tiers.

few tokens    one kernel that reads the weight once, as codes (pyft.ops.cuda.nf4_few_tokens)
else          panels of the weight, dequantised and multiplied by torch (pyft.ops.cuda.nf4_dequantized)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.nf4_dequantized import backward_dequantized, linear_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, is_aligned, linear_few_tokens, takes_few_tokens


def _linear(x: Tensor, *storage_and_bias) -> Tensor:
    *storage, bias = storage_and_bias
    _check("nf4_linear", "x", x, storage[6])
    _check_bias(bias, x, storage[5])
    weight, rows = nf4_parts(storage), matrix(x)
    y = x.new_empty((*x.shape[:-1], storage[5]))
    if _takes_few_tokens(rows, weight, is_backward=False):
        linear_few_tokens(rows, weight, matrix(y), bias=bias)
    else:
        linear_dequantized(rows, weight, matrix(y), accumulate=False, bias=bias)
    return y


def _linear_backward(grad_y: Tensor, *storage) -> Tensor:
    _check("nf4_linear_backward", "grad_y", grad_y, storage[5])
    weight, rows = nf4_parts(storage), matrix(grad_y)
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], storage[6]))
    if _takes_few_tokens(rows, weight, is_backward=True):
        backward_few_tokens(rows, weight, matrix(grad_x))
    else:
        backward_dequantized(rows, weight, matrix(grad_x), accumulate=False)
    return grad_x


def _takes_few_tokens(operand: Tensor, weight: tuple, *, is_backward: bool) -> bool:
    return takes_few_tokens(
        operand.dtype,
        operand.shape[0],
        *weight[5],
        is_backward=is_backward,
        is_aligned=is_aligned(operand, weight),
    )


def _check(op: str, name: str, operand: Tensor, features: int) -> None:
    """What the kernels would say of themselves, before torch's products say it in their words."""
    if operand.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{op}: {name}.dtype is {_name(operand.dtype)}, expected float32 or bfloat16")
    if operand.dim() == 0:
        letter = "K" if name == "x" else "N"
        raise ValueError(f"{op}: {name} has shape [], expected [..., {letter}]")
    if operand.shape[-1] != features:
        raise ValueError(f"{op}: {name}.shape[-1] is {operand.shape[-1]}, weight expects {features}")


def _check_bias(bias: Tensor | None, x: Tensor, num_rows: int) -> None:
    if bias is None:
        return
    if bias.dtype != x.dtype:
        raise ValueError(f"nf4_linear: bias.dtype is {_name(bias.dtype)}, expected {_name(x.dtype)}")
    if bias.shape != (num_rows,):
        given = f".shape[0] is {bias.shape[0]}" if bias.dim() == 1 else f" has shape {list(bias.shape)}"
        raise ValueError(f"nf4_linear: bias{given}, weight expects {num_rows}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


ON_CUDA: dict[str, Callable] = {"nf4_linear": _linear, "nf4_linear_backward": _linear_backward}
