"""How much memory a run took at its peak.

On CUDA: what torch's allocator handed out at most. On the CPU: the process's resident peak, which counts
everything in it, Python and libraries included. Both can be reset where the system allows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # not POSIX
    resource = None

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_bytes(device: str | torch.device = "cpu") -> int:
    """Read the peak since the start or the last reset; 0 where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # Not Linux: getrusage below knows the peak too.
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, else KiB


def reset_peak_memory(device: str | torch.device = "cpu") -> bool:
    """Start measuring again; False where that cannot be done: later readings include what came before."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")  # Linux: sets VmHWM back to the present resident size.
    except OSError:
        return False
    return True


def memory_kind(device: str | torch.device = "cpu") -> str:
    """Say in a few words what `peak_memory_bytes` counts."""
    return "CUDA allocator peak" if torch.device(device).type == "cuda" else "resident peak of the process"
