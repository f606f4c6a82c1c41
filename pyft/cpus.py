"""The processor's cores: how many this process may use, and what its threads do while they wait."""

from __future__ import annotations

import os


def num_usable_cpus() -> int:
    """Count the cores this process may run on; all of the machine's where the system does not say (macOS)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def let_waiting_threads_sleep() -> None:
    """Set OMP_WAIT_POLICY, unless it is set."""
    # Read by torch's OpenMP when it is loaded. Its threads otherwise spin while they wait, and where another
    # program shares the cores, a step of a small model then takes ten times as long (measured on 2 cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
