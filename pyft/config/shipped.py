"""The recipes that come with pyft: one YAML file each in `pyft/recipes`, found by its name without the suffix."""

from __future__ import annotations

from pathlib import Path

RECIPES_FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Lists the shipped recipes.

    Returns:
        Name -> file, in the order of names.
    """
    return {path.stem: path for path in sorted(RECIPES_FOLDER.glob("*.yaml"))}
