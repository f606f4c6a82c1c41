"""Exit codes and messages of the errors."""

from __future__ import annotations

import signal

import pytest

from pyft.errors import ConfigError, DataError, DiskError, Interrupted, NumericsError, OutOfMemory, PyftError


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
