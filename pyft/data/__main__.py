"""python -m pyft.data RECIPE: show what training would see, without reading any weights."""

from __future__ import annotations

import argparse
import json
import sys

from pyft.config import ConfigError, Recipe, Stage, load_recipe, run_command

_SHOWN = 3


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pyft.data",
        description="Show what training would see: formats, the ledger, samples with what is learned marked.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="path of a recipe, or a shipped one's name")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of the recipe")
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON per sample in file order, then the ledger"
    )
    parser.add_argument(
        "--num-samples",
        type=_count,
        metavar="N",
        help=f"samples to show (default: {_SHOWN}; with --json all)",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="the stage to show (default: all; with --json the first)"
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def main(options: argparse.Namespace) -> None:
    """Show the data of a recipe.

    Args:
        options: The parsed command line.
    """
    recipe = load_recipe(options.recipe, options.overrides)
    stages = _choose_stages(recipe, options.stage, only_one=options.json)
    for stage in stages:
        if not options.json and recipe.staged:
            print(f"stage {stage.name}")
        _show(recipe, stage, options.json, options.num_samples)


def _choose_stages(recipe: Recipe, name: str | None, *, only_one: bool) -> list[Stage]:
    if name is None:
        return recipe.stages[:1] if only_one else recipe.stages
    chosen = [stage for stage in recipe.stages if stage.name == name]
    if not chosen:
        names = ", ".join(stage.name for stage in recipe.stages)
        raise ConfigError(f"there is no stage {name!r} (--stage): the recipe has {names}")
    return chosen


def _show(recipe: Recipe, stage: Stage, as_json: bool, num_samples: int | None) -> None:
    from pyft.data.prepare import format_ledger, prepare, tokenizer_for
    from pyft.data.preview import format_sample, spelled_text, wants_colour
    from pyft.data.templates import get_template

    tokenizer = tokenizer_for(recipe, stage)
    template = get_template(stage.model.template, tokenizer) if stage.mode == "sft" else None
    prepared = prepare(stage, tokenizer, template)
    samples = prepared.samples_in_order
    if as_json:
        for sample in samples[:num_samples]:
            row = {
                "input_ids": sample.input_ids,
                "labels": sample.labels,
                "text": spelled_text(sample, tokenizer),
                "source": sample.source,
            }
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        sys.stdout.write(json.dumps({"ledger": prepared.ledger}) + "\n")
        return
    for note in prepared.notes:
        print(note)
    print(format_ledger(prepared.ledger))
    for sample in samples[: _SHOWN if num_samples is None else num_samples]:
        print()
        print(format_sample(sample, tokenizer, colour=wants_colour()))


if __name__ == "__main__":
    sys.exit(run_command(main, make_parser()))
