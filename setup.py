"""Builds the native module `_pyft_C` with CMake and Ninja; the rest about the package is in pyproject.toml.

Environment: PYFT_CUDA=auto|on|off (default auto), PYFT_CUDA_ARCHITECTURES="80;86;..." or all (default: those
of the GPUs in this machine, without one 80 and 90a; PTX of the newest is always there). Torch is neither
needed nor looked for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version that pyft/__init__.py states, read without importing it."""
    found = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "pyft" / "__init__.py").read_text("utf-8"), re.M)
    if found is None:
        raise SystemExit('error: pyft/__init__.py has no line __version__ = "..."')
    return found.group(1)


class BuildWithCMake(build_ext):
    """Runs CMake for the one extension and puts the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(build, ignore_errors=True)  # a cache of another environment names tools that are gone
        configure = [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DPYFT_VERSION={read_version()}",
            f"-DPYFT_CUDA={os.environ.get('PYFT_CUDA', 'auto').lower()}",
            f"-DPYFT_CUDA_ARCHITECTURES={os.environ.get('PYFT_CUDA_ARCHITECTURES', '')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DPYBIND11_FINDPYTHON=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
        ]
        for command in (configure, ["cmake", "--build", str(build), "--target", ext.name]):
            try:
                subprocess.run(command, check=True)
            except FileNotFoundError:
                raise SystemExit(
                    "error: cmake was not found: pip install cmake ninja, or build with isolation"
                ) from None
            except subprocess.CalledProcessError as failure:
                raise SystemExit(
                    f"error: building the native module failed in `{' '.join(command[:2])}` (exit code"
                    f" {failure.returncode}): the messages above say why; a C++17 compiler is needed"
                ) from None
        if not target.exists():
            raise SystemExit(f"error: CMake built no {target.name}")


setup(
    version=read_version(),
    ext_modules=[Extension("_pyft_C", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
