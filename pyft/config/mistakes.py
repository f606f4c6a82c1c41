"""What is wrong with a recipe, in words, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from pyft.config.key_path import KeyPath, name_of, show_path
from pyft.config.schema import CONTRADICTION, Name, accepts_null, known_names

FOREIGN_NAMES_FILE = Path(__file__).with_name("foreign_names.yaml")
SOURCES: tuple[Name, ...] = (("data", "train"), ("data", "validation"))
"""The names whose entries are data sources."""
_EXPECTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "give a whole number",
    "int_from_float": lambda _: "give a whole number",
    "float_type": lambda _: "give a number",
    "finite_number": lambda _: "give a finite number",
    "bool_type": lambda _: "say true or false",
    "string_type": lambda _: "give text (put it in quotes)",
    "string_too_short": lambda _: "give a text that is not empty",
    "too_short": lambda context: f"give at least {context['min_length']} entry",
    "greater_than_equal": lambda context: f"give at least {context['ge']:g}",
    "greater_than": lambda context: f"give more than {context['gt']:g}",
    "less_than_equal": lambda context: f"give at most {context['le']}",
    "less_than": lambda context: f"give less than {context['lt']}",
    "literal_error": lambda context: f"say {context['expected'].replace(chr(39), '')}",
    "value_error": lambda context: str(context["error"]),
}
_MISSING = {
    ("data", "train"): "list what to learn from, as data.train: [{path: rows.jsonl}]",
    ("data", "train", "path"): "name the file, as path: rows.jsonl",
    ("data", "validation", "path"): "name the file, as path: rows.jsonl",
}


@dataclass(frozen=True)
class ForeignNames:
    """What other tools call things. Each table: the word there -> what to write here."""

    keys: dict[str, str]
    source_keys: dict[str, str]
    """Inside an entry of `data.train`, where they mean something else."""
    values: dict[str, dict[str, str]]
    """For each key of pyft's."""
    file_kinds: frozenset[str]
    """File suffixes, which are not row formats."""


@cache
def foreign_names() -> ForeignNames:
    """Read the tables; nothing but a mistake needs them."""
    tables = yaml.safe_load(FOREIGN_NAMES_FILE.read_text(encoding="utf-8"))
    return ForeignNames(
        keys=_turned(tables["keys"]),
        source_keys=_turned(tables["source_keys"]),
        values={key: _turned(values) for key, values in tables["values"].items()},
        file_kinds=frozenset(tables["file_kinds"]),
    )


def _turned(table: dict[str, list[str]]) -> dict[str, str]:
    return {word: own for own, words in table.items() for word in words}


def error_path(error: ErrorDetails, data: Any) -> KeyPath:
    """Return an error's place in the plain mapping, without the steps pydantic adds for alternatives."""
    path: list[str | int] = []
    for step in error["loc"]:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            if error["type"] != "missing":
                continue
        path.append(step)
    return tuple(path)


def explain(error: ErrorDetails, path: KeyPath, shown: str) -> tuple[str, str]:
    """Say what is wrong, and how to fix it; `shown` is the error's path as the user wrote it."""
    kind, name = error["type"], name_of(path)
    if kind == CONTRADICTION:
        return error["ctx"]["what"], error["ctx"]["fix"]
    if kind == "extra_forbidden":
        prefix = shown.removesuffix(show_path(path))
        return f"unknown key {shown[:200]}", hint_for(path, prefix)
    if kind == "missing":
        return f"{shown} is missing", _MISSING.get(name, "add it")
    if kind == "list_type":
        expected = _list_example(name, error["input"])
    elif kind in ("model_type", "dict_type", "model_attributes_type"):
        expected = _mapping_example(name)
    else:
        expected = _EXPECTED[kind](error.get("ctx", {}))
    if kind == "literal_error":
        allowed = expected.removeprefix("say ").replace(" or ", ", ").split(", ")
        expected = hint_for_value(name, error["input"], allowed) + expected
    field = known_names().get(name)
    if field is not None and accepts_null(name) and "null" not in expected:
        expected += ", or null for none"
    elif field is not None and error["input"] is None and not field.is_required():
        expected += f", or remove the key to have {field.default}"
    return f"{shown} is {describe(error['input'])}", expected


