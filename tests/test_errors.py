"""Exit codes and messages of the errors; others' errors, recognised."""

from __future__ import annotations

import signal

import pytest
import torch

from pyft.errors import (
    ConfigError,
    DataError,
    DiskError,
    Interrupted,
    NumericsError,
    OutOfMemory,
    PyftError,
    first_line,
    out_of_memory,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(PyftError, 1), (ConfigError, 2), (DataError, 3), (OutOfMemory, 4), (DiskError, 5), (NumericsError, 6)],
)
def test_codes_and_messages(kind: type[PyftError], code: int) -> None:
    assert kind("one").exit_code == code
    assert kind("one").messages == ["one"]
    assert kind(["one", "two"]).messages == ["one", "two"]
    assert issubclass(kind, PyftError)


def test_interrupted_keeps_the_signal() -> None:
    assert Interrupted(signal.SIGINT).exit_code == 130
    assert Interrupted(signal.SIGTERM, "saved").exit_code == 143
    assert Interrupted(signal.SIGTERM).messages == []


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "2.00 GiB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
            "4096 bytes",
        ),
    ],
)
def test_out_of_memory_is_recognised(error, asked):
    found = out_of_memory(error, "sft, step 3")
    assert found.exit_code == 4 and "sft, step 3" in str(found)
    assert asked is None or f"{asked} more were asked for" in str(found)


def test_other_errors_are_not_out_of_memory():
    assert out_of_memory(RuntimeError("shapes differ"), "x") is None
    assert out_of_memory(KeyError("out of memory"), "x") is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file.\nsecond line"), "no such file"),
        (ValueError("\n  what: \n"), "what"),
        (KeyError(), "KeyError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_the_first_line_of_a_message(error, line):
    assert first_line(error) == line
