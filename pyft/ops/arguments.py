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


def nf4_parts(storage: Sequence) -> tuple:
    """The storage of an NF4 weight, given flat.

    Args:
        storage: codes, absmax, absmax_codes, nested_absmax, offset, N and K; more is ignored.

    Returns:
        The six parts that the native module takes, contiguous.
    """
    parts = (None if part is None else part.contiguous() for part in storage[:5])
    return (*parts, (storage[5], storage[6]))
