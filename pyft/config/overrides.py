"""Overrides of the command line, `data.train[0].path=x`: reading them and setting them in a plain recipe."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pyft.config.key_path import COMMAND_LINE, KeyPath, name_of, parse_path, show_path
from pyft.config.schema import accepts_null
from pyft.config.yaml_text import parse_value
from pyft.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """A value for a place of the recipe: of every stage, or of one where the path begins with `stages[i]`."""

    path: KeyPath
    value: Any


def parse_overrides(texts: list[str]) -> tuple[list[Override], list[str]]:
    """Read overrides, each `key.sub=value` with a value in YAML; return them, and what is wrong."""
    overrides: list[Override] = []
    problems: list[str] = []
    for text in texts:
        try:
            overrides.append(_parse(text))
        except ConfigError as error:
            problems.extend(error.messages)
    return overrides, problems


def _parse(text: str) -> Override:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(
            f"{text!r} is not an override ({COMMAND_LINE}): write key=value, as train.learning_rate=1e-4"
        )
    try:
        path = parse_path(key.strip())
    except ValueError:
        raise ConfigError(
            f"{key[:60]!r} is not the name of a key ({COMMAND_LINE}): "
            "write it as train.learning_rate or data.train[0].path"
        ) from None
    if not value.strip():
        raise ConfigError(
            f"{key}= has no value ({COMMAND_LINE}): write {key}=null to remove it, {key}='\"\"' for no text"
        )
    try:
        return Override(path, parse_value(value, f"{COMMAND_LINE}, {key}"))
    except ConfigError as error:
        quote = f"""if it is text, put it in quotes: '{key}="..."'"""
        raise ConfigError([f"{message}; {quote}" for message in error.messages]) from None


def apply_override(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set a copy of a value in a plain recipe, making the mappings and the next list entry on the way.

    Null where the schema has no null removes the key, so that its default counts.
    """
    holder: Any = data
    for depth, (step, following) in enumerate(pairwise(path)):
        _check_step(holder, path, depth)
        missing = step not in holder if isinstance(holder, dict) else step == len(holder)
        if missing and isinstance(holder, list):
            holder.append(None)
        if missing or holder[step] is None:
            holder[step] = [] if isinstance(following, int) else {}
        holder = holder[step]
    _check_step(holder, path, len(path) - 1)
    last = path[-1]
    if isinstance(holder, list) and last == len(holder):
        holder.append(copy.deepcopy(value))
    elif value is None and isinstance(holder, dict) and not accepts_null(name_of(path)):
        holder.pop(last, None)
    else:
        holder[last] = copy.deepcopy(value)


def _check_step(holder: Any, path: KeyPath, depth: int) -> None:
    step, here, whole = path[depth], show_path(path[:depth]), show_path(path)
    if isinstance(step, int):
        if not isinstance(holder, list):
            raise ConfigError(f"{here} is not a list ({COMMAND_LINE}, {whole}): write it without [{step}]")
        if step > len(holder):
            raise ConfigError(
                f"{here} ends before [{step}] ({COMMAND_LINE}, {whole}): "
                f"the next free one is {here}[{len(holder)}]"
            )
    elif not isinstance(holder, dict):
        if isinstance(holder, list):
            raise ConfigError(f"{here} is a list ({COMMAND_LINE}, {whole}): write {here}[0].{step}")
        raise ConfigError(
            f"{here} is not a mapping ({COMMAND_LINE}, {whole}): it cannot hold {step}; set {here} itself"
        )
