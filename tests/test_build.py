"""How the native module is built: what it links, what it needs to load, what its sources may include."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pyft
from pyft.ops import native

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


def includes(source: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', source.read_text("utf-8"), re.M)


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **options)


# ---- sources ---------------------------------------------------------------------------------------------


def test_no_source_includes_torch():
    assert len(SOURCES) > 20
    found = {
        source.name: name
        for source in SOURCES
        for name in includes(source)
        if name.split("/")[0] in {"torch", "ATen", "c10", "caffe2"} or name == "Python.h"
    }
    assert found == {}


def test_no_line_is_longer_than_110():
    """clang-format sees to the code, and leaves comments as they are drawn."""
    found = [
        f"{source.relative_to(ROOT)}:{number}"
        for source in SOURCES
        for number, line in enumerate(source.read_text("utf-8").split("\n"), 1)
        if len(line) > 110
    ]
    assert found == []


def test_layers_do_not_include_each_other():
    allowed = {
        "include": {"pyft"},
        "cpu": {"pyft", "cpu", "sys"},
        "cuda": {"pyft", "cuda"},
        "emulation": {"pyft", "emulation", "sys", "sanitizer"},
        "bindings": {"pyft", "bindings", "pybind11"},
    }
    # Where a build for tests takes the emulation in.
    emulated = {"cuda/device/platform.h", "cuda/device/mma.h", "bindings/module.cpp"}
    for source in SOURCES:
        path = source.relative_to(CSRC).as_posix()
        layer = path.split("/")[0]
        if layer in allowed:
            local = {
                name.split("/")[0] for name in includes(source) if "/" in name and "pybind11" not in name
            }
            others = local - allowed[layer] - ({"emulation"} if path in emulated else set())
            assert not others, f"{source} includes {others}"


def test_sources_compiled_per_instruction_set_keep_their_rule():
    """Nothing that could leave a shared symbol behind: no std containers, algorithms, strings or threads."""
    kernels = [source for source in SOURCES if source.name.endswith("_kernels.cpp")]
    assert len(kernels) >= 2
    for source in kernels:
        standard = {name for name in includes(source) if "/" not in name}
        others = standard - {"cstdint", "cstring", "cmath", "cfloat", "immintrin.h"}
        assert others == set(), f"{source.name} includes {others}"
        text = re.sub(r"//.*", "", source.read_text("utf-8"))
        used = re.findall(r"\bstd::(?!u?int\d+_t\b|size_t\b|memcpy\b|uintptr_t\b)\w+", text)
        assert used == [], f"{source.name} uses {used}"


# ---- the module ------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_module_needs_neither_torch_nor_cuda_libraries():
    done = run("readelf", "--dynamic", "--wide", native.C.__file__)
    needed = re.findall(r"NEEDED.*\[(.+)\]", done.stdout)
    assert any(name.startswith("libc.so") for name in needed), done
    assert [name for name in needed if re.search("cuda|torch|gomp|iomp|python", name)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_module_exports_only_its_entry():
    done = run("nm", "--dynamic", "--defined-only", native.C.__file__)
    strong = [line.split()[-1] for line in done.stdout.splitlines() if line.split()[-2] in "TDB"]
    assert strong == ["PyInit__pyft_C"]


def test_the_module_loads_alone():
    """No torch, no driver; CUDA says why it has no device instead of failing."""
    code = """
