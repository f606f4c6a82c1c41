"""The memory meter sees an allocation and can be set back."""

from __future__ import annotations

import torch

from pyft.model.peak_memory import memory_kind, peak_memory_bytes, reset_peak_memory


def test_peak_follows_an_allocation_and_a_reset():
    assert reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    held = torch.ones(50_000_000)  # 200 MB, touched
    peak = peak_memory_bytes("cpu")
    assert 190e6 < peak - before < 260e6
    del held
    assert peak_memory_bytes("cpu") > peak - 1e6  # the kernel's counters are a few pages late
    reset_peak_memory("cpu")
    assert peak_memory_bytes("cpu") < peak - 100e6
    assert memory_kind("cpu") == "resident peak of the process"
    assert memory_kind("cuda:0") == "CUDA allocator peak"