def _list_example(name: Name, given: Any) -> str:
    if name in SOURCES:
        return f"give a list, as [{{path: {given if isinstance(given, str) else 'rows.jsonl'}}}]"
    return f"give a list, as [{given}]" if isinstance(given, str) else "give a list, as [a, b]"


def _mapping_example(name: Name) -> str:
    if name in SOURCES:
        return "give a mapping, as {path: rows.jsonl}"
    if name[:2] in SOURCES and name[-1] == "columns":
        return "give a mapping of the format's keys to the file's, as {instruction: question}"
    keys = [known[-1] for known in known_names() if known[:-1] == name]
    more = "..." if len(keys) > 6 else ""
    return f"give a mapping of its keys ({', '.join(keys[:6])}{more})"


def describe(value: Any) -> str:
    """Name a plain value in a few words: `true`, `the text 'abc'`, `a list`."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:60]!r}..."
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "a mapping"
    text = str(value)
    return text if len(text) <= 30 else "a very large number"


def hint_for(path: KeyPath, prefix: str = "") -> str:
    """Say what to write instead of an unknown key; `prefix` stands before it in the recipe, as `stages[1].`.

    First the names that other tools use for the same thing, then the same word in another section, then the
    nearest name by spelling.
    """
    word, foreign = str(path[-1]), foreign_names()
    if name_of(path[:-1]) in SOURCES and word in foreign.source_keys:
        return f"write {prefix}{show_path((*path[:-1], foreign.source_keys[word]))}"
    own = foreign.keys.get(word) or foreign.keys.get(word.replace("-", "_"))
    if own is not None:
        return f"write {own}"
    nearest = _nearest(path)
    if nearest is not None:
        return f"did you mean {prefix}{show_path(_with_indices(nearest, path))}?"
    siblings = [name[-1] for name in known_names() if name[:-1] == name_of(path[:-1])]
    return f"remove it; known here: {', '.join(siblings)}" if siblings else "remove it"


def hint_for_value(name: Name, value: object, allowed: Sequence[str]) -> str:
    """Say which of the allowed values may be meant: a clause to put before their list, or nothing."""
    if not isinstance(value, str):
        return ""
    word = value.lower()
    is_format = name[:2] in SOURCES and name[-1] == "format"
    foreign = foreign_names()
    if is_format and word.rpartition(".")[2] in foreign.file_kinds:
        return "the kind of file is known from its name, this says how its rows are written: "
    table = foreign.values.get("data.train.format" if is_format else ".".join(name), {})
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.7)
    meant = table.get(word) or (close[0] if close else None)
    return f"did you mean {meant}? " if meant else ""


def _nearest(path: KeyPath) -> Name | None:
    name = name_of(path)
    names = list(known_names())
    same_word = [known for known in names if known[-1] == name[-1]]
    if same_word:
        return max(same_word, key=lambda known: _likeness(known, name))
    siblings = {known[-1]: known for known in names if known[:-1] == name[:-1]}
    close = difflib.get_close_matches(name[-1], siblings, n=1, cutoff=0.7)
    if close:
        return siblings[close[0]]
    words = {known[-1]: known for known in reversed(names)}  # of equal words the first
    close = difflib.get_close_matches(name[-1], words, n=1, cutoff=0.75)
    return words[close[0]] if close else None


def _likeness(one: Name, other: Name) -> float:
    return difflib.SequenceMatcher(None, show_path(one), show_path(other)).ratio()


def _with_indices(name: Name, path: KeyPath) -> KeyPath:
    """Put the indices of the path it stands for into a name: data.train.path -> data.train[0].path."""
    result: list[str | int] = []
    for depth, step in enumerate(name):
        result.append(step)
        if depth + 1 < len(name) and name[: depth + 1] in SOURCES:
            position = len(result)
            given = path[position] if len(path) > position and path[:position] == tuple(result) else 0
            result.append(given if isinstance(given, int) else 0)
    return tuple(result)
