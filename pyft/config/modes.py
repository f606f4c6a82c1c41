"""The modes a recipe can name, and what its data have to know of each.

What is done with a batch is the task's (`pyft.tasks`), which registers its mode here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import PydanticKnownError


@dataclass(frozen=True)
class Mode:
    """A mode: what its rows are, and what becomes of one that is too long where the recipe leaves it open."""

    name: str
    rows: Literal["texts", "conversations"]
    overlong: Literal["drop", "truncate", "split", "error"] = "drop"

    @property
    def has_template(self) -> bool:
        """Whether its rows are rendered by a chat template."""
        return self.rows != "texts"


PRETRAIN = Mode("pretrain", "texts", "split")
SFT = Mode("sft", "conversations")
MODES: dict[str, Mode] = {mode.name: mode for mode in (PRETRAIN, SFT)}
DEFAULT_MODE = SFT.name


def register_mode(mode: Mode) -> None:
    """Let recipes name a mode."""
    if MODES.setdefault(mode.name, mode) != mode:
        raise ValueError(f"register_mode: there is another mode {mode.name!r}")


def known_mode(name: Any) -> Mode | None:
    """Return a mode by what a recipe names it; None for anything else."""
    return MODES.get(name) if isinstance(name, str) else None


def mode_name(name: Any) -> str:
    """Check a mode's name, as pydantic checks a literal."""
    if known_mode(name) is None:
        *first, last = (repr(known) for known in MODES)
        raise PydanticKnownError("literal_error", {"expected": " or ".join([", ".join(first), last])})
    return name
