"""Where in a recipe something was written: a line of its file, or the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyft.config.key_path import KeyPath, show_path
from pyft.config.overrides import COMMAND_LINE, Override


@dataclass(frozen=True)
class Places:
    """Knows the lines of a recipe's file and the overrides given with it.

    Places are asked for inside a stage, with its index, since a stage's key may stand at the top level or in
    its entry of `stages:`; without an index, in the whole recipe.
    """

    source: Path
    lines: dict[KeyPath, int]
    overrides: Sequence[Override]

    def shown(self, path: KeyPath, index: int) -> str:
        """Write a place inside a stage as it stands in the recipe.

        Args:
            path: inside the stage.
            index: which stage.

        Returns:
            `stages[0].train.seed` when it is written there, `train.seed` when at the top level.
        """
        own: KeyPath = ("stages", index, *path)
        is_own = own in self.lines or any(item.path[: len(own)] == own for item in self.overrides)
        return show_path(own if is_own else path)

    def where(self, path: KeyPath, index: int | None = None) -> str:
        """Find where something was written.

        Args:
            path: inside the stage, or in the whole recipe.
            index: which stage.

        Returns:
            The command line if an override set it; else file and line of the key, or of the nearest one
            around it.
        """
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
        for item in self.overrides:
            is_around = path[: len(item.path)] == item.path
            is_made = item.path[: len(path)] == path and path not in self.lines
            if is_around or is_made:
                return True
        return False
