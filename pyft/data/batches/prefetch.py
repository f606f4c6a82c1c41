"""Make the next batches in one thread while a step runs.

    thread    makes batch 3, batch 4, ..    at most `ahead` that nobody has taken
    run       takes batch 3, batch 4, ..    mostly without waiting

Batches are a pure function of epoch and index, so neither the thread that makes one nor the time changes it.
When another batch than the next is asked for, the thread starts over from that one. An error is raised where
the batch that could not be made is asked for, not before.
"""

from __future__ import annotations

import queue
import signal
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from pyft.data.prepared.pool import HELD_BACK

if TYPE_CHECKING:
    from pyft.data.batches.collate import Batch
    from pyft.data.batches.order import OrderedBatches
    from pyft.data.batches.streaming import StreamedBatches

_LEAVE_SECONDS = 5.0


class PrefetchedBatches:
    """Batches that are made ahead, by a thread that ends with this context.

    Nothing else may read `batches` meanwhile. Best for `ahead` is the number of batches that one step takes.
    """

    def __init__(self, batches: OrderedBatches | StreamedBatches, ahead: int) -> None:
        self._batches, self._ahead = batches, ahead
        self.num_batches = batches.num_batches
        self._next: tuple[int, int] | None = None
        self._thread: _BatchThread | None = None

    def batch(self, epoch: int, index: int) -> Batch:
        """Return batch `index`, from 0 to num_batches - 1, of epoch `epoch`, from 0."""
        if self._thread is None or self._next != (epoch, index):
            self._end_thread()
            self._thread = _BatchThread(self._batches, epoch, index, self._ahead)
            self._thread.start()
        made = self._thread.take()
        if isinstance(made, BaseException):
            self._end_thread()
            raise made
        self._next = _following(epoch, index, self.num_batches)
        return made

    def __enter__(self) -> PrefetchedBatches:
        """Return itself; the thread starts with the first batch that is asked for."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; one that is stuck in a read is left to end with the process."""
        # A second SIGINT leaves at once, and does not wait for the batch that is being made.
        self._end_thread(0 if isinstance(error, KeyboardInterrupt) else _LEAVE_SECONDS)

    def _end_thread(self, timeout_seconds: float | None = None) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.end(timeout_seconds)


class _BatchThread(threading.Thread):
    """Makes batches from one on, until told to end, or until one of them fails."""

    def __init__(self, batches: OrderedBatches | StreamedBatches, epoch: int, index: int, ahead: int) -> None:
        super().__init__(name="pyft batches", daemon=True)
        self._batches, self._first = batches, (epoch, index)
        self._made: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(ahead)
        self._is_ending = False

    def run(self) -> None:
        place = self._first
        try:
            # Signals are the main thread's, which may be waiting for a batch: this one would not wake it.
            signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
            while self._room.acquire() and not self._is_ending:
                self._made.put(self._batches.batch(*place))
                place = _following(*place, self._batches.num_batches)
        except BaseException as error:
            self._made.put(error)

    def take(self) -> Batch | BaseException:
        """Wait for the next batch, or the error that came instead."""
        made = self._made.get()
        self._room.release()
        return made

    def end(self, timeout_seconds: float | None) -> None:
        self._is_ending = True
        self._room.release()
        self.join(timeout_seconds)


def _following(epoch: int, index: int, num_batches: int) -> tuple[int, int]:
    return (epoch, index + 1) if index + 1 < num_batches else (epoch + 1, 0)
