"""Signals, noted when they arrive and handled at the next safe place.

    SIGTERM   stop at the next step boundary, after a save (exit 143); any number of them
    SIGINT    the same (exit 130); the second one leaves at once, saving nothing more
    SIGUSR1   save at the next step boundary and continue

A handler only sets a flag. Python runs handlers between its own instructions, so a second SIGINT during a
long backward pass would wait for it: a thread that the C-level handler wakes makes sure that the process is
gone within `LEAVE_SECONDS` all the same.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from pyft.errors import Interrupted

LEAVE_SECONDS = 2.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SAVE = getattr(signal, "SIGUSR1", None)  # None on systems without it


class SignalWatch:
    """A context in which the three signals are flags; the handlers from before return when it ends.

    It may be entered again while it is active (the run enters it early, the loop again): only the outermost
    counts. Outside the main thread no handler can be set, and nothing is watched.
    """

    def __init__(self) -> None:
        self._stop_signal: int | None = None
        self._save_requested = False
        self._depth = 0
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._pipe: tuple[int, int] | None = None

    @property
    def stop_signal(self) -> int | None:
        """The first signal that asked to stop, or None."""
        return self._stop_signal

    def stop_requested(self) -> bool:
        """Return whether a signal asked to stop; cheap enough for each generated token."""
        return self._stop_signal is not None

    def wants_something(self) -> bool:
        """Return whether a signal waits to be handled."""
        return self._stop_signal is not None or self._save_requested

    def take_save_request(self) -> bool:
        """Return whether SIGUSR1 came since the last call, and forget it."""
        requested, self._save_requested = self._save_requested, False
        return requested

    def check(self) -> None:
        """Raise Interrupted if asked to stop: for phases with nothing to save, as tokenising or loading."""
        if self._stop_signal is not None:
            raise Interrupted(self._stop_signal)

    def __enter__(self) -> SignalWatch:
        self._depth += 1
        if self._depth > 1 or threading.current_thread() is not threading.main_thread():
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        threading.Thread(target=_leave_on_second_interrupt, args=(self._pipe[0],), daemon=True).start()
        self._previous_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in filter(None, (*_STOPPING, _SAVE)):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth > 0 or self._pipe is None:
            return
        for number, handler in self._previous.items():
            # None: the handler of before was not set from Python, and cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._pipe[1])  # ends the thread, which closes its own end
        self._previous, self._pipe = {}, None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == _SAVE:
            self._save_requested = True
            return
        if number == signal.SIGINT and self._stop_signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._stop_signal is None or number == signal.SIGINT:
            self._stop_signal = number
            again = "; press again to leave at once" if number == signal.SIGINT else ""
            # Not print(): a handler may interrupt a print, whose buffer cannot be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping at the next step boundary, after a save{again}\n".encode())


def _leave_on_second_interrupt(descriptor: int) -> None:
    """Read the signals' numbers as they arrive; after the second SIGINT the process gets little time."""
    num_interrupts = 0
    while received := os.read(descriptor, 64):
        num_interrupts += received.count(signal.SIGINT)
        if num_interrupts >= 2 and not select.select([descriptor], [], [], LEAVE_SECONDS)[0]:
            os._exit(128 + signal.SIGINT)
    os.close(descriptor)
