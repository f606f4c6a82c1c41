"""The CUDA kernels compiled for the CPU (csrc/emulation): the build, and `pyft.ops` on top of them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pyft.ops
from pyft.ops.native import INTERFACE
from pyft.ops.operation import OPERATIONS

ROOT = Path(__file__).resolve().parents[1]


def build_emulated(folder: Path, *, sanitize: bool = False) -> Path:
    """Build the module in a folder, and say where it is."""
    import pybind11

    commands = [
        ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), "-DPYFT_CUDA=off", "-DPYFT_EMULATION=ON",
         f"-DPYFT_SANITIZE={'ON' if sanitize else 'OFF'}", "-DPYFT_VERSION=0", "-DPYBIND11_FINDPYTHON=ON",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(folder), "--target", "_pyft_emulated"],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return next(folder.glob("_pyft_emulated*"))


def load_emulated(folder: Path) -> ModuleType:
    """Build and import the module; PYFT_EMULATED names a folder that has it already."""
    given = os.environ.get("PYFT_EMULATED")
    path = next(Path(given).glob("_pyft_emulated*")) if given else build_emulated(folder)
    spec = importlib.util.spec_from_file_location("_pyft_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert getattr(module, "interface", 1) == INTERFACE, f"{path} was built from another source"
    return module


@contextlib.contextmanager
def patched_ops(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register what runs on CUDA for tensors of the CPU, and put `kernels` in the native module's place."""
    for found in pkgutil.walk_packages(pyft.ops.__path__, "pyft.ops."):
        importlib.import_module(found.name)
    for name, module in list(sys.modules.items()):
        if name.startswith("pyft.ops.") and hasattr(module, "C"):
            monkeypatch.setattr(module, "C", kernels)
    with torch.library._scoped_library("pyft", "IMPL") as library:
        with warnings.catch_warnings():  # torch says, once, that something is overridden
            warnings.simplefilter("ignore", UserWarning)
            for name, operation in OPERATIONS.items():
                if operation.on_cuda is not None:
                    library.impl(name, operation.on_cuda, "CPU", allow_override=True)
        yield
