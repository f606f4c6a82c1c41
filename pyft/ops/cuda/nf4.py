"""Products with an NF4 weight on a GPU, in two tiers.

few tokens    one kernel that reads the weight once, as codes (pyft.ops.cuda.nf4_few_tokens)
else          panels of the weight, dequantised and multiplied by torch (pyft.ops.cuda.nf4_dequantized)
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyft.ops.arguments import matrix, nf4_parts
from pyft.ops.cuda.nf4_dequantized import backward_dequantized, linear_dequantized
from pyft.ops.cuda.nf4_few_tokens import backward_few_tokens, fits_few_tokens, linear_few_tokens
from pyft.ops.signatures import NF4LinearArguments, NF4LinearBackwardArguments


def linear_on_cuda(arguments: NF4LinearArguments) -> Tensor:
    """y; what `pyft.ops.nf4` registers for CUDA."""
    x, bias, (num_rows, num_columns) = arguments.x, arguments.bias, arguments.shape
    _check("nf4_linear", "x", x, num_columns)
    _check_bias(bias, x, num_rows)
    weight, rows = nf4_parts(arguments.weight, arguments.shape), matrix(x)
    y = x.new_empty((*x.shape[:-1], num_rows))
    if fits_few_tokens(rows, weight, is_backward=False):
        linear_few_tokens(rows, weight, matrix(y), bias=bias)
    else:
        linear_dequantized(rows, weight, matrix(y), accumulate=False, bias=bias)
    return y


def linear_backward_on_cuda(arguments: NF4LinearBackwardArguments) -> Tensor:
    """dX."""
    grad_y, (num_rows, num_columns) = arguments.grad_y, arguments.shape
    _check("nf4_linear_backward", "grad_y", grad_y, num_rows)
    weight, rows = nf4_parts(arguments.weight, arguments.shape), matrix(grad_y)
    grad_x = grad_y.new_empty((*grad_y.shape[:-1], num_columns))
    if fits_few_tokens(rows, weight, is_backward=True):
        backward_few_tokens(rows, weight, matrix(grad_x))
    else:
        backward_dequantized(rows, weight, matrix(grad_x), accumulate=False)
    return grad_x


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
