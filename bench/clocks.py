"""How long work takes: by the host's clock on a CPU, by the device's events on a GPU.

On a GPU every call meets a cold L2 cache: before it a buffer larger than the cache is written, and while the
device does that the host already queues the work, so that short work is not timed by the host's speed.
A user's step also allocates, waits and draws seeds, but while its graph is captured; a contender that cannot
be captured is timed eagerly only, and the reason is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[], Any]


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, measured in the same run.

    Attributes:
        copy_bytes: bytes read plus bytes written in a second by a device-to-device copy.
        flops: floating-point operations in a second of a large bfloat16 product of random numbers.
    """

    copy_bytes: float
    flops: float


class Elsewhere:
    """Work of another process, which times itself."""

    def seconds(self, clock: str) -> float:
        """Run once and time it by this function of `time`."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Run once."""
        self.seconds("perf_counter")


class CpuClock:
    """The host's clock; there are no graphs, and cases measure memory themselves."""

    def __init__(self, *, processor_time: bool = False) -> None:
        self._now = time.process_time if processor_time else time.perf_counter

    def seconds(self, work: Work) -> float:
        """Run once and time it."""
        if isinstance(work, Elsewhere):
            return work.seconds(self._now.__name__)
        start = self._now()
        work()
        return self._now() - start

    def capture(self, work: Work) -> Work | str | None:
        """Return None: a CPU has no graphs."""
        return None

    def peak_bytes(self, work: Work) -> int | None:
        """Return None: the cases that care measure memory in processes of their own."""
        return None

    def ceilings(self) -> Ceilings | None:
        """Return None: the cases say how their rates compare."""
        return None


class CudaClock:
    """The current GPU's events."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._invalid: list[torch.cuda.CUDAGraph] = []  # torch's allocator goes on asking them

    def seconds(self, work: Work) -> float:
        """Run once with a cold L2 cache and time it by events; the work is on the current stream."""
        self._flush.zero_()
        self._start.record()
        work()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3

    def capture(self, work: Work) -> Work | str | None:
        """Capture work, run three times before, in a CUDA graph; return its replay, or why there is none."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError as error:
            # torch leaves an invalid capture half way: its stream stays current, and the default generator
            # refuses to draw until a capture has ended as it should.
            self._invalid.append(graph)
            torch.cuda.set_stream(before)
            torch.cuda.synchronize()
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                self._flush[:1].zero_()
            return str(error).splitlines()[0]
        return graph.replay

    def peak_bytes(self, work: Work) -> int | None:
        """Return how far torch's allocator rises during the work, its result included."""
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def ceilings(self) -> Ceilings | None:
        """Measure what this GPU does at most, on random data: medians of ten."""
        source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        copy = self._median(lambda: target.copy_(source))
        size = 8192
        left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        product = self._median(lambda: left @ right)
        return Ceilings(copy_bytes=2 * (1 << 30) / copy, flops=2.0 * size**3 / product)

    def _median(self, work: Work) -> float:
        for _ in range(3):
            work()
        return sorted(self.seconds(work) for _ in range(10))[5]


def clock_of(device: str, *, processor_time: bool = False) -> CpuClock | CudaClock:
    """Choose the clock of "cpu" or "cuda"."""
    return CudaClock() if device == "cuda" else CpuClock(processor_time=processor_time)
