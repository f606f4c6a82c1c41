"""`python -m pyft.recipes [list | copy NAME DEST]`: the recipes that come with pyft."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pyft.command import run_command
from pyft.config.shipped import fix_unknown_recipe, shipped_recipes
from pyft.errors import ConfigError, DiskError


def list_recipes(_: argparse.Namespace) -> None:
    """Print name and first line of every shipped recipe."""
    recipes = shipped_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {_headline(path)}")
    print("\nrun one:     python -m pyft.train NAME [key.sub=value ...]")
    print("change one:  python -m pyft.recipes copy NAME my_recipe.yaml")


def copy_recipe(options: argparse.Namespace) -> None:
    """Copy a shipped recipe to a new file or into a folder; if that fails, nothing is left there."""
    source = shipped_recipes().get(options.name)
    if source is None:
        raise ConfigError(f"no such recipe (recipe {options.name}): {fix_unknown_recipe(options.name)}")
    dest = Path(options.dest).expanduser()
    into_folder = dest.is_dir() or options.dest.endswith(("/", os.sep))
    if into_folder:
        dest = dest / source.name
    if not dest.parent.is_dir():
        raise ConfigError(f"no such folder ({dest.parent}): make it first, or write elsewhere")
    try:
        _write_new(dest, source.read_bytes())
    except FileExistsError:
        raise ConfigError(f"it exists already ({dest}): remove it, or give another name") from None
    except OSError as error:
        raise DiskError(f"{error.strerror} ({dest}): free some space, or write elsewhere") from None
    print(f"wrote {dest}; change it, then: python -m pyft.train {dest}")


def command_line() -> argparse.ArgumentParser:
    """Describe the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pyft.recipes", description="List the shipped recipes, or copy one."
    )
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="default: list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to copy")
    parser.add_argument("dest", nargs="?", metavar="DEST", help="a new file, or a folder to copy it into")
    return parser


def main(options: argparse.Namespace) -> None:
    """Run the action, after checking how many words came with it."""
    num_given = sum(value is not None for value in (options.name, options.dest))
    if num_given != (2 if options.action == "copy" else 0):
        takes = "a recipe's name and a destination" if options.action == "copy" else "no name"
        usage = "python -m pyft.recipes [list | copy NAME DEST]"
        raise ConfigError(f"{options.action} takes {takes} (command line): write {usage}")
    (copy_recipe if options.action == "copy" else list_recipes)(options)


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist: the whole of it, or nothing."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except BaseException:
            path.unlink()
            raise


if __name__ == "__main__":
    sys.exit(run_command(main, command_line()))
