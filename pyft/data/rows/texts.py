"""Convert formats that are one text or one list of ids: text, text with marked turns, tokenized."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from pyft.data.reading.json_lines import json_type
from pyft.data.rows.fields import RowError, count_unused, describe_missing, expect_object, get_text
from pyft.data.rows.row import Message, Row

_MARK = re.compile(r"(?<!#)### ?(Human|Assistant):")


def convert_text(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format text."""
    record = expect_object(record)
    count_unused(record, frozenset(("text",)), "", unused)
    return Row(text=get_text(record, "text", "text", empty=False))


def convert_marked_text(record: Any, unused: Counter[str]) -> Row:
    """Convert a text in which `### Human:` and `### Assistant:` begin the turns."""
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
    return Row(tuple(messages))


def convert_tokenized(record: Any, unused: Counter[str]) -> Row:
    """Convert a row of format tokenized."""
    record = expect_object(record)
    count_unused(record, frozenset(("input_ids", "labels", "attention_mask")), "", unused)
    ids, labels = (_read_ids(record, key) for key in ("input_ids", "labels"))
    if len(ids) != len(labels):
        raise RowError(f"input_ids has {len(ids)} tokens, labels {len(labels)}: write one label per token")
    # The mask itself is not needed, but where it hides tokens they would be learned from.
    if record.get("attention_mask") is not None and 0 in _read_ids(record, "attention_mask"):
        raise RowError("attention_mask has zeros, so the row is padded: write it without padding")
    return Row(tokens=(ids, labels))


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
