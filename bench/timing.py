"""Check first, then time: contenders take turns, and a wrong result gets no time.

All contenders of a case run in every round, in rotating order, so that a machine that slows down slows all of
them; what is reported is each one's median and the median of the per-round ratios to pyft.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "pyft"


@dataclass
class Case:
    """One operation at one shape.

    Attributes:
        op: name of the operation.
        label: variant, dtype and shape, for the line.
        contenders: name -> function that does the work once and returns its result; `pyft` is ours.
        check: contender, result -> None when it is right, otherwise what is wrong.
        work: floating-point operations, bytes moved or rows made in one call.
        unit: name of the rate: "GFLOP/s", "GB/s" or "krows/s".
        scale: how much of `work` in a second is one `unit`.
        peak_bytes: contender -> peak resident memory of doing the work in a process of its own.
    """

    op: str
    label: str
    contenders: dict[str, Callable[[], Any]]
    check: Callable[[str, Any], str | None]
    work: float
    unit: str
    scale: float = 1e9
    peak_bytes: Callable[[str], int] | None = None


@dataclass
class Timing:
    """Outcome for one contender: median seconds and the ratio to pyft, or what was wrong with its result.

    Memory only where the case measures it.
    """

    seconds: float | None
    ratio: float | None
    wrong: str | None = None
    peak_bytes: int | None = None


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_case(case: Case, *, budget_seconds: float, min_rounds: int) -> dict[str, Timing]:
    """Check every contender, then time those that are right.

    Args:
        case: what to run.
        budget_seconds: stop starting rounds after this much time...
        min_rounds: ...but not before this many.

    Returns:
        Timing by contender, ours first.
    """
    wrong = {name: case.check(name, run()) for name, run in case.contenders.items()}
    right = [name for name in case.contenders if wrong[name] is None]
    samples: dict[str, list[float]] = {name: [] for name in right}
    start, num_rounds = time.perf_counter(), 0
    while right and (num_rounds < min_rounds or time.perf_counter() - start < budget_seconds):
        turn = num_rounds % len(right)
        for name in right[turn:] + right[:turn]:
            samples[name].append(_seconds(case.contenders[name]))
        num_rounds += 1
    timings = {}
    for name in case.contenders:
        if wrong[name] is not None:
            timings[name] = Timing(None, None, wrong[name])
            continue
        ratio = None
        if name != OURS and OURS in samples:
            ratio = statistics.median(b / a for a, b in zip(samples[OURS], samples[name], strict=True))
        peak_bytes = case.peak_bytes(name) if case.peak_bytes else None
        timings[name] = Timing(statistics.median(samples[name]), ratio, None, peak_bytes)
    return timings


def format_line(case: Case, timings: dict[str, Timing]) -> str:
    """One line: microseconds and rate of ours, then each peer's microseconds as a multiple of ours."""
    parts = []
    for name, timing in timings.items():
        if timing.seconds is None:
            parts.append(f"{name}: WRONG RESULT, not timed ({timing.wrong})")
            continue
        text = f"{name} {timing.seconds * 1e6:,.0f} us"
        if name == OURS:
            text += f" {case.work / timing.seconds / case.scale:,.1f} {case.unit}"
        elif timing.ratio is not None:
            text += f" x{timing.ratio:.2f}"
        if timing.peak_bytes is not None:
            text += f" peak {timing.peak_bytes / 1e6:,.0f} MB"
        parts.append(text)
    return f"{case.op:<21} {case.label:<52} {' | '.join(parts)}"
