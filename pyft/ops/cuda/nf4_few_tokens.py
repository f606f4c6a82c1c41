"""Products of few tokens with an NF4 weight: one kernel that reads the weight once, as codes.

The kernel (csrc/cuda/nf4_gemm_small.cu) takes bfloat16, at most 64 tokens, K in multiples of 64 and, in the
backward, N in multiples of 8. It adds what a LoRA layer has beside the weight, for ranks in multiples of 4 up
to 64; in the backward only where nothing was dropped. Weights are the six parts that
`pyft.ops.arguments.nf4_parts` gives, all tensors contiguous.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from pyft.ops.cuda.device import num_multiprocessors
from pyft.ops.native import C, execution

MOST_TOKENS = 64


def takes_few_tokens(
    dtype: torch.dtype,
    num_tokens: int,
    num_rows: int,
    num_columns: int,
    *,
    is_backward: bool,
    is_aligned: bool = True,
) -> bool:
    """Whether the kernel takes a product with W [N, K], N `num_rows`; else it goes panel by panel."""
    return (
        dtype == torch.bfloat16
        and 0 < num_tokens <= MOST_TOKENS
        and num_columns > 0
        and num_columns % 64 == 0
        and num_rows > 0
        and (not is_backward or num_rows % 8 == 0)
        and is_aligned
    )


def fits_few_tokens(operand: Tensor, weight: Tensor | tuple, *, is_backward: bool) -> bool:
    """Whether the kernel takes this x or dY: `weight` is NF4, and all begin where it can read 16 bytes."""
    if isinstance(weight, Tensor):
        return False
    codes, _, absmax_codes, *_, shape = weight
    is_aligned = (
        operand.data_ptr() % 16 == 0
        and codes.data_ptr() % 16 == 0
        and (absmax_codes is None or absmax_codes.data_ptr() % 4 == 0)
    )
    return takes_few_tokens(
        operand.dtype, operand.shape[0], *shape, is_backward=is_backward, is_aligned=is_aligned
    )


def linear_few_tokens(
    x: Tensor,
    weight: tuple,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    projected: Tensor | None = None,
    lora_B: Tensor | None = None,
) -> None:
    """Write y [T, N] = x [T, K] W^T + bias + projected [T, R] lora_B [N, R]^T; the last two are float32."""
    C.nf4_linear(
        x=x,
        weight=weight,
        bias=None if bias is None else bias.contiguous(),
        y=y,
        projected=projected,
        lora_B=lora_B,
        **_partition(False, x, weight),
        **execution(x),
    )


def backward_few_tokens(
    grad_y: Tensor,
    weight: tuple,
    grad_x: Tensor,
    *,
    grad_projected: Tensor | None = None,
    lora_A: Tensor | None = None,
) -> None:
    """Write dX [T, K] = dY [T, N] W + grad_projected [T, R] lora_A [R, K]; the last two are float32."""
    C.nf4_linear_backward(
        grad_y=grad_y,
        weight=weight,
        grad_x=grad_x,
        grad_projected=grad_projected,
        lora_A=lora_A,
        **_partition(True, grad_y, weight),
        **execution(grad_y),
    )


def _partition(is_backward: bool, operand: Tensor, weight: tuple) -> dict:
    """How many blocks share the work, and the memory in which they leave their sums."""
    num_blocks, workspace_floats = _chosen(
        C, is_backward, operand.shape[0], *weight[5], num_multiprocessors(operand)
    )
    return {
        "num_blocks": num_blocks,
        "workspace": operand.new_empty(workspace_floats, dtype=torch.float32) if workspace_floats else None,
    }


@functools.cache
def _chosen(
    module: ModuleType, is_backward: bool, tokens: int, rows: int, columns: int, multiprocessors: int
) -> tuple[int, int]:
    chosen = module.choose_nf4_small(
        is_backward=is_backward,
        num_tokens=tokens,
        num_rows=rows,
        num_columns=columns,
        num_multiprocessors=multiprocessors,
    )
    return chosen["num_blocks"], chosen["workspace_floats"]
