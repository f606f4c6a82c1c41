"""What may go to a terminal: colours where it has them, and nothing of the data that would steer it.

Green is what is learned, dim what is only read, red what was cut off.
"""

from __future__ import annotations

import os
import sys
import unicodedata

GREEN, DIM, RED = "\x1b[32m", "\x1b[2m", "\x1b[31m"
_RESET = "\x1b[0m"
_OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of the text after them."""


def wants_colour() -> bool:
    """Say whether standard output is a terminal that may be coloured (not with NO_COLOR set)."""
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str) -> str:
    """Put a text between a colour and its end."""
    return f"{colour}{text}{_RESET}"


def escape(text: str) -> str:
    """Write control characters, and halves of characters, as Python escapes; line ends stay."""
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    # Joiners in emoji and marks of right-to-left text are format characters (Cf) too, but harmless.
    steers = category in ("Cc", "Cs", "Zl", "Zp") or character in _OVERRIDES
    return repr(character)[1:-1] if steers and character != "\n" else character
