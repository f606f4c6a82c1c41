"""The CPU kernels on every instruction set this processor has, not only the one picked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyft.ops.native import C

TESTS = Path(__file__).parent
FILES = ("activations", "lora", "cross_entropy", "loss_terms", "nf4", "nf4_codes", "nf4_linear")
OTHERS = [isa for isa in C.supported_cpu_isas() if isa != C.cpu_isa()]


@pytest.mark.parametrize("isa", OTHERS)
def test_other_instruction_sets_pass_the_same_tests(isa):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "float64 and 19 or large_vocabulary and all or exact_near or mask_of or finite or overflow"
        " or any_size or bitsandbytes",
    ]
    done = subprocess.run(
        [*command, *(str(TESTS / f"test_{name}.py") for name in FILES)],
        env=os.environ | {"PYFT_CPU_ISA": isa},
        cwd=TESTS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
