"""The CUDA kernels compiled for the CPU (csrc/emulation), built once for these tests.

PYFT_EMULATED names a folder that has the module already; the test under AddressSanitizer sets it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
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
