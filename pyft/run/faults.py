"""Faults injected on purpose, so that recovery can be shown: `PYFT_FAULT=<kind>@<step>[,<kind>@<step>...]`.

The variable is read when a run begins, and only when it is set. A fault fires at its step and is not spent: a
resumed run that passes the step again meets it again.
"""

from __future__ import annotations

import os
import signal

from pyft.errors import ConfigError

KINDS = ("nan_grad", "oom", "kill_between_files", "kill_before_rename", "kill_before_rotate")


class Faults:
    """The faults asked for, asked about at the places where they strike."""

    def __init__(self, text: str | None = None):
        """Read what to inject.

        Args:
            text: the value of `PYFT_FAULT`; None reads the environment.

        Raises:
            ConfigError: it is not a list of `<kind>@<step>` of known kinds.
        """
        text = os.environ.get("PYFT_FAULT", "") if text is None else text
        self._wanted: set[tuple[str, int]] = set()
        for item in filter(None, (part.strip() for part in text.split(","))):
            kind, _, step = item.partition("@")
            if kind not in KINDS or not step.isdecimal():
                raise ConfigError(
                    f"{item!r} is not a fault (PYFT_FAULT): write <kind>@<step>, one of {', '.join(KINDS)}"
                )
            self._wanted.add((kind, int(step)))

    def strikes(self, kind: str, step: int) -> bool:
        """Tell whether fault `kind` was asked for at `step`."""
        return (kind, step) in self._wanted

    def kill(self, kind: str, step: int) -> None:
        """End this process with SIGKILL, as a power cut would, if fault `kind` was asked for at `step`."""
        if self.strikes(kind, step):
            os.kill(os.getpid(), signal.SIGKILL)
