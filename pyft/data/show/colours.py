"""Colours of a terminal: green is what is learned, dim what is only read, red what was cut off."""

from __future__ import annotations

import os
import sys

GREEN, DIM, RED = "\x1b[32m", "\x1b[2m", "\x1b[31m"
_RESET = "\x1b[0m"


def wants_colour() -> bool:
    """Say whether standard output is a terminal that may be coloured (not with NO_COLOR set)."""
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str) -> str:
    """Put a text between a colour and its end."""
    return f"{colour}{text}{_RESET}"
