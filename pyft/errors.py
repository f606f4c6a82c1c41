"""The errors pyft raises on purpose, each with the exit code its command ends with.

An error carries one message or several; each is printed as a line of its own, `error: what (where): how to
fix it`. Libraries raise these; only `pyft.command` turns them into an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class PyftError(Exception):
    """A mistake that a person can fix; the base of all errors raised on purpose.

    Args:
        messages: one message, or one per mistake, each as `what (where): how to fix it`.

    Attributes:
        exit_code: what the command ends with.
    """

    exit_code: int = 1

    def __init__(self, messages: str | Sequence[str]) -> None:
        self.messages: list[str] = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


class ConfigError(PyftError):
    """The command line, the recipe, or something they name is wrong."""

    exit_code = 2


class DataError(PyftError):
    """A data file is absent, unreadable, or holds rows that cannot be used."""

    exit_code = 3


class OutOfMemory(PyftError):
    """The device or the host has not enough memory for what was asked."""

    exit_code = 4


class DiskError(PyftError):
    """The output folder cannot be written, or the disk is full."""

    exit_code = 5


class NumericsError(PyftError):
    """A weight, loss or gradient is not finite."""

    exit_code = 6


class Interrupted(PyftError):
    """A signal ended the run, after what had to be saved was saved.

    Args:
        signal_number: the signal received; the exit code is 128 more.
        messages: what to tell the user, possibly nothing.
    """

    def __init__(self, signal_number: int, messages: str | Sequence[str] = ()) -> None:
        super().__init__(messages)
        self.signal_number = int(signal_number)
        self.exit_code = 128 + self.signal_number
