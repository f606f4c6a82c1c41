"""Detect the format of a record, and say which is nearest where it has none."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pyft.data.reading.json_lines import json_type
from pyft.data.rows.registry import FORMATS, REQUIRED_KEYS

_ASSISTANTS = ("assistant", "gpt", "function_call")
# What files call the two sides of a pair.
_QUESTIONS = ("question", "instruction", "prompt", "query", "input", "user", "human")
_ANSWERS = ("answer", "output", "response", "completion", "assistant", "gpt")


def detect_record(value: Any) -> str | None:
    """Name the format of a decoded record, if it has one."""
    if isinstance(value, list):
        return "messages" if _holds_dicts_with(value, "role") else None
    if not isinstance(value, dict):
        return None
    keys = value.keys()
    conversation = value.get("conversation")
    turns = [conversation] if isinstance(conversation, dict) else conversation
    if _holds_dicts_with(turns, "output"):
        return "xtuner"
    has_answers = {"chosen", "rejected"} <= keys
    for key, own in (("messages", "messages"), ("conversations", "sharegpt")):
        turns = value.get(key)
        if not isinstance(turns, list):
            continue
        # A conversation that waits for an answer, beside two answers, is the prompt of a preference.
        if has_answers and not _ends_with_answer(turns):
            return "preference"
        return "messages" if _holds_dicts_with(turns, "role") else own
    pairs = {
        "preference": has_answers,
        "prompt": {"prompt", "completion"} <= keys,
        "alpaca": {"instruction", "output"} <= keys,
        "query": {"query", "response"} <= keys,
        # One turn of xtuner as a row.
        "xtuner": {"input", "output"} <= keys,
        "text": "text" in keys,
        "tokenized": "input_ids" in keys,
    }
    return next((name for name, fits in pairs.items() if fits), None)


def _holds_dicts_with(turns: Any, key: str) -> bool:
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and key in turns[0]


def _ends_with_answer(turns: list[Any]) -> bool:
    last = turns[-1] if turns else None
    return isinstance(last, dict) and last.get("role", last.get("from")) in _ASSISTANTS


def describe_unknown(value: Any, columns: Mapping[str, str]) -> str:
    """Say why a record, its keys already renamed by `columns`, has no known format."""
    if not isinstance(value, dict):
        return f"the row is {json_type(value)}, not an object: each row is an object such as {{'text': '..'}}"
    if not value:
        return "the row is an empty object: fill it or delete it"
    found = ", ".join(str(columns.get(key, key)) for key in value)
    if {"role", "content"} <= value.keys():
        return (
            f"the row is a single message (keys {found}), not a conversation: "
            'put a conversation\'s messages in one row, {"messages": [..]}'
        )
    rows = next(iter(value.values()))
    if len(value) == 1 and isinstance(rows, list) and rows and detect_record(rows[0]):
        return f"the row holds a list of rows under {found}: write each of them on a line of its own"
    nearest, missing = _nearest_format(value)
    pair = [next((key for key in names if key in value), None) for names in (_QUESTIONS, _ANSWERS)]
    if len(missing) == len(REQUIRED_KEYS[nearest]) and None not in pair:
        return (
            f"no known format fits the keys {found}: if a question and its answer are among them, write "
            f"columns: {{query: {pair[0]}, response: {pair[1]}}} (formats read: {', '.join(FORMATS)})"
        )
    if not missing:
        return (
            f"no known format fits the keys {found}: nearest is {nearest}, whose "
            f"{REQUIRED_KEYS[nearest][0]!r} is not what that format holds: see data.train[].format"
        )
    lacks = ", ".join(columns.get(key, key) for key in missing)
    return (
        f"no known format fits the keys {found}: nearest is {nearest}, which lacks {lacks}: "
        f"rename the keys, or name them under columns (formats read: {', '.join(FORMATS)})"
    )


def _nearest_format(value: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the format most of whose required keys are there, and those that are missing."""

    def closeness(name: str) -> tuple[float, float]:
        required = REQUIRED_KEYS[name]
        present = sum(key in value for key in required) / len(required)
        alike = max(
            difflib.SequenceMatcher(None, want, str(key)).ratio() for want in required for key in value
        )
        return present, alike

    nearest = max(FORMATS, key=closeness)
    return nearest, [key for key in REQUIRED_KEYS[nearest] if key not in value]
