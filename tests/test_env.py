"""`python -m pyft.env`: plain lines, exit code 0, also when parts are missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

import pyft
from pyft import env
from pyft.ops.native import C


def run_env(**variables: str) -> dict[str, str]:
    """Run the command and returns its lines by key."""
    done = subprocess.run(
        [sys.executable, "-m", "pyft.env"], capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    assert all(separator for _, separator, _ in lines), done.stdout
    assert len({key for key, _, _ in lines}) == len(lines)
    return {key: value for key, _, value in lines}


def test_says_versions_instruction_sets_and_cuda():
    found = run_env(PYFT_CPU_ISA="baseline")
    assert found["pyft"] == pyft.__version__
    assert found["python"].startswith(platform.python_version())
    assert found["torch"] == torch.__version__
    assert found["transformers"].split(".")[0] == "5"
    assert found["instruction sets built"].split(", ")[-1] == "baseline"
    assert found["instruction set picked"] == "baseline"
    assert "CUDA built" in found


def test_a_wrong_instruction_set_is_said_not_raised():
    assert "PYFT_CPU_ISA is 'mmx'" in run_env(PYFT_CPU_ISA="mmx")["instruction set picked"]


def test_a_missing_native_module_is_said_not_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyft.ops.native", None)
    lines = dict(env.describe())
    assert lines["torch"] == torch.__version__
    assert "pyft.ops.native" in lines["native module"]
    assert "CUDA built" not in lines


def test_missing_packages_are_said():
    assert env.package_version("pyft-no-such-distribution") == "not installed"


@pytest.mark.parametrize(
    ("architectures", "driver", "devices", "expected"),
    [
        ("", 0, [], ["CUDA built: no, CPU only"]),
        ("80, 90a", 0, [], ["CUDA built: 13.0 for architectures 80, 90a", "CUDA driver: not found"]),
        (
            "90a",
            12080,
            [],
            [
                "CUDA built: 13.0 for architectures 90a",
                "CUDA driver: supports CUDA 12.8",
                "CUDA devices: none: old",
            ],
        ),
        (
            "90a",
            13000,
            [{"name": "H", "capability": (9, 0), "memory_bytes": 85 * 2**30}],
            [
                "CUDA built: 13.0 for architectures 90a",
                "CUDA driver: supports CUDA 13.0",
                "CUDA device 0: H, capability 9.0, 85.0 GiB",
            ],
        ),
    ],
)
def test_cuda_lines(architectures, driver, devices, expected):
    status = {"runtime_version": 13000, "driver_version": driver, "problem": "old", "devices": devices}
    assert [f"{key}: {value}" for key, value in env.describe_cuda(architectures, status)] == expected


def test_cuda_status_agrees_with_torch():
    status = C.cuda_status()
    assert (
        len(status["devices"]) == torch.cuda.device_count()
        or not C.cuda_architectures
        or not torch.version.cuda
    )
    assert bool(status["devices"]) != bool(status["problem"])
