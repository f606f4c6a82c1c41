"""Turns what pydantic finds wrong with a stage into sentences: what it is, and how to fix it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import ErrorDetails

from pyft.config.hints import SOURCES, hint_for, hint_for_value
from pyft.config.key_path import KeyPath, show_path
from pyft.config.names import Name, accepts_null, known_names, name_of

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


def error_path(error: ErrorDetails, data: Any) -> KeyPath:
    """Give the place of an error in the recipe, without the marks pydantic puts in for alternatives.

    Args:
        error: one error of pydantic.
        data: the plain mapping that was validated.

    Returns:
        Its path.
    """
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
    """Put an error into words.

    Args:
        error: one error of pydantic.
        path: its place in the stage.
        shown: that place as the user wrote it.

    Returns:
        What is wrong, and how to fix it.
    """
    kind, name = error["type"], name_of(path)
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
    """Names a value in an error message, shortly.

    Args:
        value: a plain value.

    Returns:
        Such as `true`, `the text 'abc'`, `a list`.
    """
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
