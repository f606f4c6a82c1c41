"""Which device a model trains and answers on: the GPU, where torch, driver and kernels can all use it."""

from __future__ import annotations

import torch

from pyft.ops.native import C

CAPABILITY = (8, 0)
"""The least: bfloat16 in the tensor cores."""


def cuda_problem() -> str | None:
    """Say why no model can be trained on the current GPU; None when one can."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if not C.cuda_architectures:
        return "pyft's kernels were built for the CPU only: install nvcc and run `pip install .` again"
    index = torch.cuda.current_device()
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    if capability < CAPABILITY:
        return f"{name} has capability {capability[0]}.{capability[1]}, pyft's kernels need 8.0"
    try:
        C.cuda_probe(device=index, stream=torch.cuda.current_stream(index).cuda_stream)
    except RuntimeError as error:
        return (
            f"pyft's kernels, built for {C.cuda_architectures}, do not run on {name} ({error}): "
            "run `pip install .` again on this machine"
        )
    return None


def best_device() -> str:
    """Return "cuda" where the GPU can be used, else "cpu"."""
    return "cpu" if cuda_problem() else "cuda"
