"""The only importer of the compiled module `_pyft_C`: checks that it fits, and says where calls run.

Every native operation takes `num_threads` (CPU) and `stream` (CUDA); `execution` supplies both, so that no
caller can forget the stream. What the operations mean is said in their own modules (`nf4`, `lora`,
`cross_entropy`).
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TypedDict

import torch
from torch import Tensor

from pyft import __version__

FIX = "run `pip install .` in the folder of pyft's source"


class Execution(TypedDict):
    """Where a native operation runs."""

    num_threads: int
    stream: int


def load(version: str = __version__) -> ModuleType:
    """Import `_pyft_C` and check that it was built from this version of the package.

    Args:
        version: the version the module must have.

    Returns:
        The module.

    Raises:
        ImportError: if it is missing, does not load, or has another version; the message says how to fix it.
    """
    try:
        module = importlib.import_module("_pyft_C")
    except ModuleNotFoundError:
        raise ImportError(f"pyft's compiled module _pyft_C is not installed: {FIX}") from None
    except ImportError as error:
        raise ImportError(f"pyft's compiled module _pyft_C does not load ({error}): {FIX}") from error
    found = getattr(module, "__version__", "unknown")
    if found != version:
        where = getattr(module, "__file__", "unknown place")
        raise ImportError(f"pyft is {version} but its compiled module _pyft_C is {found} ({where}): {FIX}")
    return module


C = load()


def num_threads() -> int:
    """How many threads an operation may use on the CPU.

    Returns:
        torch's own setting, `torch.get_num_threads()`.
    """
    return torch.get_num_threads()


def execution(tensor: Tensor) -> Execution:
    """Where an operation on `tensor` runs: torch's thread count, and on CUDA the device's current stream.

    Args:
        tensor: one of the operation's inputs.

    Returns:
        The keyword arguments `num_threads` and `stream` of a native operation.
    """
    # torch.cuda.current_stream would make a Stream of it, for several microseconds a launch
    stream = torch._C._cuda_getCurrentRawStream(tensor.get_device()) if tensor.is_cuda else 0
    return {"num_threads": num_threads(), "stream": stream}


def runs_on_cuda(tensor: Tensor) -> bool:
    """Whether an operation on `tensor` runs CUDA kernels, on a GPU or, in tests, emulated.

    Args:
        tensor: one of the operation's inputs.

    Returns:
        True for a tensor on CUDA, and for every tensor where the kernels are emulated.
    """
    return tensor.is_cuda or C.is_emulated
