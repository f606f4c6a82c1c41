"""Build the CUDA kernels for the CPU (csrc/emulation)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
