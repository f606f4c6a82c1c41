"""Places inside a recipe, written `data.train[0].path`, and the lines or overrides that filled them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"

_STEP = re.compile(r"(?:^|(?<!^)\.)(?P<key>[^.\[\]\s]{1,100})|\[(?P<index>[0-9]{1,6})\]")


def show_path(path: KeyPath) -> str:
    """Write a path as people do: `data.train[0].path`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def parse_path(text: str) -> KeyPath:
    """Read what `show_path` writes; anything else raises ValueError."""
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None or (position == 0 and match["index"] is not None):
            raise ValueError(f"{text!r} is not a key path")
        steps.append(match["key"] if match["index"] is None else int(match["index"]))
        position = match.end()
    if not steps:
        raise ValueError("a key path is not empty")
    return tuple(steps)


def name_of(path: KeyPath) -> tuple[str, ...]:
    """Drop the list indices: the path's name in the schema."""
    return tuple(step for step in path if isinstance(step, str))


@dataclass(frozen=True)
class WrittenPlaces:
    """Where each key of a recipe was written: a line of its file, or the command line.

    A stage's key may stand at the top level or in its entry of `stages:`, so that places are asked for inside
    a stage, with its index; without an index, in the whole recipe.
    """

    source: Path
    lines: dict[KeyPath, int]
    overridden: Sequence[KeyPath]

    def shown(self, path: KeyPath, index: int) -> str:
        """Write a place inside a stage as the recipe does: `stages[0].train.seed`, or `train.seed`."""
        own: KeyPath = ("stages", index, *path)
        is_own = own in self.lines or any(item[: len(own)] == own for item in self.overridden)
        return show_path(own if is_own else path)

    def where(self, path: KeyPath, index: int | None = None) -> str:
        """Return `command line`, or file and line of the key or of the nearest one around it."""
        candidates = [path] if index is None else [("stages", index, *path), path]
        if any(self._is_overridden(candidate) for candidate in candidates):
            return COMMAND_LINE
        for dropped in range(len(path)):
            for candidate in candidates:
                line = self.lines.get(candidate[: len(candidate) - dropped])
                if line is not None:
                    return f"{self.source}:{line}"
        return str(self.source)

    def _is_overridden(self, path: KeyPath) -> bool:
        """An override set it, or something around it, or made it in order to set something in it."""
        for item in self.overridden:
            is_around = path[: len(item)] == item
            is_made = item[: len(path)] == path and path not in self.lines
            if is_around or is_made:
                return True
        return False
