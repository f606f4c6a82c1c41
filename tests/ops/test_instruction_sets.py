"""The CPU kernels on every instruction set this processor has, not only the one picked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyft.ops.native import C

TESTS = Path(__file__).parent
FILES = (
    "rms_norm",
    "swiglu",
    "rotary",
    "lora",
    "cross_entropy",
    "linear_cross_entropy",
    "nf4",
    "nf4_codes",
    "nf4_linear",
)
OTHERS = [isa for isa in C.supported_cpu_isas() if isa != C.cpu_isa()]


def test_the_first_that_the_processor_has_is_picked():
    """avx512 before avx512_bf16, which is slower and takes subnormal numbers for zero."""
    order = ["avx512", "avx512_bf16", "avx2", "baseline"]
    assert C.built_cpu_isas() == [isa for isa in order if isa in C.built_cpu_isas()]
    assert C.supported_cpu_isas() == [isa for isa in order if isa in C.supported_cpu_isas()]
    environment = {name: value for name, value in os.environ.items() if name != "PYFT_CPU_ISA"}
    command = [sys.executable, "-c", "import _pyft_C; print(_pyft_C.cpu_isa())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == C.supported_cpu_isas()[0]


@pytest.mark.parametrize("isa", OTHERS)
def test_other_instruction_sets_pass_the_same_tests(isa):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "not emulated and not cuda and (float64 and 19 or large_vocabulary and all or exact_near or mask_is"
        " or finite or overflow or any_size or bitsandbytes)",
    ]
    # without what tests/conftest.py chose for torch beside the outer run's instruction set
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    done = subprocess.run(
        [*command, *(str(TESTS / f"test_{name}.py") for name in FILES)],
        env=environment | {"PYFT_CPU_ISA": isa},
        cwd=TESTS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
