"""Settings for every test: no network, a cache of its own, threads that sleep while they wait.

And what several folders share: `slow` tests are left out unless `--slow` or `-m` asks for them, and the CUDA
kernels compiled for the CPU (csrc/emulation) are built once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
# Errors are judged by torch's own (numerics.py), which grow as vectors get narrower: where pyft's kernels are
# held to narrow ones, torch's take AVX2. (Its "default" changes torch.linspace, so bitsandbytes' constants.)
if os.environ.get("PYFT_CPU_ISA") in ("baseline", "avx2"):
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
# Prepared data of tests never meet a user's own; the commands that tests start inherit it.
os.environ["PYFT_CACHE_DIR"] = tempfile.mkdtemp(prefix="pyft-test-cache-")
atexit.register(shutil.rmtree, os.environ["PYFT_CACHE_DIR"], ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    """Not by `-m "not slow"` in addopts, which a `-m cuda` on the command line would replace."""
    if config.getoption("--slow") or "slow" in config.getoption("markexpr"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The module whose operations take tensors of the CPU and run the CUDA kernels on them."""
    from emulated import load_emulated

    return load_emulated(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated_ops(emulated, monkeypatch):
    """`pyft.ops` as on a GPU, with autograd, on tensors of the CPU."""
    from emulated import patched_ops

    emulated.set_seed(1)
    with patched_ops(emulated, monkeypatch):
        yield emulated
