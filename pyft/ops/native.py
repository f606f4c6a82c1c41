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
INTERFACE = 2  # csrc/bindings/module.cpp


class Execution(TypedDict):
    """Where a native operation runs."""

    num_threads: int
    stream: int


def load(version: str = __version__, interface: int = INTERFACE) -> ModuleType:
    """Import `_pyft_C`; if it is missing, broken or not of this source, an ImportError says how to fix it.

    The interface tells builds apart that have the same version, as a source folder's before and after a pull.
    """
    try:
        module = importlib.import_module("_pyft_C")
    except ModuleNotFoundError:
        raise ImportError(f"pyft's compiled module _pyft_C is not installed: {FIX}") from None
    except ImportError as error:
        raise ImportError(f"pyft's compiled module _pyft_C does not load ({error}): {FIX}") from error
    found, found_interface = getattr(module, "__version__", "unknown"), getattr(module, "interface", 1)
    where = getattr(module, "__file__", "unknown place")
    if found != version:
        raise ImportError(f"pyft is {version} but its compiled module _pyft_C is {found} ({where}): {FIX}")
    if found_interface != interface:
        raise ImportError(
            f"pyft's compiled module _pyft_C has interface {found_interface}, this source expects {interface}"
            f" ({where}): {FIX}"
        )
    return module


C = load()


def num_threads() -> int:
    """Return how many threads an operation may use on the CPU: as many as torch."""
    return torch.get_num_threads()


def execution(tensor: Tensor) -> Execution:
    """Return where an operation on `tensor` runs: torch's thread count, the current stream of its GPU."""
    # torch.cuda.current_stream would make a Stream of it, for several microseconds a launch
    stream = torch._C._cuda_getCurrentRawStream(tensor.get_device()) if tensor.is_cuda else 0
    return {"num_threads": num_threads(), "stream": stream}


def runs_on_cuda(tensor: Tensor) -> bool:
    """Whether an operation on `tensor` runs CUDA kernels, on a GPU or, in tests, emulated."""
    return tensor.is_cuda or C.is_emulated
