"""How CPU operations run: every instruction set, any number of threads, several callers, forked children."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from numerics import assert_close_to_reference
from torch import Tensor

import pyft
from pyft.ops.native import C, execution
from pyft.ops.nf4 import nf4_dequantize, nf4_linear, nf4_quantize


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(num_tokens: int = 150) -> list[Tensor]:
    """Quantise, dequantise, multiply and differentiate once, in sizes that make several pieces of work."""
    found = []
    # rows that are whole blocks of 64 take another way into the product than others
    for dtype, in_features in product((torch.float32, torch.bfloat16), (517, 512)):
        weight = nf4_quantize(random(333, in_features, seed=1, dtype=dtype))
        x = random(num_tokens, in_features, seed=2, dtype=dtype).requires_grad_()
        y = nf4_linear(x, weight)
        y.backward(random(num_tokens, 333, seed=3, dtype=dtype))
        found += [*weight[2:5], weight.codes, nf4_dequantize(weight, dtype), y.detach(), x.grad]
    return found


def digest(tensors: list[Tensor]) -> str:
    text = hashlib.sha256()
    for tensor in tensors:
        text.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return text.hexdigest()


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_tokens", [5, 150, 500])
def test_bits_do_not_depend_on_the_number_of_threads(num_tokens, restore_threads):
    found = set()
    for num_threads in (1, 2, 3, 7):
        torch.set_num_threads(num_threads)
        assert execution(torch.empty(0))["num_threads"] == num_threads
        found.add(digest(results(num_tokens)))
    assert len(found) == 1


def test_repeated_calls_give_equal_bits():
    assert digest(results()) == digest(results())


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a fresh process that finds the same modules as this one, and this file."""
    here = Path(__file__).resolve().parent
    paths = [Path(C.__file__).resolve().parent, Path(pyft.__file__).resolve().parents[1], here.parent, here]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **variables}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def judge_products() -> str:
    """Judge products against float64; return a digest of what no instruction set may change."""
    bits = []
    # rows that are whole blocks of 64 take another way into the product than others
    for dtype, (out_features, in_features) in product(
        (torch.float32, torch.bfloat16), ((333, 517), (257, 384), (64, 192))
    ):
        weight = nf4_quantize(random(out_features, in_features, seed=1, dtype=dtype))
        dense = nf4_dequantize(weight, dtype)
        bits += [*weight[2:5], weight.codes, dense]
        for num_tokens in (1, 2, 4, 8, 19, 150):
            x = random(num_tokens, in_features, seed=2, dtype=dtype)
            y64 = x.double() @ dense.double().T
            assert_close_to_reference(nf4_linear(x, weight), y64, x @ dense.T, name="y")
            grad_y = random(num_tokens, out_features, seed=3, dtype=dtype)
            grad_x = torch.ops.pyft.nf4_linear_backward(grad_y, weight.parts, weight.shape)
            assert_close_to_reference(grad_x, grad_y.double() @ dense.double(), grad_y @ dense, name="dx")
    return digest(bits)


def test_every_instruction_set_gives_the_same_storage_and_good_products():
    code = "import test_nf4_runtime as here; print(here.C.cpu_isa(), here.judge_products())"
    assert C.built_cpu_isas()[-1] == "baseline"
    found = {}
    for isa in C.supported_cpu_isas():
        done = run_python(code, PYFT_CPU_ISA=isa)
        assert done.returncode == 0, done.stderr
        picked, found[isa] = done.stdout.split()
        assert picked == isa
    assert set(found.values()) == {judge_products()}


