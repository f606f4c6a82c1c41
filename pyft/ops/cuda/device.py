"""What a GPU has that a launch depends on."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Where the kernels are emulated: few, so that small shapes are shared among blocks too.
_EMULATED_MULTIPROCESSORS = 4


def num_multiprocessors(tensor: Tensor) -> int:
    """Return how many multiprocessors the tensor's device has; on the CPU, where kernels are emulated, 4."""
    return _num_of(tensor.device.index) if tensor.is_cuda else _EMULATED_MULTIPROCESSORS


@functools.cache
def _num_of(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
