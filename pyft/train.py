"""`python -m pyft.train RECIPE [key.sub=value ...]`: parse, build, run.

The recipe is read and checked before torch is imported, so `--help` and mistakes in it answer at once.
"""

from __future__ import annotations

import argparse
import sys

from pyft.command import run_command
from pyft.config.load import load_recipe


def train(arguments: argparse.Namespace) -> None:
    """Run every stage of a recipe."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from pyft.stages import run_recipe

    run_recipe(recipe)


def command_line() -> argparse.ArgumentParser:
    """Describe the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pyft.train", description="Fine-tune a language model as a recipe says."
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a recipe file, or the name of a shipped one (see python -m pyft.recipes)",
    )
    parser.add_argument(
        "overrides",
        metavar="key.sub=value",
        nargs="*",
        help="override of one of its keys, as train.learning_rate=1e-4",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(train, command_line()))
