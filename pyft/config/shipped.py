"""The recipes that come with pyft (YAML files in `pyft/recipes`), and how one is found by name or path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pyft.errors import ConfigError

RECIPES_FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """List the shipped recipes by name, which is the file's without its suffix."""
    return {path.stem: path for path in sorted(RECIPES_FOLDER.glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """Find a recipe, possibly a folder; a shipped name wins over a path that reads the same."""
    shipped = shipped_recipes()
    if recipe in shipped:
        return shipped[recipe]
    path = Path(recipe).expanduser() if recipe and "\0" not in recipe else None
    if path is not None and os.path.exists(path):
        return path
    raise ConfigError(f"no such recipe (recipe {recipe}): {fix_unknown_recipe(recipe)}")


def fix_unknown_recipe(recipe: str) -> str:
    """Say what to do about a recipe that does not exist: the shipped ones, the nearest first."""
    shipped = shipped_recipes()
    stem = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    close = difflib.get_close_matches(stem, shipped, n=1, cutoff=0.6)
    advice = f"did you mean {close[0]}?" if close else "check the path;"
    return f"{advice} shipped with pyft: {', '.join(shipped)}"