import sys
import _pyft_C
assert "torch" not in sys.modules
status = _pyft_C.cuda_status()
assert status["devices"] or status["problem"], status
assert (status["runtime_version"] > 0) == bool(_pyft_C.cuda_architectures), status
print(_pyft_C.__version__)
"""
    done = run(sys.executable, "-c", code, cwd="/")
    assert (done.returncode, done.stdout.strip()) == (0, pyft.__version__), done.stderr


def test_the_probe_kernel_runs_or_says_why_not():
    if native.C.cuda_status()["devices"]:
        native.C.cuda_probe(device=0, stream=0)
        return
    with pytest.raises(
        RuntimeError, match=r"^cuda_probe: (.*CUDA error \d+: .+|pyft was built for CPU only.*)$"
    ):
        native.C.cuda_probe(device=0, stream=0)


# ---- loading ---------------------------------------------------------------------------------------------


def test_another_version_is_refused():
    with pytest.raises(ImportError) as caught:
        native.load("9.9.9")
    assert "pyft is 9.9.9 but its compiled module _pyft_C is " + pyft.__version__ in str(caught.value)
    assert "run `pip install .` in the folder of pyft's source" in str(caught.value)


def test_a_build_of_an_older_source_of_the_same_version_is_refused(monkeypatch):
    older = types.ModuleType("_pyft_C")
    older.__version__ = pyft.__version__
    monkeypatch.setitem(sys.modules, "_pyft_C", older)
    expected = f"has interface 1, this source expects {native.C.interface} "
    with pytest.raises(ImportError, match=f"{expected}.*: run `pip install \\.` in"):
        native.load()


def test_a_module_without_a_version_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "_pyft_C", types.ModuleType("_pyft_C"))
    with pytest.raises(ImportError, match="is unknown"):
        native.load()


def test_a_missing_module_is_said(tmp_path):
    """In an interpreter that finds the sources and torch, but not the compiled module."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == '_pyft_C':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(pyft.__file__).parents[1])])
    done = run(sys.executable, "-c", "import pyft.ops.nf4", env={**os.environ, "PYTHONPATH": paths})
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: pyft's compiled module _pyft_C is not installed: run `pip install .` in the folder of"
        " pyft's source"
    )


# ---- building --------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("flags", [[], ["-fsanitize=thread", "-g"]], ids=["plain", "thread sanitizer"])
def test_parallel_for_keeps_its_promises(flags, tmp_path):
    program = tmp_path / "parallel_test"
    sources = [str(ROOT / "tests" / "native" / "parallel_test.cpp"), str(CSRC / "cpu" / "parallel.cpp")]
    built = run("c++", "-std=c++17", "-O1", *flags, "-I", str(CSRC), *sources, "-pthread", "-o", str(program))
    if flags and built.returncode:
        pytest.skip("the compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    done = run(str(program))
    assert (done.returncode, done.stdout) == (0, "all kept\n"), done.stdout + done.stderr


@needs_compiler
@pytest.mark.parametrize(
    "flags",
    [[], ["-DPYFT_VECTOR_BYTES=64"], ["-DPYFT_VECTOR_BYTES=64", "-DPYFT_BFLOAT16_PAIRS"]],
    ids=["own width", "as wide as avx512", "in pairs as avx512_bf16"],
)
def test_matrix_products_of_instruction_sets_this_machine_may_lack(flags, tmp_path):
    program = tmp_path / "gemm_test"
    names = ("gemm_kernels", "nf4_quantize_kernels", "nf4_dequantize_kernels", "scratch")
    kernels = [str(CSRC / "cpu" / f"{name}.cpp") for name in names]
    built = run(
        "c++", "-std=c++17", "-O1", "-Wno-psabi", "-ffp-contract=off", "-DPYFT_ISA=tested", *flags,
        "-I", str(CSRC), "-I", str(CSRC / "include"),
        str(ROOT / "tests" / "native" / "gemm_test.cpp"), *kernels, "-o", str(program),
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    done = run(str(program))
    assert (done.returncode, done.stdout) == (0, "all right\n"), done.stdout + done.stderr


def configure(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    import pybind11

    return run(
        "cmake", "-S", str(ROOT), "-B", str(folder), f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DPYBIND11_FINDPYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}", *options,
        env={**os.environ, **variables},
    )  # fmt: skip


needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no cmake or no C++ compiler"
)


@needs_cmake
def test_cuda_can_be_switched_off_or_required(tmp_path):
    pytest.importorskip("pybind11")
    off = configure(tmp_path / "off", "-DPYFT_CUDA=off")
    assert off.returncode == 0, off.stderr
    assert "CUDA: switched off by PYFT_CUDA=off, building for CPU only" in off.stdout
    wrong = configure(tmp_path / "wrong", "-DPYFT_CUDA=maybe")
    assert wrong.returncode != 0 and "PYFT_CUDA is 'maybe', expected auto, on or off" in wrong.stderr


@needs_cmake
def test_a_cuda_compiler_that_does_not_work_means_cpu_only_unless_required(tmp_path):
    pytest.importorskip("pybind11")
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    auto = configure(tmp_path / "auto", f"-DPYFT_NVCC={broken}")
    assert auto.returncode == 0, auto.stderr
    assert f"CUDA: {broken} does not run, building for CPU only" in auto.stdout
    required = configure(tmp_path / "on", "-DPYFT_CUDA=on", f"-DPYFT_NVCC={broken}")
    assert required.returncode != 0
    assert re.search(r"does not run, and\s+PYFT_CUDA=on requires it", required.stderr)
