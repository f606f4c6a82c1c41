"""Waiting for a condition instead of for a time: quick on a quiet machine, and right on a slow one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 120.0


def wait_until(condition: Callable[[], object], what: str, *, every_seconds: float = 0.01) -> None:
    """Wait until a condition holds; fail, saying what never came, after two minutes."""
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(every_seconds)


def wait_for_text(path: Path, pattern: str) -> None:
    """Wait until a file matches."""
    wait_until(lambda: path.exists() and re.search(pattern, path.read_text()), f"{pattern!r} in {path}")


def process_state(pid: int) -> str:
    """Linux's letter for it: S asleep, Z ended and not asked about yet; "" when there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def deliver(pid: int, number: int) -> None:
    """Send a signal and wait until the process has taken it: two that wait at once would become one."""
    os.kill(pid, number)

    def taken() -> bool:
        pending = re.findall(r"^S\w+Pnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text("utf-8"), re.M)
        return not any(int(mask, 16) & 1 << number - 1 for mask in pending)

    wait_until(taken, f"signal {number} taken by process {pid}")
