"""The errors pyft raises on purpose, each with the exit code its command ends with.

An error carries one message or several; each is printed as a line of its own, `error: what (where): how to
fix it`. Every part raises these; only `pyft.command` turns them into an exit code.

Of other people's errors: running out of memory, recognised without importing torch, and the one line that is
quoted of a message. Those of the disk are in disk.py.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator, Sequence


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


# torch's CPU allocator raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory: you tried to
# allocate 17592186044416 bytes"; some CUDA libraries say "out of memory" in one.
_MEMORY_TEXT = re.compile(r"out of memory|can(?:'|no)t allocate memory|not enough memory", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def out_of_memory(error: BaseException, doing: str) -> OutOfMemory | None:
    """Turn an error into an OutOfMemory where memory is what failed, else give None.

    `doing` is what was being done, for the message.
    """
    if not _is_of_memory(error):
        return None
    asked = _ASKED.search(str(error))
    return OutOfMemory(
        f"out of memory{f', {asked[1]} more were asked for' if asked else ''} ({doing}): lower "
        "train.per_device_train_batch_size or data.max_length, or set train.gradient_checkpointing: true"
    )


def _is_of_memory(error: BaseException) -> bool:
    torch_error = getattr(sys.modules.get("torch"), "OutOfMemoryError", ())
    if isinstance(error, (MemoryError, torch_error)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _MEMORY_TEXT.search(str(error)) is not None


@contextlib.contextmanager
def memory_errors(doing: Callable[[], str]) -> Iterator[None]:
    """Raise an OutOfMemory, as `out_of_memory` makes it, for each error of memory in the block."""
    try:
        yield
    except Exception as error:
        if found := out_of_memory(error, doing()):
            raise found from error
        raise


def first_line(error: BaseException) -> str:
    """Give the first line of a message, without the stop at its end; the error's type where it has none."""
    return str(error).strip().partition("\n")[0].rstrip(" .:") or type(error).__name__
