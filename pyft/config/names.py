"""All names a recipe may use, taken from the schema: for hints, and to know where null is a value.

A name is a path without list indices: `("data", "train", "path")`. Below a free mapping (`model.config`)
anything goes.
"""

from __future__ import annotations

from functools import cache
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pyft.config.key_path import KeyPath
from pyft.config.schema import Stage

Name = tuple[str, ...]


def name_of(path: KeyPath) -> Name:
    """Drop the list indices of a path.

    Args:
        path: such as `("data", "train", 0, "path")`.

    Returns:
        The name, `("data", "train", "path")`.
    """
    return tuple(step for step in path if isinstance(step, str))


@cache
def known_names() -> dict[Name, FieldInfo]:
    """List every name of the schema.

    Returns:
        Name -> its field, sections before what they hold.
    """
    names: dict[Name, FieldInfo] = {}
    _collect(Stage, (), names)
    return names


def accepts_null(name: Name) -> bool:
    """Says whether null may stand at a name, as a value of its own.

    Args:
        name: any name; for one that the schema does not know it is True, so that it stays to be refused.

    Returns:
        False where null can only mean `as if it were not written`.
    """
    field = known_names().get(name)
    return field is None or NoneType in get_args(field.annotation)


def _collect(section: type[BaseModel], prefix: Name, names: dict[Name, FieldInfo]) -> None:
    for key, field in section.model_fields.items():
        names[(*prefix, key)] = field
        for inner in _sections_in(field.annotation):
            _collect(inner, (*prefix, key), names)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]
