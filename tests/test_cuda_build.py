"""Every CUDA source compiles for every architecture; products spill nothing. `-s` shows what kernels take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
USED = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?[^\n]*",
    re.S,
)


# 23nf4_linear_small_kernelILi8EEEv..
NAME = re.compile(r"\d((?:[a-z]+\d*_)+kernel)(ILi\d+|I\d*\w+?)?E")


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_architecture(source, tmp_path):
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    command = [NVCC, "-std=c++17", "-O3", "--threads=2", "-Xptxas=-v", *targets, *include, "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "out.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"(?=ptxas info\s+: Compiling)", done.stderr)
    used = [match for part in parts if (match := USED.search(part))]
    kernels = {match["kernel"] for match in used}
    assert kernels and len(used) == len(kernels) * len(ARCHITECTURES)
    for match in used:
        name = "".join(NAME.search(match["kernel"]).groups(""))
        spilled, shared = (int(match["stores"]), int(match["loads"])), int(match["shared"] or 0)
        print(
            f"{name} sm_{match['architecture']}: {match['registers']} registers, {shared} bytes of shared "
            f"memory, {spilled[0]} bytes of spill stores, {spilled[1]} of loads"
        )
        assert not ("linear" in name or "lora" in name) or spilled == (0, 0), name
