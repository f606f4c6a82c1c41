"""Which format a record has, and the converter of each format.

A converter takes (record, source, unused_keys), returns a Row, and raises RowError with "what: how to fix
it" (the caller adds file and line), or LeaveOut for a row its format's convention leaves out. Keys that are
not read are counted in `unused_keys`, never silently lost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pyft.data.reading.json_lines import json_type
from pyft.data.rows.fields import (
    RowError,
    count_unused,
    describe_missing,
    expect_object,
    get_text,
)
from pyft.data.rows.pairs import convert_alpaca, convert_preference, convert_prompt, convert_query
from pyft.data.rows.row import Message, Row
from pyft.data.rows.turns import convert_messages, convert_sharegpt, convert_xtuner

REQUIRED_KEYS = {
    "text": ("text",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "query": ("query", "response"),
    "xtuner": ("conversation",),
    "preference": ("prompt", "chosen", "rejected"),
    "tokenized": ("input_ids", "labels"),
}
FORMATS = tuple(REQUIRED_KEYS)
# A text in which `### Human:` and `### Assistant:` begin the turns; only a field map names it.
MARKED_TEXT = "marked text"

_MESSAGE_KEYS = ("role", "content", "loss", "tool_calls", "name", "tool_call_id", "reasoning_content")
_SHAREGPT_KEYS = ("from", "value", "loss")
TURN_KEYS = frozenset((*_MESSAGE_KEYS, *_SHAREGPT_KEYS, "input", "output", "output_with_loss", "system"))
TURN_LISTS = ("messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected")
KEYS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages", "system", "tools", *_MESSAGE_KEYS),
    "sharegpt": ("conversations", "system", "tools", *_SHAREGPT_KEYS),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "prompt": ("prompt", "completion", "system", "tools", *_MESSAGE_KEYS, *_SHAREGPT_KEYS),
    "query": ("query", "response", "system", "history"),
    "xtuner": ("conversation", "system", "input", "output", "output_with_loss"),
    "preference": (
        *("prompt", "chosen", "rejected", "system", "tools", "instruction", "input", "history"),
        *("messages", "conversations", *_MESSAGE_KEYS, *_SHAREGPT_KEYS),
    ),
    "tokenized": ("input_ids", "labels"),
    MARKED_TEXT: ("text",),
}
"""Format -> the keys that `columns` can rename, those of its turns included."""

_MARK = re.compile(r"(?<!#)### ?(Human|Assistant):")


def _convert_text(record: Any, source: str, unused: Counter[str]) -> Row:
    record = expect_object(record)
    count_unused(record, frozenset(("text",)), "", unused)
    return Row(None, get_text(record, "text", "text", empty=False), source)


def _convert_marked_text(record: Any, source: str, unused: Counter[str]) -> Row:
    record = expect_object(record)
    count_unused(record, frozenset(("text",)), "", unused)
    before, *parts = _MARK.split(get_text(record, "text", "text", empty=False))
    if before.strip() or not parts:
        raise RowError(
            "text does not begin with `### Human:` or `### Assistant:`: this map reads no other text"
        )
    messages = []
    for index in range(0, len(parts), 2):
        role = "user" if parts[index] == "Human" else "assistant"
        content = parts[index + 1].strip()
        if not content:
            raise RowError(f"turn {index // 2 + 1} of the text is empty: write it, or delete the row")
        messages.append(Message(role, content))
    return Row(tuple(messages), None, source)


def _convert_tokenized(record: Any, source: str, unused: Counter[str]) -> Row:
    record = expect_object(record)
    count_unused(record, frozenset(("input_ids", "labels", "attention_mask")), "", unused)
    ids, labels = (_read_ids(record, key) for key in ("input_ids", "labels"))
    if len(ids) != len(labels):
        raise RowError(f"input_ids has {len(ids)} tokens, labels {len(labels)}: write one label a token")
    # The mask itself is not needed, but where it hides tokens they would be learned from.
    if record.get("attention_mask") is not None and 0 in _read_ids(record, "attention_mask"):
        raise RowError("attention_mask has zeros, so the row is padded: write it without padding")
    return Row(None, None, source, tokens=(ids, labels))


def _read_ids(record: dict[str, Any], key: str) -> list[int]:
    if key not in record:
        raise RowError(describe_missing(record, key))
    ids = record[key]
    if not isinstance(ids, list):
        raise RowError(f"{key} is {json_type(ids)}, not a list: write a list of whole numbers")
    if not ids:
        raise RowError(f"{key} is an empty list: give it tokens, or delete the row")
    if set(map(type, ids)) != {int}:
        index = next(index for index, number in enumerate(ids) if type(number) is not int)
        raise RowError(f"{key}[{index}] is {json_type(ids[index])}, not a whole number: write token ids")
    return ids


CONVERTERS: dict[str, Callable[[Any, str, Counter[str]], Row]] = {
    "text": _convert_text,
    "messages": convert_messages,
    "sharegpt": convert_sharegpt,
    "alpaca": convert_alpaca,
    "prompt": convert_prompt,
    "query": convert_query,
    "xtuner": convert_xtuner,
    "preference": convert_preference,
    "tokenized": _convert_tokenized,
    MARKED_TEXT: _convert_marked_text,
}
