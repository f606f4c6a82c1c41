"""python -m pyft.data RECIPE: show what training would see, without reading any weights.

`python -m pyft.data templates [NAME]` lists the chat templates, or shows one on a small conversation.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

from pyft.command import run_command
from pyft.config.load import Recipe, load_recipe
from pyft.config.modes import MODES
from pyft.config.schema import Stage
from pyft.errors import ConfigError

if TYPE_CHECKING:
    from pyft.data.prepare import PreparedData

_SHOWN = 3
_SEARCHED = 10_000
_TEMPLATES = "templates"


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pyft.data",
        usage="python -m pyft.data RECIPE [key.sub=value ...] [options]\n"
        f"       python -m pyft.data {_TEMPLATES} [NAME]",
        description="Show what training would see: formats, the ledger, samples with what is learned marked; "
        "or list the chat templates, or render a small conversation with one of them or with a .jinja file.",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a recipe file, or the name of a shipped one (see python -m pyft.recipes)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="override of one of its keys, as data.max_length=512",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="a line of JSON per sample in file order, then the ledger"
    )
    form.add_argument(
        "--packed",
        action="store_true",
        help="show the first batches of training, with the boundaries between their samples",
    )
    parser.add_argument(
        "--num-samples",
        type=_count,
        metavar="N",
        help=f"samples to show, or batches with --packed (default: {_SHOWN}; with --json all)",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="the stage to show (default: all; with --json the first)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of samples: write 0 or more")
    return int(text)


def main(options: argparse.Namespace) -> None:
    """Show the data of a recipe."""
    if options.recipe == _TEMPLATES:
        _show_templates(options)
        return
    recipe = load_recipe(options.recipe, options.overrides)
    stages = _choose_stages(recipe, options.stage, only_one=options.json)
    for stage in stages:
        if not options.json and recipe.staged:
            print(f"stage {stage.name}")
        _show(recipe, stage, options)


def _show_templates(options: argparse.Namespace) -> None:
    names = options.overrides
    if len(names) > 1 or options.json or options.packed or options.stage or options.num_samples is not None:
        raise ConfigError(
            f"{_TEMPLATES} takes one name at most, and no options (command line): "
            f"write python -m pyft.data {_TEMPLATES} [NAME]"
        )
    from pyft.data.show.templates import list_templates, show_template
    from pyft.data.show.terminal import wants_colour

    print(show_template(names[0], wants_colour()) if names else list_templates())


def _choose_stages(recipe: Recipe, name: str | None, *, only_one: bool) -> list[Stage]:
    if name is None:
        return recipe.stages[:1] if only_one else recipe.stages
    chosen = [stage for stage in recipe.stages if stage.name == name]
    if not chosen:
        names = ", ".join(stage.name for stage in recipe.stages)
        raise ConfigError(f"there is no stage {name!r} (--stage): the recipe has {names}")
    return chosen


def _show(recipe: Recipe, stage: Stage, options: argparse.Namespace) -> None:
    from pyft.data.chat.bind import get_template
    from pyft.data.prepare import prepare
    from pyft.data.recipe_tokenizer import tokenizer_for
    from pyft.data.show.ledger import format_ledger

    tokenizer = tokenizer_for(recipe, stage)
    template = get_template(stage.model.template, tokenizer) if MODES[stage.mode].has_template else None
    prepared = prepare(stage, tokenizer, template)
    if options.json:
        _print_json(prepared, tokenizer, options.num_samples)
        return
    for note in prepared.notes:
        print(note)
    print(format_ledger(prepared.ledger))
    num_shown = _SHOWN if options.num_samples is None else options.num_samples
    if options.packed:
        _print_batches(prepared, tokenizer, num_shown, stage)
    else:
        _print_samples(prepared, tokenizer, num_shown)


def _print_json(prepared: PreparedData, tokenizer: Any, num_samples: int | None) -> None:
    from pyft.data.show.samples import spelled_text

    # One at a time: all of them may not fit into memory.
    samples = prepared.samples_in_order
    for index, sample in enumerate(islice(samples, num_samples)):
        row = {
            "input_ids": sample.input_ids.tolist(),
            "labels": sample.labels.tolist(),
            "text": spelled_text(sample, tokenizer),
            "source": samples.source(index),
        }
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    sys.stdout.write(json.dumps({"ledger": prepared.ledger}) + "\n")


def _print_samples(prepared: PreparedData, tokenizer: Any, num_samples: int) -> None:
    """Show the first samples, and the first one that something was cut from."""
    from pyft.data.show.samples import format_sample
    from pyft.data.show.terminal import wants_colour

    samples = prepared.samples_in_order
    shown = list(range(min(num_samples, len(samples))))
    some = range(min(_SEARCHED, len(samples)) if shown else 0)
    cut = next((index for index in some if samples.cut_text(index)), None)
    if cut is not None and cut not in shown:
        shown.append(cut)
    for index in shown:
        print()
        sample, source, cut_text = samples[index], samples.source(index), samples.cut_text(index)
        print(format_sample(sample, source, tokenizer, colour=wants_colour(), cut_text=cut_text))


def _print_batches(prepared: PreparedData, tokenizer: Any, num_batches: int, stage: Stage) -> None:
    """Show the batches of the first epoch as the trainer gets them."""
    from pyft.data.show.samples import format_pack, samples_of_batch
    from pyft.data.show.terminal import wants_colour

    data, per_batch = stage.data, stage.train.per_device_train_batch_size
    room = data.max_length * per_batch if data.packing and data.max_length else None
    for index in range(min(num_batches, prepared.train.num_batches)):
        samples = samples_of_batch(prepared.train.batch(0, index))
        print(f"\nbatch {index + 1} of {prepared.train.num_batches}: ", end="")
        print(format_pack(samples, tokenizer, room=room, colour=wants_colour()))


if __name__ == "__main__":
    sys.exit(run_command(main, make_parser()))
