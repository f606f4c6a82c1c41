"""Tensors as the native module takes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def matrix(tensor: Tensor) -> Tensor:
    """Return [..., F] as a contiguous [T, F], a view where `tensor` is contiguous."""
    if tensor.dim() != 2:
        tensor = tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
    return tensor.contiguous()


def nf4_parts(parts: Sequence[Tensor | None], shape: Sequence[int]) -> tuple:
    """Return an NF4 weight [N, K] as one argument: `NF4Weight.parts`, contiguous, and its shape."""
    return (*[None if part is None else part.contiguous() for part in parts], (shape[0], shape[1]))


def lora_base(parts: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor | tuple:
    """Return a frozen weight as one argument: itself where it is dense, else what `nf4_parts` gives."""
    return parts[0].contiguous() if len(parts) == 1 else nf4_parts(parts, shape)
