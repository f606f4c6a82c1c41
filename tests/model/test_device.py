"""Where a model goes: each reason why not to a GPU, and the order of asking."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pyft.assemble import device_of
from pyft.errors import ConfigError
from pyft.model import device

GPU = {
    "version": "13.0",
    "available": True,
    "architectures": "80, 90a",
    "capability": (9, 0),
    "probe": None,
}


@pytest.fixture
def machine(monkeypatch):
    """Make torch and the kernels tell of a machine."""

    def pretend(**changes):
        told = GPU | changes

        def probe(device, stream):
            if told["probe"]:
                raise RuntimeError(told["probe"])

        monkeypatch.setattr(torch.version, "cuda", told["version"])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: told["available"])
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: told["capability"])
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=0))
        kernels = SimpleNamespace(cuda_architectures=told["architectures"], cuda_probe=probe)
        monkeypatch.setattr(device, "C", kernels)

    return pretend


def stage(wanted):
    return SimpleNamespace(train=SimpleNamespace(device=wanted))


PROBLEMS = [
    ({"version": None}, r"torch \(.*\) is built without CUDA"),
    ({"available": False}, "torch finds no CUDA device"),
    ({"architectures": ""}, "built for the CPU only: install nvcc and run `pip install .` again"),
    ({"capability": (7, 5)}, "Some GPU has capability 7.5, pyft's kernels need 8.0"),
    ({"probe": "no kernel image"}, r"built for 80, 90a, do not run on Some GPU \(no kernel image\)"),
]


def test_a_gpu_that_can_be_used_is(machine):
    machine()
    assert device.cuda_problem() is None
    assert device.best_device() == device_of(stage("auto")) == device_of(stage("cuda")) == "cuda"
    assert device_of(stage("cpu")) == "cpu"


@pytest.mark.parametrize(("changes", "problem"), PROBLEMS)
def test_what_stands_against_a_gpu_is_said(machine, capsys, changes, problem):
    machine(**changes)
    assert device.best_device() == device_of(stage("auto")) == "cpu"
    told = capsys.readouterr().out
    if changes.get("available", True) and changes.get("version", True):
        assert told.startswith("on the CPU, as ")
    with pytest.raises(ConfigError, match=problem + r".*\(train.device: cuda\)"):
        device_of(stage("cuda"))