def test_an_unusable_instruction_set_is_refused_by_name():
    code = "import torch; from pyft.ops.nf4 import nf4_quantize; nf4_quantize(torch.ones(8, 8))"
    done = run_python(code, PYFT_CPU_ISA="mmx")
    assert done.returncode == 1
    assert "RuntimeError: PYFT_CPU_ISA is 'mmx', this machine can run: " in done.stderr


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="one core")
def test_workers_leave_the_core_that_openmp_pins_the_caller_to():
    code = """
import os, time, torch
from pyft.ops.native import C
weight = torch.ones(1 << 20)  # torch starts its own threads here
before = set(os.listdir("/proc/self/task"))
codes, absmax = torch.empty(1 << 19, dtype=torch.uint8), torch.empty(1 << 14)
C.nf4_quantize(weight=weight, codes=codes, absmax=absmax, num_threads=2, stream=0)
(worker,) = set(os.listdir("/proc/self/task")) - before
for _ in range(12_000):  # the worker may still be starting
    if len(os.sched_getaffinity(int(worker))) > 1:
        break
    time.sleep(0.01)
print(len(os.sched_getaffinity(0)), len(os.sched_getaffinity(int(worker))))
"""
    done = run_python(code, OMP_PROC_BIND="TRUE")
    assert done.returncode == 0, done.stderr
    of_caller, of_worker = map(int, done.stdout.split())
    assert (of_caller, of_worker > 1) == (1, True)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")


@needs_proc
def test_calls_use_as_many_threads_as_torch():
    code = """
import os, torch
from pyft.ops.nf4 import nf4_linear, nf4_quantize
torch.set_num_threads(1)  # torch starts no threads of its own then
weight, x, found = nf4_quantize(torch.ones(600, 512)), torch.ones(800, 512), []
before = len(os.listdir("/proc/self/task"))
for num_threads in (1, 2, 1, 4, 2):
    torch.set_num_threads(num_threads)
    nf4_linear(x, weight)
    found.append(len(os.listdir("/proc/self/task")) - before)
print(found)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    # beside the caller; workers that are not wanted any more sleep
    assert done.stdout == "[0, 1, 1, 3, 3]\n"


@needs_proc
def test_no_second_openmp_runtime_is_loaded():
    code = """
import re, torch
def runtimes():
    with open("/proc/self/maps") as maps:
        return set(re.findall(r"/\\S*/lib[a-z]*omp[^/\\s]*", maps.read()))
torch.ones(1 << 20).exp()
before = runtimes()
import test_nf4_runtime
test_nf4_runtime.results()
print(len(before), runtimes() == before)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    of_torch, unchanged = done.stdout.split()
    assert (int(of_torch) <= 1, unchanged) == (True, "True")


def test_several_python_threads_at_once():
    expected = digest(results())
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: digest(results()), range(12)))
    assert set(found) == {expected}


def test_other_python_threads_go_on_during_a_call():
    """The GIL is released: a counting thread advances while one long call runs."""
    weight, x = nf4_quantize(random(1024, 1024, seed=1)), random(2048, 1024, seed=2)
    counted, done = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    while counted == 0:
        time.sleep(0.001)
    before = counted
    y = torch.empty(2048, 1024)
    C.nf4_linear(x=x, weight=(*weight[:5], weight.shape), bias=None, y=y, num_threads=1, stream=0)
    during = counted - before
    done.set()
    counter.join()
    assert during > 100


def run_in_child(action) -> int:
    """Forks, runs `action` in the child and returns its exit code; a child that hangs is killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            os._exit(0 if action() else 3)
        except BaseException:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Python warns of forking with threads; that it works is what is tested. torch's own threads do not survive a
# fork, so the child calls the native module and compares without torch.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_compute():
    weight, x = nf4_quantize(random(600, 512, seed=1)), random(800, 512, seed=2)
    storage = (*weight[:5], weight.shape)
    expected, found = torch.empty(800, 600), torch.empty(800, 600)
    C.nf4_linear(x=x, weight=storage, bias=None, y=expected, num_threads=3, stream=0)

    def compute() -> bool:
        C.nf4_linear(x=x, weight=storage, bias=None, y=found, num_threads=3, stream=0)
        return found.numpy().tobytes() == expected.numpy().tobytes()

    def compute_with_new_workers() -> bool:
        before = len(os.listdir("/proc/self/task"))
        return before == 1 and compute() and len(os.listdir("/proc/self/task")) == 3

    assert run_in_child(compute) == 0
    if sys.platform == "linux":
        assert run_in_child(compute_with_new_workers) == 0
    assert run_in_child(lambda: run_in_child(compute) == 0) == 0
    busy = threading.Thread(target=lambda: [results(40) for _ in range(3)])
    busy.start()
    codes = [run_in_child(compute) for _ in range(5)]  # the pool is in use by another thread now and then
    busy.join()
    assert codes == [0] * 5
    assert compute()
