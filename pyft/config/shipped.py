"""The recipes that come with pyft (a YAML file each in `pyft/recipes`), and finding one by name or path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from pyft.errors import ConfigError

RECIPES_FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """List the shipped recipes.

    Returns:
        Name, the file's without its suffix -> file, in the order of names.
    """
    return {path.stem: path for path in sorted(RECIPES_FOLDER.glob("*.yaml"))}


def find_recipe(recipe: str) -> Path:
    """Find a recipe by path or shipped name.

    Args:
        recipe: a shipped name wins over a path that reads the same.

    Returns:
        A path that exists, though possibly a folder.

    Raises:
        ConfigError: there is none; the shipped ones are listed.
    """
    shipped = shipped_recipes()
    if recipe in shipped:
        return shipped[recipe]
    path = Path(recipe).expanduser() if recipe and "\0" not in recipe else None
    if path is not None and os.path.exists(path):
        return path
    raise ConfigError(f"no such recipe (recipe {recipe}): {fix_unknown_recipe(recipe)}")


def fix_unknown_recipe(recipe: str) -> str:
    """Says what to do about a recipe that is not there.

    Args:
        recipe: the name or path given.

    Returns:
        The nearest shipped name, if any is near, and all of them.
    """
    shipped = shipped_recipes()
    stem = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    close = difflib.get_close_matches(stem, shipped, n=1, cutoff=0.6)
    advice = f"did you mean {close[0]}?" if close else "check the path;"
    return f"{advice} shipped with pyft: {', '.join(shipped)}"
