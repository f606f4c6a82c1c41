"""The emulator itself: planted mistakes are caught (tests/native/emulation_test.cpp); and the kernels once
more under AddressSanitizer, which sees every access outside a tensor or shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import ROOT, build_emulated

FLAGS = [
    "-std=c++17",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-ffp-contract=off",
]


@pytest.mark.parametrize("flags", [[], ["-fsanitize=address"]], ids=["plain", "address sanitizer"])
def test_mistakes_are_caught(flags, tmp_path):
    csrc, program = ROOT / "csrc", tmp_path / "emulation_test"
    sources = [
        ROOT / "tests" / "native" / "emulation_test.cpp",
        ROOT / "tests" / "native" / "emulation_barriers.cpp",
        csrc / "emulation" / "block.cpp",
        csrc / "emulation" / "fiber.cpp",
    ]
    command = ["c++", *FLAGS, *flags, "-DPYFT_EMULATION", "-I", csrc, "-I", csrc / "include", *sources]
    built = subprocess.run([*command, "-o", program], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "all kept\n"), done.stdout + done.stderr


def find_library(name: str) -> str:
    return subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


def test_kernels_are_clean_under_address_sanitizer(tmp_path):
    """Python itself is not built with it, so its library is loaded first, and before it knows of C++."""
    build_emulated(tmp_path, sanitize=True)
    environment = os.environ | {
        "LD_PRELOAD": f"{find_library('libasan.so')} {find_library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYFT_EMULATED": str(tmp_path),
    }
    # Beside the kernels' own tests, the operations whose kernels have none.
    folder = Path(__file__).parent
    names = ("linear_cross_entropy", "rms_norm", "swiglu", "rotary")
    tests = [
        *sorted(folder.glob("test_*_kernels.py")),
        *(folder.parent / "ops" / f"test_{n}.py" for n in names),
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--capture=no",
        "-k",
        "kernels or emulated and not opcheck",
    ]
    command += map(str, tests)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
