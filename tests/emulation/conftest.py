"""The CUDA kernels compiled for the CPU (csrc/emulation), built once for these tests.

PYFT_EMULATED names a folder that has the module already; the test under AddressSanitizer sets it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from emulated_build import build_emulated


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module; its operations take tensors of the CPU and run the CUDA kernels on them."""
    given = os.environ.get("PYFT_EMULATED")
    if given:
        path = next(Path(given).glob("_pyft_emulated*"))
    else:
        path = build_emulated(tmp_path_factory.mktemp("emulated"))
    spec = importlib.util.spec_from_file_location("_pyft_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def kernels(emulated, request):
    """The operations, with the threads of blocks in an order of this seed."""
    emulated.set_seed(request.param)
    return emulated


def _cuda_tables() -> dict:
    package = importlib.import_module("pyft.ops.cuda")
    tables = {}
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        tables |= getattr(importlib.import_module(found.name), "ON_CUDA", {})
    return tables


@pytest.fixture
def emulated_ops(kernels, monkeypatch):
    """`pyft.ops` as on a GPU, with autograd, on tensors of the CPU: what ON_CUDA says, on these kernels."""
    overrides = _cuda_tables()
    for name, module in list(sys.modules.items()):
        if name.startswith("pyft.ops.") and hasattr(module, "C"):
            monkeypatch.setattr(module, "C", kernels)
    with torch.library._scoped_library("pyft", "IMPL") as library:
        with warnings.catch_warnings():  # torch says, once, that something is overridden
            warnings.simplefilter("ignore", UserWarning)
            for op, run in overrides.items():
                library.impl(op, run, "CPU", allow_override=True)
        yield kernels
