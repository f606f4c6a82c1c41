"""How much memory a run took at its peak.

On CUDA: what torch's allocator handed out at most. On the CPU: the process's resident peak, which counts
everything in it, Python and libraries included. Both can be reset where the system allows.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_bytes(device: str | torch.device = "cpu") -> int:
    """Read the peak since the start or the last reset.

    Args:
        device: whose memory.

    Returns:
        Bytes.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # Not Linux: getrusage below knows the peak too.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: str | torch.device = "cpu") -> bool:
    """Start measuring anew.

    Args:
        device: whose memory.

    Returns:
        Whether the peak could be reset; if not, later readings include what came before.
    """
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
    """Say what `peak_memory_bytes` counts.

    Args:
        device: whose memory.

    Returns:
        A few words for a report.
    """
    return "CUDA allocator peak" if torch.device(device).type == "cuda" else "resident peak of the process"
