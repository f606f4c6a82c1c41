"""Read the fields of one record, and say what is wrong with one that does not fit.

Every function raises RowError with `what: how to fix it`; the caller adds file and line.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyft.data.reading.json_lines import json_type


class RowError(Exception):
    """A record that does not fit its format: `what: how to fix it`."""


class LeaveOut(Exception):
    """A record that its format's convention leaves out; the argument is the reason's name in the ledger."""


def check_text(value: Any, name: str, *, empty: bool = True) -> str:
    if type(value) is not str:
        if value is None:
            raise RowError(f"{name} is null: write a string")
        raise RowError(f"{name} is {json_type(value)}, not a string: put it in quotes")
    position = find_unencodable(value)
    if position >= 0:
        bad = value[position]
        kind = "a NUL character" if bad == "\0" else f"the lone surrogate \\u{ord(bad):04x}"
        raise RowError(f"{name} holds {kind} at character {position + 1}: delete it")
    if not empty and (not value or value.isspace()):
        raise RowError(f"{name} is empty: write the text, or delete the row")
    return value


def is_plain(value: Any) -> bool:
    """Whether a value is an ordinary text, which passes every check of check_text."""
    return type(value) is str and bool(value) and not value.isspace() and find_unencodable(value) < 0


def find_unencodable(text: str) -> int:
    """Return the place of the first character that cannot be passed on, or -1.

    Lone surrogates have no UTF-8 form, so no tokenizer can take them; NUL ends a string in many tools.
    """
    nul = text.find("\0")
    if text.isascii():
        return nul
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start if nul < 0 else min(error.start, nul)
    return nul


def get_text(record: dict[str, Any], key: str, name: str, *, empty: bool = True) -> str:
    if key not in record:
        raise RowError(describe_missing(record, name))
    return check_text(record[key], name, empty=empty)


def describe_missing(record: dict[str, Any], name: str) -> str:
    return f"{name} is missing (keys found: {', '.join(map(str, record)) or 'none'}): add it"


def optional_text(record: dict[str, Any], key: str, name: str) -> str:
    """Read a text; an absent or null key counts as none."""
    value = record.get(key)
    return "" if value is None else check_text(value, name)


def read_flag(record: dict[str, Any], key: str, name: str) -> bool | None:
    value = record.get(key)
    if value is None or isinstance(value, bool):
        return value
    # OpenAI's fine-tuning files give a message the weight 0 or 1.
    as_text = str(value).strip().lower()
    if as_text in ("true", "1", "1.0"):
        return True
    if as_text in ("false", "0", "0.0"):
        return False
    raise RowError(f"{name} is {value!r}: write true or false")


def count_unused(record: dict[str, Any], used: frozenset[str], prefix: str, unused: Counter[str]) -> None:
    """Count the keys that hold something and are not read."""
    for key in record.keys() - used:
        if record[key] is not None:
            unused[prefix + str(key)] += 1


def expect_object(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise RowError(f"the row is {json_type(record)}, not an object: each row is one object")
    return record


def expect_turns(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RowError(f"{name} is {json_type(value)}, not a list: write a list of turns")
    if not value:
        raise RowError(f"{name} is an empty list: give it turns, or delete the row")
    for index, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise RowError(f"{name}[{index}] is {json_type(turn)}, not an object: write one object per turn")
    return value
