"""Tensors as the native module takes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def matrix(tensor: Tensor) -> Tensor:
    """All leading dimensions as one.

    Args:
        tensor: [..., F].

    Returns:
        Contiguous [T, F]; a view where `tensor` is contiguous.
    """
    if tensor.dim() != 2:
        tensor = tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
    return tensor.contiguous()


def nf4_parts(parts: Sequence[Tensor | None], shape: Sequence[int]) -> tuple:
    """The storage of an NF4 weight as one argument.

    Args:
        parts: codes, absmax, absmax_codes, nested_absmax, offset.
        shape: N and K.

    Returns:
        The six that the native module takes, contiguous.
    """
    return (*[None if part is None else part.contiguous() for part in parts], (shape[0], shape[1]))


def lora_base(parts: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor | tuple:
    """A frozen weight as one argument: itself where it is dense, else what `nf4_parts` gives."""
    return parts[0].contiguous() if len(parts) == 1 else nf4_parts(parts, shape)
