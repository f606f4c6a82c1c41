"""Check first, then time: contenders take turns, and a wrong result gets no time.

All contenders of a case run in every round, in rotating order, so that a machine that slows down slows all of
them; what is reported is each one's median and the median of the per-round ratios to pyft. On a GPU the
rounds are run twice: eagerly, and replaying a CUDA graph of each contender.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clocks import Ceilings, CpuClock, CudaClock, Work

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
        bytes_moved: the fewest bytes one call reads and writes, where `work` counts operations.
        peak_bytes: contender -> peak resident memory of doing the work in a process of its own.
        yardsticks: name -> other work, timed beside the contenders and compared with nothing.
    """

    op: str
    label: str
    contenders: dict[str, Work]
    check: Callable[[str, Any], str | None]
    work: float
    unit: str
    scale: float = 1e9
    bytes_moved: float = 0.0
    peak_bytes: Callable[[str], int] | None = None
    yardsticks: dict[str, Work] = field(default_factory=dict)


@dataclass
class Timing:
    """Outcome for one contender: median seconds and the ratio to pyft, or what was wrong with its result.

    `graph_*` are the same for a replayed CUDA graph, `no_graph` why there is none. Memory only where it is
    measured.
    """

    seconds: float | None
    ratio: float | None
    wrong: str | None = None
    peak_bytes: int | None = None
    graph_seconds: float | None = None
    graph_ratio: float | None = None
    no_graph: str | None = None


def _rounds(
    works: dict[str, Work], clock: CpuClock | CudaClock, budget_seconds: float, min_rounds: int
) -> dict[str, tuple[float, float | None]]:
    """Let all take turns; return the median seconds of each, and its ratio to ours."""
    names = list(works)
    samples: dict[str, list[float]] = {name: [] for name in names}
    start, num_rounds = time.perf_counter(), 0
    while names and (num_rounds < min_rounds or time.perf_counter() - start < budget_seconds):
        turn = num_rounds % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(clock.seconds(works[name]))
        num_rounds += 1
    results: dict[str, tuple[float, float | None]] = {}
    for name in names:
        ratio = None
        if name != OURS and OURS in samples:
            ratio = statistics.median(b / a for a, b in zip(samples[OURS], samples[name], strict=True))
        results[name] = statistics.median(samples[name]), ratio
    return results


def time_case(
    case: Case, clock: CpuClock | CudaClock, *, budget_seconds: float, min_rounds: int
) -> dict[str, Timing]:
    """Check every contender, then time those that are right: ours first, yardsticks last.

    Rounds start until the budget is spent, but at least `min_rounds`.
    """
    works = case.contenders | case.yardsticks
    timings = {name: Timing(None, None) for name in works}
    for name, run in case.contenders.items():
        timings[name].wrong = case.check(name, run())
    right = {name: work for name, work in works.items() if timings[name].wrong is None}
    for name, (seconds, ratio) in _rounds(right, clock, budget_seconds, min_rounds).items():
        timings[name].seconds, timings[name].ratio = seconds, ratio
        measured = case.peak_bytes(name) if case.peak_bytes else clock.peak_bytes(right[name])
        timings[name].peak_bytes = measured
    graphs = {}
    for name, work in right.items():
        captured = clock.capture(work)
        if isinstance(captured, str):
            timings[name].no_graph = captured
        elif captured is not None:
            graphs[name] = captured
    for name, (seconds, ratio) in _rounds(graphs, clock, budget_seconds, min_rounds).items():
        timings[name].graph_seconds, timings[name].graph_ratio = seconds, ratio
    return timings


def share_of_ceiling(case: Case, seconds: float, ceilings: Ceilings) -> float:
    """Return the time at the device's ceilings (operations or bytes, whichever is longer) over `seconds`."""
    counts_bytes = case.unit == "GB/s"
    num_bytes = case.work if counts_bytes else case.bytes_moved
    flops = 0.0 if counts_bytes else case.work
    return max(num_bytes / ceilings.copy_bytes, flops / ceilings.flops) / seconds


def format_line(case: Case, timings: dict[str, Timing], ceilings: Ceilings | None = None) -> str:
    """One line: microseconds and rate of ours, then each peer's microseconds as a multiple of ours."""
    parts = []
    for name, timing in timings.items():
        if timing.seconds is None:
            parts.append(f"{name}: WRONG RESULT, not timed ({timing.wrong})")
            continue
        text = f"{name} {timing.seconds * 1e6:,.0f} us"
        if name == OURS:
            text += f" {case.work / timing.seconds / case.scale:,.1f} {case.unit}"
            if ceilings is not None and case.unit != "tokens/s":
                text += f" {share_of_ceiling(case, timing.seconds, ceilings):.0%} of ceiling"
        elif timing.ratio is not None:
            text += f" x{timing.ratio:.2f}"
        if timing.graph_seconds is not None:
            text += f", graph {timing.graph_seconds * 1e6:,.0f} us"
            text += f" x{timing.graph_ratio:.2f}" if timing.graph_ratio is not None else ""
        if timing.peak_bytes is not None:
            text += f" peak {timing.peak_bytes / 1e6:,.0f} MB"
        parts.append(text)
    return f"{case.op:<21} {case.label:<52} {' | '.join(parts)}"
